"""How a preference loss says what it is called with, and the few lines that several losses share."""

from collections.abc import Callable, Collection
from typing import Any, Literal, TypeVar

import torch.nn.functional as F
from torch import Tensor

Need = Literal["reference", "margins", "apart", "means", "token_means", "lengths", "delta", "offset", "batch"]
Function = TypeVar("Function", bound=Callable[..., Any])


def preference_loss(*, needs: Collection[Need] = ()) -> Callable[[Function], Function]:
    """Mark a function as a preference loss; its callers read the attribute `needs`.

    Args:
        needs: Any of
            `reference`: after the policy's log-probs it takes those of the reference;
            `margins`: it takes the two weighted margins, M_w and M_l, in place of log-probs;
            `apart`: it sees the log-ratio of each answer, not only their difference, so that a reference that is far
            off for both answers alike changes what is learned;
            `means`: it compares means over a unit that both models count alike; sums would let long answers decide;
            `token_means`: it takes means over the policy's own tokens;
            `lengths`: it takes `chosen_length` and `rejected_length`, (B,) each;
            `delta`: it takes `delta`, the running mean of the rewards;
            `offset`: it takes `offset`, (B,), by how much the better answer must win;
            `batch`: the loss of a pair depends on the other pairs of the optimizer step.
    """

    def mark(function: Function) -> Function:
        function.needs = frozenset(needs)  # pyright: ignore[reportFunctionMemberAccess]
        return function

    return mark


def log_ratio(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    reference_free: bool = False,
) -> Tensor:
    """``h = (log pi(y_w) - log pi(y_l)) - (log ref(y_w) - log ref(y_l))``, the second bracket 0 if reference-free."""
    policy = policy_chosen - policy_rejected
    return policy if reference_free else policy - (reference_chosen - reference_rejected)


def with_rewards(losses: Tensor, chosen: Tensor, rejected: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """The losses, and the rewards beta a and beta b of log-ratios a and b."""
    return losses, (beta * chosen).detach(), (beta * rejected).detach()


def logistic_loss(log_ratio: Tensor, beta: float, label_smoothing: float = 0.0, offset: Tensor | float = 0.0) -> Tensor:
    """``-(1 - e) log sigmoid(z) - e log sigmoid(-z)``, ``z = beta h - m``; with an offset m, ODPO (arXiv 2402.10571).

    Args:
        log_ratio: (B,) h.
        offset: (B,) m, by how much the reward of the better answer must be above that of the other.
    """
    require_positive(beta)
    require_smoothing(label_smoothing)
    z = beta * log_ratio - offset  # beta h - m
    losses = -(1 - label_smoothing) * F.logsigmoid(z)
    return losses - label_smoothing * F.logsigmoid(-z) if label_smoothing else losses


def require_positive(value: float, name: str = "beta") -> None:
    if not value > 0:
        why = ", below which a loss teaches the opposite" if name == "beta" else ""
        raise ValueError(f"{name} is {value}, but must be above 0{why}")


def require_smoothing(label_smoothing: float, *, above: bool = False) -> None:
    if not 0 <= label_smoothing < 0.5 or (above and label_smoothing == 0):
        lowest = "above 0" if above else "at least 0"
        raise ValueError(f"label_smoothing is {label_smoothing}, but must be {lowest} and below 0.5")
