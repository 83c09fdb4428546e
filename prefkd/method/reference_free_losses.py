"""Preference losses without a reference: the policy's log-probs are all that they see."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from prefkd.method.loss_needs import logistic_loss, preference_loss, require_positive, require_smoothing, with_rewards
from prefkd.method.ratio_losses import capped

Losses = tuple[Tensor, Tensor, Tensor]


@preference_loss(needs=["token_means"])
def simpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    *,
    beta: float,
    gamma_ratio: float,
    label_smoothing: float = 0.0,
    hinge: bool = False,
    alpha: float = 0.0,
) -> Losses:
    """SimPO (arXiv 2405.14734): ``-log sigmoid(beta (m_w - m_l) - gamma)``, and AlphaPO.

    Args:
        policy_chosen: (B,) mean log-prob m_w of a token of the chosen response.
        policy_rejected: (B,) the same of the rejected response.
        beta: 2 to 10 in the published recipes.
        gamma_ratio: gamma / beta, the margin by which the means should differ; 0.25 by default in the published code.
        label_smoothing: Probability that a preference label is wrong, in [0, 0.5).
        hinge: ``max(0, 1 - (beta (m_w - m_l) - gamma))`` in place of the logistic loss; it has no smoothing.
        alpha: AlphaPO: compare ``(1 - e^(-alpha m)) / alpha``; 0 is SimPO.

    Returns:
        losses, chosen rewards, rejected rewards, each (B,). The rewards are beta m.

    Raises:
        ValueError: `beta` is not positive, `label_smoothing` is outside [0, 0.5), or it stands next to `hinge`.
    """
    require_positive(beta)
    require_smoothing(label_smoothing)
    if hinge and label_smoothing:
        raise ValueError("hinge has no label_smoothing; remove one of the two")
    difference = _alpha_reward(policy_chosen, alpha) - _alpha_reward(policy_rejected, alpha) - gamma_ratio
    losses = torch.relu(1 - beta * difference) if hinge else logistic_loss(difference, beta, label_smoothing)
    return with_rewards(losses, policy_chosen, policy_rejected, beta)


@preference_loss(needs=["token_means"])
def orpo_loss(policy_chosen: Tensor, policy_rejected: Tensor, *, weight: float = 1.0) -> Losses:
    """The odds-ratio part of ORPO (arXiv 2403.07691): ``log(1 + e^-o)``, o = log odds(y_w) - log odds(y_l).

    The other part is the cross-entropy of the chosen response.

    Args:
        policy_chosen: (B,) mean log-prob m of a token of the chosen response; above -1e-6, where the odds are
            infinite, it counts as -1e-6.
        policy_rejected: (B,) the same of the rejected response.
        weight: The lambda of the paper, next to a cross-entropy of weight 1: 0.1 there.

    Returns:
        losses, chosen rewards, rejected rewards, each (B,). The rewards are m.

    Raises:
        ValueError: `weight` is not positive.
    """
    require_positive(weight, "weight")
    log_odds_ratio = _log_odds(policy_chosen) - _log_odds(policy_rejected)
    return with_rewards(-weight * F.logsigmoid(log_odds_ratio), policy_chosen, policy_rejected, 1.0)


@preference_loss()
def cpo_loss(policy_chosen: Tensor, policy_rejected: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Losses:
    """The preference part of CPO (arXiv 2401.08417): ``-log sigmoid(beta (log pi(y_w) - log pi(y_l)))``, of sums.

    The other part is the cross-entropy of the chosen response.

    Returns:
        losses, chosen rewards, rejected rewards, each (B,). The rewards are beta log pi.
    """
    losses = logistic_loss(policy_chosen - policy_rejected, beta, label_smoothing)
    return with_rewards(losses, policy_chosen, policy_rejected, beta)


def _alpha_reward(mean: Tensor, alpha: float) -> Tensor:
    """``(1 - e^(-alpha m)) / alpha``, m itself for alpha 0."""
    return -torch.expm1(capped(-alpha * mean)) / alpha if alpha else mean


def _log_odds(mean: Tensor) -> Tensor:
    """``m - log(1 - e^m)``."""
    mean = mean.clamp(max=-1e-6)
    near = mean > -math.log(2)
    # Each branch is given only what it is accurate for, so that neither spoils the gradient of the other.
    log_rest = torch.where(
        near,
        torch.log(-torch.expm1(mean.where(near, -1.0))),
        torch.log1p(-torch.exp(mean.where(~near, -1.0))),
    )
    return mean - log_rest
