"""Preference losses: DPO, conservative DPO, IPO, TIS-DPO, TIS-DPO on parent tokens, and all others by name.

All losses come per example, (B,); averaging them is the caller's, who knows how many examples the whole step has.
Log-probabilities are sums over the tokens of a response, end of sequence included, in nats. Rewards carry no gradient.
"""

from torch import Tensor

from prefkd.method.answer_losses import (
    apo_down_loss,
    apo_zero_loss,
    bco_loss,
    dpop_loss,
    f_divergence_loss,
    nca_loss,
    sppo_loss,
)
from prefkd.method.logprobs import NO_TARGET, predicting_logits
from prefkd.method.loss_needs import log_ratio, logistic_loss, preference_loss, require_positive
from prefkd.method.loss_settings import (
    centred,
    dynamic_beta,
    gap_weights,
    long_answer_weights,
    offset_per_parent,
    refreshed_reference,
    running_mean,
    update_gap,
    wpo_weights,
)
from prefkd.method.ratio_losses import (
    aot_loss,
    aot_unpaired_loss,
    discopop_loss,
    exo_loss,
    hinge_loss,
    robust_loss,
    sigmoid_norm_loss,
)
from prefkd.method.reference_free_losses import cpo_loss, orpo_loss, simpo_loss

__all__ = [
    "aot_loss",
    "aot_unpaired_loss",
    "apo_down_loss",
    "apo_zero_loss",
    "bco_loss",
    "centred",
    "cpo_loss",
    "discopop_loss",
    "dpo_loss",
    "dpop_loss",
    "dynamic_beta",
    "exo_loss",
    "f_divergence_loss",
    "gap_weights",
    "hinge_loss",
    "ipo_loss",
    "long_answer_weights",
    "nca_loss",
    "offset_per_parent",
    "orpo_loss",
    "parent_margin",
    "position_kl",
    "preference_loss",
    "refreshed_reference",
    "robust_loss",
    "running_mean",
    "sigmoid_norm_loss",
    "simpo_loss",
    "sppo_loss",
    "tis_dpo_loss",
    "update_gap",
    "wpo_weights",
]


@preference_loss(needs=["reference", "offset"])
def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    reference_free: bool = False,
    offset: Tensor | float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """DPO (arXiv 2305.18290, eq. 7), with label smoothing conservative DPO, with an offset ODPO (arXiv 2402.10571).

    Args:
        policy_chosen: (B,) log-probability of the chosen response under the model that learns.
        policy_rejected: (B,) the same of the rejected response.
        reference_chosen: (B,) log-probability of the chosen response under the reference.
        reference_rejected: (B,) the same of the rejected response.
        beta: Strength of the tie to the reference.
        label_smoothing: Probability that a preference label is wrong, in [0, 0.5).
        reference_free: Take the reference as uniform in the loss (not in the rewards).
        offset: (B,) by how much the chosen reward must be above the rejected one.

    Returns:
        losses, chosen rewards, rejected rewards, each (B,).

    Raises:
        ValueError: `beta` is not positive, or `label_smoothing` is outside [0, 0.5).
    """
    h = log_ratio(policy_chosen, policy_rejected, reference_chosen, reference_rejected, reference_free)
    return (
        logistic_loss(h, beta, label_smoothing, offset),
        beta * (policy_chosen - reference_chosen).detach(),
        beta * (policy_rejected - reference_rejected).detach(),
    )


@preference_loss(needs=["reference", "means"])
def ipo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    reference_free: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """IPO (arXiv 2310.12036, eq. 17): a squared error, which also penalises a margin that is too large.

    Args:
        policy_chosen: (B,) log-probability of the chosen response under the model that learns; here and below a sum,
            or, to keep long responses from dominating, a mean over tokens.
        policy_rejected: (B,) the same of the rejected response.
        reference_chosen: (B,) log-probability of the chosen response under the reference.
        reference_rejected: (B,) the same of the rejected response.
        beta: Strength of the tie to the reference; the log-ratio is drawn to 1 / (2 beta).
        reference_free: Take the reference as uniform in the loss (not in the rewards).

    Returns:
        losses, chosen rewards, rejected rewards, each (B,).

    Raises:
        ValueError: `beta` is not positive.
    """
    require_positive(beta)
    h = log_ratio(policy_chosen, policy_rejected, reference_chosen, reference_rejected, reference_free)
    return (
        (h - 1 / (2 * beta)) ** 2,  # (h - 1 / (2 beta))^2
        beta * (policy_chosen - reference_chosen).detach(),
        beta * (policy_rejected - reference_rejected).detach(),
    )


@preference_loss(needs=["margins", "offset"])
def tis_dpo_loss(
    chosen_margin: Tensor,
    rejected_margin: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    chosen_kl: Tensor | None = None,
    rejected_kl: Tensor | None = None,
    alpha: float = 0.0,
    offset: Tensor | float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """TIS-DPO (arXiv 2410.04350), on tokens or on parents (CTPD, arXiv 2601.11865).

    Args:
        chosen_margin: (B,) M = sum of w (log pi - log ref) over the chosen response, see `parent_margin`.
        rejected_margin: (B,) the same of the rejected response.
        beta: Strength of the tie to the reference.
        label_smoothing: Probability that a preference label is wrong, in [0, 0.5).
        chosen_kl: (B,) `position_kl` of the chosen response; both or neither. It needs one vocabulary on both sides.
        rejected_kl: (B,) the same of the rejected response.
        alpha: Weight of the KL difference in the loss. It and both KLs are there for parity with the published code.
        offset: (B,) by how much the chosen reward must be above the rejected one (arXiv 2402.10571).

    Returns:
        losses, chosen rewards, rejected rewards, each (B,). The rewards are beta M, or beta (M - KL) with KL terms.

    Raises:
        ValueError: Only one KL term is given, `beta` is not positive, or `label_smoothing` is outside [0, 0.5).
    """
    h = chosen_margin - rejected_margin
    if chosen_kl is None and rejected_kl is None:
        chosen_rewards, rejected_rewards = beta * chosen_margin, beta * rejected_margin
    elif chosen_kl is None or rejected_kl is None:
        raise ValueError("chosen_kl and rejected_kl belong together: give both or neither")
    else:
        h = h - alpha * (chosen_kl - rejected_kl)  # (M_w - M_l) - alpha (K_w - K_l)
        chosen_rewards, rejected_rewards = beta * (chosen_margin - chosen_kl), beta * (rejected_margin - rejected_kl)
    return logistic_loss(h, beta, label_smoothing, offset), chosen_rewards.detach(), rejected_rewards.detach()


def parent_margin(
    policy_parent_logprobs: Tensor, reference_parent_logprobs: Tensor, weights: Tensor, mask: Tensor
) -> Tensor:
    """Weighted margin of a response over parents: ``M = sum_P w_P (l_policy(P) - stop_gradient(l_reference(P)))``.

    The two sides may tokenize the text differently, since a parent is the same text on both. Tokens serve as well.

    Args:
        policy_parent_logprobs: (B, P) log-probabilities under the model that learns.
        reference_parent_logprobs: (B, P) the same under the reference; a constant.
        weights: (B, P) importance weights; constants.
        mask: (B, P) bool, true at real parents. What stands elsewhere takes no part, nor do parents of weight 0.

    Returns:
        (B,) margins.
    """
    counted = mask & (weights != 0)  # a choice, not a product: 0 times -inf is not 0
    log_ratio = (policy_parent_logprobs - reference_parent_logprobs.detach()).where(counted, 0)
    return (weights.detach().where(counted, 0) * log_ratio).sum(dim=-1)  # M = sum_P w_P (l_policy(P) - l_reference(P))


def position_kl(
    policy_logits: Tensor, reference_logits: Tensor, labels: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Position KL of TIS-DPO: ``K = sum_t w_t KL(pi(. | y_<t) || ref(. | y_<t))``, the reverse KL at every target.

    Args:
        policy_logits: (B, S, V) of the model that learns; the gradient flows through them.
        reference_logits: (B, S, V) of the reference, which must share the vocabulary.
        labels: (B, S), unshifted, -100 where there is no target.
        weights: (B, S) weight of each target, standing where its label stands; all 1 if absent.

    Returns:
        (B,) in nats, float32 or wider. Entries of the vocabulary that the policy masks with -inf add nothing.
    """
    if weights is not None:  # where the reference allows nothing that the policy allows, the divergence is infinite
        labels = labels.masked_fill(weights == 0, NO_TARGET)
    policy, _, mask = predicting_logits(policy_logits, labels)
    reference, _, _ = predicting_logits(reference_logits, labels)
    log_policy, log_reference = policy.log_softmax(-1), reference.log_softmax(-1)
    difference = (log_policy - log_reference).masked_fill(log_policy == -float("inf"), 0)  # p log p = 0 at p = 0
    divergence = (log_policy.exp() * difference).sum(-1)
    if weights is not None:
        divergence = weights[mask] * divergence
    return divergence.new_zeros(labels.shape).masked_scatter(mask, divergence).sum(-1)
