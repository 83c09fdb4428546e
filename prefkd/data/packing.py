"""Packing: the tokens of a batch in one row without padding, and which of them each token attends to.

A row of prompt, chosen and rejected answer is three segments of queries. The prompt sees itself, an answer sees the
prompt and itself; in each case causally, counted from the last key backwards. A row of prompt and one answer is a
single segment that sees itself. Several readings of the same pairs are packed together: what their prompts begin with
is there once, and each reading sees it.
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


def pack_together(
    rows: Sequence[Sequence[Sequence[int]]],
    prompts: Sequence[Sequence[Sequence[int]]],
    widths: Sequence[int],
    predictors: Sequence[Tensor],
) -> Packing:
    """Pack several readings of the same pairs. Each is a padded batch with rows [prompt, chosen, rejected].

    A pair becomes [start that its prompts have in common], and for each reading [rest of its prompt, chosen, rejected].

    Args:
        rows: Reading -> pair -> the tokens of its prompt and of its answers.
        prompts: Reading -> pair -> the token ids of its prompt.
        widths: Reading -> positions of a padded row.
        predictors: Reading -> (N,) index into the positions of its padded batch.

    Returns:
        A packing whose `places` are in the positions of all padded batches, one behind the other, and whose
        `predictors` are those of the first reading, then those of the second.
    """
    firsts = [0, *accumulate(len(sizes) * width for sizes, width in zip(rows, widths, strict=True))]
    places: list[range] = []
    segments: list[tuple[int, list[range]]] = []
    packed = torch.zeros(firsts[-1], dtype=torch.long)  # where each position went
    end = 0
    for pair in range(len(rows[0])):
        common = _common_start([ids[pair] for ids in prompts])
        shared = range(end, end + common)
        segments.append((common, [shared]))
        places.append(range(firsts[0] + pair * widths[0], firsts[0] + pair * widths[0] + common))
        end += common
        for first, width, sizes in zip(firsts, widths, rows, strict=False):
            start = first + pair * width
            rest, *answers = sizes[pair][0] - common, *sizes[pair][1:]
            prompt = [shared, range(end, end + rest)]
            segments.append((rest, prompt))
            packed[start : start + common] = torch.arange(shared.start, shared.stop)
            places.append(range(start + common, start + sum(sizes[pair])))
            packed[start + common : start + sum(sizes[pair])] = torch.arange(end, end + rest + sum(answers))
            end += rest
            for size in answers:
                segments.append((size, [*prompt, range(end, end + size)]))
                end += size
    segments = [(size, ranges) for size, ranges in segments if size]  # prompts may have nothing or all in common
    queries, seen = [size for size, _ in segments], [sum(map(len, ranges)) for _, ranges in segments]
    return Packing(
        places=_indices(places),
        predictors=packed[torch.cat([own + first for own, first in zip(predictors, firsts, strict=False)])],
        query_starts=_starts(queries),
        key_starts=_starts(seen),
        keys=_indices(part for _, ranges in segments for part in ranges),
        longest_query=max(queries),
        longest_keys=max(seen),
    )


def _common_start(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with."""
    places = zip(*prompts, strict=False)
    return next((i for i, tokens in enumerate(places) if len(set(tokens)) > 1), min(map(len, prompts)))


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
