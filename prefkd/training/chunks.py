"""Losses whose logits are larger than anything else: a chunk of targets at a time, made once more for backward."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from prefkd.models.logprob_model import TokenStates


def in_chunks(loss: Callable[..., Tensor], student: TokenStates, *others: TokenStates) -> Tensor:
    """(..., M) values of a comparison target by target; `loss` gives (..., n) for a chunk of n targets."""
    size = student.chunk_size
    starts = range(0, max(len(student.targets), 1), size)
    states = (student, *others)
    return torch.cat([recomputed(loss, *(part.part(start, start + size) for part in states)) for start in starts], -1)


def recomputed(loss: Callable[..., Tensor], *states: TokenStates) -> Tensor:
    """A loss whose logits are not kept for backward, which makes them once more."""
    value = checkpoint(loss, *states, use_reentrant=False, preserve_rng_state=False)
    assert isinstance(value, Tensor)
    return value
