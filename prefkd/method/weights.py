"""Importance weights of tokens or parents, and the transforms that the published TIS-DPO code uses instead.

The scores that go in are contrastive log-ratios d = log pi+ - log pi-, of one token or summed over one parent.
"""

import difflib
import inspect
import random
from collections.abc import Sequence

import torch
from torch import Tensor


def importance_weights(
    log_ratio: Tensor | Sequence[float],
    sign: float | Tensor,
    *,
    k: float = 1.0,
    low: float = -0.5,
    high: float = 1.5,
) -> Tensor:
    """TIS-DPO (arXiv 2410.04350): ``w = k exp(sign * clamp(d, low, high))``.

    Args:
        log_ratio: d = log pi+ - log pi-, any shape.
        sign: +1 for the chosen answer, -1 for the rejected one; a number, or a tensor that broadcasts.
        k: Scale of all weights.
        low: Lower bound of d, applied before the sign.
        high: Upper bound of d, applied before the sign.

    Returns:
        Weights in the shape of `log_ratio`, constants without gradient.

    Raises:
        ValueError: `low` is above `high`, or a number `sign` is neither 1 nor -1.
    """
    _check_order("low", low, "high", high)
    if not isinstance(sign, Tensor) and sign not in (1, -1):
        raise ValueError(f"sign is {sign}, but must be 1 (chosen) or -1 (rejected)")
    return k * torch.exp(sign * _constant(log_ratio).clamp(low, high))  # w = k exp(mu clamp(d, L, U))


def transform_scores(scores: Tensor | Sequence[float], method: str, **params: float) -> Tensor:
    """Weights of one response by a transform of the published TIS-DPO code. None of them exponentiates.

    =====================  ============================================================================================
    origin                 the score itself
    binary                 1 for the `top_percent` (100) highest scores, else 0; equal scores share their last rank
    threshold              clamp to [`lower_threshold`, `upper_threshold`] (-1, 1)
    threshold_and_scale    clamp to [`min_val`, `max_val`] (-1.5, 1.5), onto [`min_scale`, `max_scale`] (0.7, 1.3)
    random                 uniform in [`min_val`, `max_val`] (0.7, 1.3); `seed`, or else Python's global generator
    rank_based             ranks spread evenly over [`min_scale`, `max_scale`] (0.7, 1.3), lowest score first
    =====================  ============================================================================================

    Args:
        scores: (n,) scores of one response, higher = better for the answer it stands in: d on the chosen answer, -d on
            the rejected one.
        method: One of the names above.
        **params: The parameters above, defaults in brackets.

    Returns:
        (n,) constants without gradient, in the precision of `scores` (float64 for a list).

    Raises:
        ValueError: Unknown method or parameter (the nearest known one is named), bounds in the wrong order, or scores
            that are not one row.
    """
    if method not in TRANSFORMS:
        raise ValueError(f"unknown transform {method!r}; did you mean {_nearest(method, TRANSFORMS)!r}?")
    transform = TRANSFORMS[method]
    known = list(inspect.signature(transform).parameters)[1:]
    for name in params:
        if name not in known:
            advice = f"did you mean {_nearest(name, known)!r}?" if known else "it takes none"
            raise ValueError(f"transform {method!r} has no parameter {name!r}; {advice}")
    values = _constant(scores)
    if values.dim() != 1:
        raise ValueError(f"scores have shape {tuple(values.shape)}, but must be the one row of one response")
    return transform(values, **params)


def _origin(scores: Tensor) -> Tensor:
    return scores.clone()


def _binary(scores: Tensor, top_percent: float = 100) -> Tensor:
    kept = int(len(scores) * top_percent / 100)
    at_least_as_high = len(scores) - torch.searchsorted(scores.sort().values, scores)
    return (at_least_as_high <= kept).to(scores.dtype)


def _threshold(scores: Tensor, upper_threshold: float = 1.0, lower_threshold: float = -1.0) -> Tensor:
    _check_order("lower_threshold", lower_threshold, "upper_threshold", upper_threshold)
    return scores.clamp(lower_threshold, upper_threshold)


def _threshold_and_scale(
    scores: Tensor, min_val: float = -1.5, max_val: float = 1.5, min_scale: float = 0.7, max_scale: float = 1.3
) -> Tensor:
    _check_order("min_val", min_val, "max_val", max_val, strictly=True)
    share = (scores.clamp(min_val, max_val) - min_val) / (max_val - min_val)
    return min_scale + share * (max_scale - min_scale)


def _random(scores: Tensor, min_val: float = 0.7, max_val: float = 1.3, seed: int | None = None) -> Tensor:
    # Python's generator, because the published code draws from it: the same seed gives the same weights.
    uniform = random.uniform if seed is None else random.Random(seed).uniform
    return torch.tensor([uniform(min_val, max_val) for _ in scores], dtype=scores.dtype, device=scores.device)


def _rank_based(scores: Tensor, min_scale: float = 0.7, max_scale: float = 1.3) -> Tensor:
    if len(scores) == 1:
        return torch.ones_like(scores)
    weights = torch.empty_like(scores)
    ascending = scores.argsort(stable=True)  # equal scores keep their order
    ranks = torch.arange(len(scores), dtype=scores.dtype, device=scores.device)
    weights[ascending] = min_scale + ranks / max(len(scores) - 1, 1) * (max_scale - min_scale)
    return weights


TRANSFORMS = {
    "origin": _origin,
    "binary": _binary,
    "threshold": _threshold,
    "threshold_and_scale": _threshold_and_scale,
    "random": _random,
    "rank_based": _rank_based,
}


def _constant(values: Tensor | Sequence[float]) -> Tensor:
    """Floating-point values without gradient; float64 for numbers that come in no tensor."""
    tensor = values.detach() if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.float64)
    return tensor if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())


def _nearest(name: str, known: Sequence[str] | dict) -> str:
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


def _check_order(low_name: str, low: float, high_name: str, high: float, strictly: bool = False) -> None:
    if low > high or (strictly and low == high):
        raise ValueError(f"{low_name} is {low}, but must be below {high_name}, which is {high}")
