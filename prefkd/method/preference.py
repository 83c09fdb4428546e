"""Preference losses: DPO, conservative DPO, IPO, TIS-DPO, and TIS-DPO on parent tokens.

All losses come per example, (B,); averaging them is the caller's, who knows how many examples the whole step has.
Log-probabilities are sums over the tokens of a response, end of sequence included, in nats. Rewards carry no gradient.
"""

import torch.nn.functional as F
from torch import Tensor

from prefkd.method.logprobs import predicting_logits


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    reference_free: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """DPO (arXiv 2305.18290, eq. 7), and with label smoothing conservative DPO.

    Args:
        policy_chosen: (B,) log-probability of the chosen response under the model that learns.
        policy_rejected: (B,) the same of the rejected response.
        reference_chosen: (B,) log-probability of the chosen response under the reference.
        reference_rejected: (B,) the same of the rejected response.
        beta: Strength of the tie to the reference.
        label_smoothing: Probability that a preference label is wrong, in [0, 0.5).
        reference_free: Take the reference as uniform in the loss (not in the rewards).

    Returns:
        losses, chosen rewards, rejected rewards, each (B,).

    Raises:
        ValueError: `beta` is not positive, or `label_smoothing` is outside [0, 0.5).
    """
    log_ratio = _log_ratio(policy_chosen, policy_rejected, reference_chosen, reference_rejected, reference_free)
    return (
        _logistic_loss(log_ratio, beta, label_smoothing),
        beta * (policy_chosen - reference_chosen).detach(),
        beta * (policy_rejected - reference_rejected).detach(),
    )


def ipo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    reference_free: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """IPO (arXiv 2310.12036, eq. 17): a squared error, so that a pair can be won by too much.

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
    _require_positive(beta)
    log_ratio = _log_ratio(policy_chosen, policy_rejected, reference_chosen, reference_rejected, reference_free)
    return (
        (log_ratio - 1 / (2 * beta)) ** 2,  # (h - 1 / (2 beta))^2
        beta * (policy_chosen - reference_chosen).detach(),
        beta * (policy_rejected - reference_rejected).detach(),
    )


def tis_dpo_loss(
    chosen_margin: Tensor,
    rejected_margin: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    chosen_kl: Tensor | None = None,
    rejected_kl: Tensor | None = None,
    alpha: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """TIS-DPO (arXiv 2410.04350), on tokens or on parents (CTPD, arXiv 2601.11865).

    Args:
        chosen_margin: (B,) M = sum of w (log pi - log ref) over the chosen response, see `parent_margin`.
        rejected_margin: (B,) the same of the rejected response.
        beta: Strength of the tie to the reference.
        label_smoothing: Probability that a preference label is wrong, in [0, 0.5).
        chosen_kl: (B,) `position_kl` of the chosen response; both or neither. It needs one vocabulary on both sides.
        rejected_kl: (B,) the same of the rejected response.
        alpha: Weight of the KL difference in the loss.

    Returns:
        losses, chosen rewards, rejected rewards, each (B,). The rewards are beta M, or beta (M - KL) with KL terms.

    Raises:
        ValueError: Only one KL term is given, `beta` is not positive, or `label_smoothing` is outside [0, 0.5).
    """
    log_ratio = chosen_margin - rejected_margin
    if chosen_kl is None and rejected_kl is None:
        chosen_rewards, rejected_rewards = beta * chosen_margin, beta * rejected_margin
    elif chosen_kl is None or rejected_kl is None:
        raise ValueError("chosen_kl and rejected_kl belong together: give both or neither")
    else:
        log_ratio = log_ratio - alpha * (chosen_kl - rejected_kl)  # (M_w - M_l) - alpha (K_w - K_l)
        chosen_rewards, rejected_rewards = beta * (chosen_margin - chosen_kl), beta * (rejected_margin - rejected_kl)
    return _logistic_loss(log_ratio, beta, label_smoothing), chosen_rewards.detach(), rejected_rewards.detach()


def parent_margin(
    policy_parent_logprobs: Tensor, reference_parent_logprobs: Tensor, weights: Tensor, mask: Tensor
) -> Tensor:
    """Weighted margin of a response over parents: ``M = sum_P w_P (l_policy(P) - stop_gradient(l_reference(P)))``.

    The two sides may tokenise the text differently, since a parent is the same text on both. Tokens serve as well.

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
    policy, _, mask = predicting_logits(policy_logits, labels)
    reference, _, _ = predicting_logits(reference_logits, labels)
    log_policy, log_reference = policy.log_softmax(-1), reference.log_softmax(-1)
    difference = (log_policy - log_reference).masked_fill(log_policy == -float("inf"), 0)  # p log p = 0 at p = 0
    divergence = (log_policy.exp() * difference).sum(-1)
    if weights is not None:
        divergence = weights[mask] * divergence
    return divergence.new_zeros(labels.shape).masked_scatter(mask, divergence).sum(-1)


def _log_ratio(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    reference_free: bool,
) -> Tensor:
    """``h = (log pi(y_w) - log pi(y_l)) - (log ref(y_w) - log ref(y_l))``, the second bracket 0 if reference-free."""
    policy = policy_chosen - policy_rejected
    return policy if reference_free else policy - (reference_chosen - reference_rejected)


def _logistic_loss(log_ratio: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """``-(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)``."""
    _require_positive(beta)
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is {label_smoothing}, but must be at least 0 and below 0.5")
    losses = -(1 - label_smoothing) * F.logsigmoid(beta * log_ratio)
    return losses - label_smoothing * F.logsigmoid(-beta * log_ratio) if label_smoothing else losses


def _require_positive(beta: float) -> None:
    if not beta > 0:
        raise ValueError(f"beta is {beta}, but must be above 0, below which a loss teaches the opposite")
