"""Where student and teacher predict what follows the same text, found before a batch goes to a device.

That is where a parent is one token on each side; with one vocabulary, it is every target of an answer that both read as
the same tokens. How many places there are depends on values, for which a host would wait for its GPU.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from prefkd.data.packing import Movable
from prefkd.method.shared_tokens import one_token_parents


class Targets(Protocol):
    """The targets of some answers as a model reads them, N of them."""

    @property
    def targets(self) -> Tensor: ...

    @property
    def parents(self) -> Tensor: ...

    @property
    def lengths(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Places(Movable):
    """The places of all answers, M of them.

    Attributes:
        student, teacher: (M,) index into the targets of each.
        lengths: Places of each answer, in whose order they stand.
        are_same: Whether both read all answers as the same tokens.
    """

    student: Tensor
    teacher: Tensor
    lengths: tuple[int, ...]
    are_same: bool

    def of_answers(self, first: int, last: int) -> "Places":
        """Those of the answers first, ..., last - 1."""
        which = slice(sum(self.lengths[:first]), sum(self.lengths[:last]))
        return Places(self.student[which], self.teacher[which], self.lengths[first:last], self.are_same)


def find_places(student: Targets, teacher: Targets, *, one_vocabulary: bool) -> Places:
    """The places of some answers.

    Args:
        one_vocabulary: Whether both models have the same tokens.
    """
    found, same = [], []
    for answer in zip(_answers(student), _answers(teacher), strict=True):
        (start, own, own_parents), (other_start, other, other_parents) = answer
        same.append(torch.equal(own, other))
        if one_vocabulary and same[-1]:
            places = [torch.arange(len(own), device=own.device)] * 2
        else:
            places = one_token_parents(own_parents, other_parents)
        found.append((places[0] + start, places[1] + other_start))
    own, other = (torch.cat(side) for side in zip(*found, strict=True))
    return Places(own, other, tuple(len(places) for places, _ in found), all(same))


def _answers(side: Targets) -> list[tuple[int, Tensor, Tensor]]:
    """Of each answer its start, its targets and their parents."""
    ends = list(accumulate(side.lengths))
    spans = zip([0, *ends], ends, strict=False)
    return [(start, side.targets[start:end], side.parents[start:end]) for start, end in spans]
