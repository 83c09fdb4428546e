"""Preference losses that see the log-ratios of both answers, ``a = log pi(y_w) - log ref(y_w)`` and b alike, apart.

They say how likely each answer should be, so that they need a reference that is near the policy: its own start, or a
teacher whose offset is taken out (`centred`). The first four arguments of each, what is returned and the errors are
those of `dpo_loss`.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from prefkd.method.loss_needs import logistic_loss, preference_loss, require_positive, with_rewards
from prefkd.method.ratio_losses import capped

Losses = tuple[Tensor, Tensor, Tensor]


@preference_loss(needs=["reference", "apart"])
def nca_loss(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, *, beta: float
) -> Losses:
    """NCA for pairs (arXiv 2402.05369): ``-log s(beta a) - 1/2 log s(-beta a) - 1/2 log s(-beta b)``, s = sigmoid."""
    require_positive(beta)
    a, b = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    losses = -F.logsigmoid(beta * a) - 0.5 * F.logsigmoid(-beta * a) - 0.5 * F.logsigmoid(-beta * b)
    return with_rewards(losses, a, b, beta)


@preference_loss(needs=["reference", "apart", "delta"])
def bco_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    delta: Tensor | float,
) -> Losses:
    """BCO for pairs (arXiv 2404.04656): ``-log sigmoid(beta a - delta) - log sigmoid(-(beta b - delta))``.

    Args:
        delta: Running mean over optimizer steps, this step included, of the mean of all rewards beta a and beta b of
            the step (`running_mean`); a constant.
    """
    require_positive(beta)
    delta = delta.detach() if isinstance(delta, Tensor) else delta
    a, b = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    return with_rewards(-F.logsigmoid(beta * a - delta) - F.logsigmoid(delta - beta * b), a, b, beta)


@preference_loss(needs=["reference", "apart"])
def sppo_loss(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, *, beta: float
) -> Losses:
    """SPPO with hard labels (arXiv 2405.00675, eq. 4.7): ``(a - 1/(2 beta))^2 + (b + 1/(2 beta))^2``."""
    require_positive(beta)
    a, b = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    return with_rewards((a - 1 / (2 * beta)) ** 2 + (b + 1 / (2 * beta)) ** 2, a, b, beta)


@preference_loss(needs=["reference", "apart"])
def apo_zero_loss(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, *, beta: float
) -> Losses:
    """APO-zero (arXiv 2408.06266, eq. 7): ``sigmoid(-beta a) + sigmoid(beta b)``; chosen up, rejected down."""
    require_positive(beta)
    a, b = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    return with_rewards(torch.sigmoid(-beta * a) + torch.sigmoid(beta * b), a, b, beta)


@preference_loss(needs=["reference", "apart"])
def apo_down_loss(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, *, beta: float
) -> Losses:
    """APO-down (arXiv 2408.06266, eq. 8): ``sigmoid(beta a) + sigmoid(-beta h)``; both down, rejected further."""
    require_positive(beta)
    a, b = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    return with_rewards(torch.sigmoid(beta * a) + torch.sigmoid(-beta * (a - b)), a, b, beta)


@preference_loss(needs=["reference", "apart"])
def dpop_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    penalty: float = 50.0,
) -> Losses:
    """DPO-positive (arXiv 2402.13228): ``-log sigmoid(beta (h - penalty max(0, -a)))``.

    Args:
        penalty: For each nat by which the chosen answer has become less likely than under the reference; at least 0.
    """
    if penalty < 0:
        raise ValueError(f"penalty is {penalty}, but must be at least 0")
    a, b = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    return with_rewards(logistic_loss(a - b - penalty * torch.relu(-a), beta), a, b, beta)


@preference_loss(needs=["reference", "apart"])
def f_divergence_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"],
    alpha: float = 0.5,
) -> Losses:
    """f-DPO (arXiv 2309.16240): ``-log sigmoid(beta (f'(e^a) - f'(e^b)))``.

    Args:
        divergence: `reverse_kl` is DPO. Exponents of the others are capped where their exponential would overflow.
        alpha: Parameter of the alpha-divergence: 1 is the reverse KL, 0 the forward KL.

    Raises:
        ValueError: `divergence` is none of these.
    """
    a, b = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    return with_rewards(
        logistic_loss(_f_score(a, divergence, alpha) - _f_score(b, divergence, alpha), beta), a, b, beta
    )


def _f_score(log_ratio: Tensor, divergence: str, alpha: float) -> Tensor:
    """``f'(e^u)`` of a log-ratio u."""
    if divergence == "reverse_kl" or (divergence == "alpha" and alpha == 1):
        return log_ratio
    if divergence == "forward_kl":
        return -torch.expm1(capped(-log_ratio))  # 1 - e^-u
    if divergence == "js":
        return math.log(2) + F.logsigmoid(log_ratio)
    if divergence == "alpha":
        return torch.expm1(capped((alpha - 1) * log_ratio)) / (alpha - 1)  # (e^((alpha - 1) u) - 1) / (alpha - 1)
    raise ValueError(f"divergence is {divergence!r}, but must be reverse_kl, forward_kl, js or alpha")
