"""A batch is made while the one before is worked on: one ahead, in order, and its errors come where it is asked for."""

import threading

import pytest
import torch

from prefkd.data.packing import Movable
from prefkd.data.steps import Microbatch
from prefkd.errors import DataError
from prefkd.training.run import ahead

CPU = torch.device("cpu")


class Named(Movable):
    def __init__(self, rows: list[int]):
        self.rows = rows

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "Named":
        return self


def test_one_is_made_ahead():
    made: list[int] = []
    ready = [threading.Event() for _ in range(4)]

    def make(microbatch: Microbatch) -> Named:
        (row,) = microbatch.rows
        made.append(row)
        ready[row].set()
        return Named(microbatch.rows)

    seen = []
    for batch in ahead(make, [Microbatch([row]) for row in range(4)], CPU):
        seen += batch.rows
        following = len(seen)
        if following < 4:
            assert ready[following].wait(10)
        assert made == list(range(min(following + 1, 4)))
    assert seen == [0, 1, 2, 3]
    assert not list(ahead(make, [], CPU))


def test_an_error_is_not_lost():
    def make(microbatch: Microbatch) -> Named:
        if microbatch.rows == [1]:
            raise DataError("row 1 is bad")
        return Named(microbatch.rows)

    batches = ahead(make, [Microbatch([0]), Microbatch([1])], CPU)
    assert next(batches).rows == [0]
    with pytest.raises(DataError, match="row 1 is bad"):
        next(batches)
