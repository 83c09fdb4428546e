"""Passes over logits, a stripe of the vocabulary at a time, for `prefkd.method.logprobs.linear_token_logprobs`.

They are written twice. `EAGER` works in the memory of the logits, operation by operation, which suits a CPU. `FUSED`
says the same without saying where, for torch to compile: on a GPU every operation over logits is a way through its
memory, and one kernel reads them once for a maximum and once more for a sum.

N targets, W tokens of the stripe. The logits are ``z = c tanh(s x / c)`` of what a product gives, x (N, W); `columns`
(N,) are the targets, counted from the start of the stripe, so that most lie outside of it.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor


class Running(NamedTuple):
    """What is known of a softmax after some stripes, (N,) each.

    target_logits: z[y], 0 until its stripe has come.
    peaks: The largest z.
    others: Sum of ``exp(z - peak)`` without the target, so that 1 - p[y] is exact for confident tokens too.
    """

    target_logits: Tensor
    peaks: Tensor
    others: Tensor


class Passes(NamedTuple):
    """The passes over a stripe.

    fold: From x, columns, `Running`, s, c, and the type of the exponentials (None if they are not wanted): the
        exponentials ``exp(z - peak)`` with 0 at the target, times the slopes of c tanh, (N, W); ``exp(old peak -
        peak)``, by which earlier sums are to be multiplied; and `Running` with this stripe.
    differences: From x, columns, the last `Running`, s, c and a type: ``exp(z - peak)`` with ``-others`` at the target,
        times the slopes, (N, W).
    fused: Whether exponentials lie apart from the logits, and products in half precision are added to float32 sums as
        they are computed.
    """

    fold: Callable[..., tuple[Tensor, Tensor, Running]]
    differences: Callable[..., Tensor]
    fused: bool = False


def _fold(
    logits: Tensor, columns: Tensor, running: Running, scale: float, cap: float | None, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Running]:
    slopes = _bound(logits, scale, cap)
    target_logits = running.target_logits + _at_targets(logits, columns)
    peaks = torch.maximum(running.peaks, logits.amax(-1))
    exponentials = set_targets(_exponentials(logits, peaks), columns, torch.zeros_like(peaks))
    rescale = (running.peaks - peaks).exp()
    others = (running.others * rescale).add_(exponentials.sum(-1))
    sloped = exponentials if slopes is None or dtype is None else exponentials.mul_(slopes)
    return sloped, rescale, Running(target_logits, peaks, others)


def _differences(
    logits: Tensor, columns: Tensor, running: Running, scale: float, cap: float | None, dtype: torch.dtype
) -> Tensor:
    slopes = _bound(logits, scale, cap)
    found = set_targets(_exponentials(logits, running.peaks), columns, -running.others)
    return found if slopes is None else found.mul_(slopes)


def _fused_fold(
    logits: Tensor, columns: Tensor, running: Running, scale: float, cap: float | None, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Running]:
    logits, slopes = _bounded(logits, scale, cap)
    is_target = columns.unsqueeze(-1) == torch.arange(logits.shape[1], device=logits.device)
    target_logits = running.target_logits + logits.where(is_target, 0).sum(-1)
    peaks = torch.maximum(running.peaks, logits.amax(-1))
    exponentials = (logits - peaks.unsqueeze(-1)).exp().where(~is_target, 0)
    rescale = (running.peaks - peaks).exp()
    others = running.others * rescale + exponentials.sum(-1)
    sloped = exponentials if slopes is None else exponentials * slopes
    return peaks if dtype is None else sloped.to(dtype), rescale, Running(target_logits, peaks, others)


def _fused_differences(
    logits: Tensor, columns: Tensor, running: Running, scale: float, cap: float | None, dtype: torch.dtype
) -> Tensor:
    logits, slopes = _bounded(logits, scale, cap)
    is_target = columns.unsqueeze(-1) == torch.arange(logits.shape[1], device=logits.device)
    exponentials = (logits - running.peaks.unsqueeze(-1)).exp()
    found = torch.where(is_target, -running.others.unsqueeze(-1), exponentials)
    return (found if slopes is None else found * slopes).to(dtype)


EAGER = Passes(_fold, _differences)
FUSED = Passes(_fused_fold, _fused_differences, fused=True)


@cache
def compiled_passes(backend: str = "inductor") -> Passes:
    """`FUSED` as torch compiles it when it is called next, for all lengths at one time."""
    fold = torch.compile(FUSED.fold, dynamic=True, backend=backend)
    return Passes(fold, torch.compile(FUSED.differences, dynamic=True, backend=backend), fused=True)


def set_targets(values: Tensor, columns: Tensor, new: Tensor) -> Tensor:
    """`values` with `new` at each row's column, in place; rows whose column lies outside stay."""
    inside = (columns >= 0) & (columns < values.shape[1])
    column = columns.clamp(0, values.shape[1] - 1).unsqueeze(-1)
    kept = values.gather(-1, column)
    return values.scatter_(-1, column, new.to(values.dtype).unsqueeze(-1).where(inside.unsqueeze(-1), kept))


def _bounded(logits: Tensor, scale: float, cap: float | None) -> tuple[Tensor, Tensor | None]:
    """``c tanh(s x / c)``, and the slopes ``1 - tanh²``, which are all 1 without a cap."""
    logits = logits * scale if scale != 1 else logits
    if cap is None:
        return logits, None
    bent = (logits / cap).tanh()
    return cap * bent, 1 - bent.square()


def _bound(logits: Tensor, scale: float, cap: float | None) -> Tensor | None:
    """The same in place; returns the slopes."""
    if scale != 1:
        logits.mul_(scale)
    if cap is None:
        return None
    logits.div_(cap).tanh_()
    slopes = logits.square().neg_().add_(1)
    logits.mul_(cap)
    return slopes


def _exponentials(logits: Tensor, peaks: Tensor) -> Tensor:
    """``exp(z - peak)``, in place; as a power of 2, which a CPU computes in less than half the time."""
    return logits.sub_(peaks.unsqueeze(-1)).mul_(math.log2(math.e)).exp2_()


def _at_targets(values: Tensor, columns: Tensor) -> Tensor:
    """(N,) value of each row at its column, 0 where that lies outside."""
    found = values.gather(-1, columns.clamp(0, values.shape[1] - 1).unsqueeze(-1)).squeeze(-1)
    return found.where((columns >= 0) & (columns < values.shape[1]), 0)
