"""Preference losses that see the log-ratio of a pair alone: ``h = a - b``, ``a = log pi(y_w) - log ref(y_w)``, b alike.

A reference that is off by a constant for both answers changes none of them, so that the reference may be a model with
another tokenizer. The first four arguments of each, what is returned and the errors are those of `dpo_loss`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from prefkd.method.loss_needs import (
    log_ratio,
    logistic_loss,
    preference_loss,
    require_positive,
    require_smoothing,
    with_rewards,
)

Losses = tuple[Tensor, Tensor, Tensor]


@preference_loss(needs=["reference"])
def hinge_loss(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, *, beta: float
) -> Losses:
    """SLiC's hinge in the form of RSO (arXiv 2305.10425, 2309.06657): ``max(0, 1 - beta h)``."""
    require_positive(beta)
    h = log_ratio(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return with_rewards(
        torch.relu(1 - beta * h), policy_chosen - reference_chosen, policy_rejected - reference_rejected, beta
    )


@preference_loss(needs=["reference"])
def robust_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.1,
) -> Losses:
    """Robust DPO (arXiv 2403.00409), unbiased under flipped labels; it has no lower bound.

    ``[-(1 - e) log sigmoid(beta h) + e log sigmoid(-beta h)] / (1 - 2e)``

    Args:
        label_smoothing: Probability e that a preference label is wrong, in [0, 0.5).
    """
    require_positive(beta)
    require_smoothing(label_smoothing)
    x = beta * log_ratio(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    losses = (label_smoothing * F.logsigmoid(-x) - (1 - label_smoothing) * F.logsigmoid(x)) / (1 - 2 * label_smoothing)
    return with_rewards(losses, policy_chosen - reference_chosen, policy_rejected - reference_rejected, beta)


@preference_loss(needs=["reference"])
def exo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float = 1e-3,
) -> Losses:
    """EXO for pairs (arXiv 2402.00856, eq. 16): KL(Bernoulli(q) || Bernoulli(1 - e)), q = sigmoid(beta h).

    A pair that is lost by far teaches nothing.

    Args:
        label_smoothing: The e, above 0 and below 0.5.
    """
    require_positive(beta)
    require_smoothing(label_smoothing, above=True)
    x = beta * log_ratio(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    # q (log q - log(1 - e)) + (1 - q) (log(1 - q) - log e)
    won = torch.sigmoid(x) * (F.logsigmoid(x) - math.log1p(-label_smoothing))
    lost = torch.sigmoid(-x) * (F.logsigmoid(-x) - math.log(label_smoothing))
    return with_rewards(won + lost, policy_chosen - reference_chosen, policy_rejected - reference_rejected, beta)


@preference_loss(needs=["reference"])
def discopop_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    tau: float = 0.05,
) -> Losses:
    """DiscoPOP (arXiv 2406.08414, eq. 5): ``(1 - w) log(1 + e^-x) + w e^-x``, x = beta h, w = sigmoid(x / tau).

    Near h = 0 its gradient points the wrong way, as published.

    Args:
        tau: Temperature of the blend of the two parts.
    """
    require_positive(beta)
    require_positive(tau, "tau")
    x = beta * log_ratio(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    exponential = torch.exp(capped(F.logsigmoid(x / tau) - x))  # w e^-x in one, since e^-x alone overflows
    losses = torch.sigmoid(-x / tau) * F.softplus(-x) + exponential
    return with_rewards(losses, policy_chosen - reference_chosen, policy_rejected - reference_rejected, beta)


@preference_loss(needs=["reference", "lengths"])
def sigmoid_norm_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    chosen_length: Tensor,
    rejected_length: Tensor,
) -> Losses:
    """Length-normalised DPO (Tulu 3, arXiv 2411.15124): ``-log sigmoid(beta (a / n_w - b / n_l))``.

    Args:
        beta: As a length divides, beta is larger than that of DPO: 5 in the paper.
        chosen_length: (B,) length n_w of the chosen answer, in a unit that is the same for policy and reference:
            tokens of one tokenizer, parents of two.
        rejected_length: (B,) length n_l of the rejected answer.
    """
    a, b = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    return with_rewards(logistic_loss(a / chosen_length - b / rejected_length, beta), a, b, beta)


@preference_loss(needs=["reference", "batch"])
def aot_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Losses:
    """AOT for pairs (arXiv 2406.05882): the policy's differences of a batch dominate the reference's, rank by rank.

    Both lists of differences are sorted apart; the i-th pair loses by its rank. B is the whole optimizer step: with one
    pair a batch this is DPO.
    """
    a, b = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    policy, reference = policy_chosen - policy_rejected, reference_chosen - reference_rejected
    return with_rewards(logistic_loss(policy - _of_equal_rank(reference, policy), beta, label_smoothing), a, b, beta)


@preference_loss(needs=["reference", "batch", "apart"])
def aot_unpaired_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Losses:
    """AOT without pairs (arXiv 2406.05882): log-ratios of chosen answers dominate those of rejected ones, rank by rank.

    The i-th loss is that of the rank of the i-th chosen answer. B is the whole optimizer step.
    """
    a, b = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    return with_rewards(logistic_loss(a - _of_equal_rank(b, a), beta, label_smoothing), a, b, beta)


def capped(exponent: Tensor) -> Tensor:
    """An exponent whose exponential, and sums of a few of them, are finite; above there is no gradient."""
    return exponent.clamp(max=700.0 if exponent.dtype == torch.float64 else 80.0)


def _of_equal_rank(values: Tensor, ranked: Tensor) -> Tensor:
    """(B,) for each item of `ranked` the item of `values` that has its rank."""
    ranks = ranked.detach().argsort().argsort()
    return values.sort().values[ranks]
