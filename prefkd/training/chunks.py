"""Losses whose logits are larger than anything else: a chunk of targets at a time, made once more for backward."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from prefkd.models.logprob_model import TokenStates


def in_chunks(loss: Callable[..., Tensor], student: TokenStates, *others: TokenStates) -> Tensor:
    """A loss, or a tensor of sums, that compares target i with target i, of an answer: the sum over chunks of them."""
    length = min(len(states.targets) for states in (student, *others))
    ends = [min(start + student.chunk_size, length) for start in range(0, max(length, 1), student.chunk_size)]
    starts = [0, *ends[:-1]]
    chunks = [
        recomputed(loss, *(states.part(start, end) for states in (student, *others)))
        for start, end in zip(starts, ends, strict=True)
    ]
    return torch.stack(chunks).sum(0)


def recomputed(loss: Callable[..., Tensor], *states: TokenStates) -> Tensor:
    """A loss whose logits are not kept for backward, which makes them once more."""
    value = checkpoint(loss, *states, use_reentrant=False, preserve_rng_state=False)
    assert isinstance(value, Tensor)
    return value
