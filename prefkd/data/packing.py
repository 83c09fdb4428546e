"""Packing: the tokens of a batch in one row without padding, and which of them each token attends to.

A row of prompt, chosen and rejected answer is three segments of queries. The prompt sees itself, an answer sees the
prompt and itself; in each case causally, counted from the last key backwards. A row of prompt and one answer is a
single segment that sees itself.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, is_dataclass, replace
from itertools import accumulate
from typing import Any, Self

import torch
from torch import Tensor


class Movable:
    """A dataclass with tensors in it, however deep."""

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Self:
        """The same batch with all its tensors on `device`."""
        return with_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same batch in memory from which a GPU copies without blocking."""
        return with_tensors(self, Tensor.pin_memory)


def with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy of a value with its tensors changed: those of a dataclass, of a dictionary, and of what lies in them."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: with_tensors(part, change) for key, part in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{name: with_tensors(part, change) for name, part in vars(value).items()})
    return value


@dataclass(frozen=True)
class Packing(Movable):
    """How the rows of a batch lie in one row: T tokens, G segments of queries, K keys.

    Attributes:
        places: (T,) index into the positions of the padded batch: its tokens, row by row.
        predictors: (N,) index into the T tokens: the token whose hidden state predicts the target.
        query_starts: (G + 1,) int32, the first query of each segment, and T.
        key_starts: (G + 1,) int32, the first key of each segment, and K.
        keys: (K,) index into the T tokens: what each segment sees. None where it sees itself alone, and K = T.
        longest_query, longest_keys: Queries and keys of the segments that have most of them.
    """

    places: Tensor
    predictors: Tensor
    query_starts: Tensor
    key_starts: Tensor
    keys: Tensor | None
    longest_query: int
    longest_keys: int


def pack(rows: Sequence[Sequence[int]], width: int, predictors: Tensor) -> Packing:
    """Pack the rows of a padded batch.

    Args:
        rows: The tokens of each row: of its prompt, and of the one or two answers behind it.
        width: Positions of a padded row.
        predictors: (N,) index into the positions of the padded batch.
    """
    sizes = [sum(row) for row in rows]
    starts = [0, *accumulate(sizes)]
    segments = [segment for start, row in zip(starts, rows, strict=False) for segment in _segments(start, row)]
    queries = [size for size, _ in segments]
    seen = [sum(map(len, ranges)) for _, ranges in segments]
    shares_keys = any(len(ranges) > 1 for _, ranges in segments)
    shift = torch.tensor([start - i * width for i, start in enumerate(starts[:-1])])
    return Packing(
        places=_indices(range(i * width, i * width + size) for i, size in enumerate(sizes)),
        predictors=predictors + shift[predictors // width],
        query_starts=_starts(queries),
        key_starts=_starts(seen),
        keys=_indices(part for _, ranges in segments for part in ranges) if shares_keys else None,
        longest_query=max(queries),
        longest_keys=max(seen),
    )


def _segments(start: int, row: Sequence[int]) -> list[tuple[int, list[range]]]:
    """The queries of each segment of a row that begins at `start`, and the ranges of tokens that they see."""
    prompt, *answers = row
    if len(answers) == 1:
        return [(sum(row), [range(start, start + sum(row))])]
    shared = range(start, start + prompt)
    firsts = accumulate(answers, initial=shared.stop)
    own = [(size, [shared, range(first, first + size)]) for first, size in zip(firsts, answers, strict=False)]
    return [(prompt, [shared]), *own]


def _indices(ranges: Iterable[range]) -> Tensor:
    return torch.cat([torch.arange(part.start, part.stop) for part in ranges])


def _starts(counts: Sequence[int]) -> Tensor:
    return torch.tensor([0, *accumulate(counts)], dtype=torch.int32)
