"""Readings of a frozen teacher, kept in memory: a model that does not change need not read a pair twice."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefkd.data.batches import PairBatch
from prefkd.ranks import Ranks

# Bytes of main memory on each rank; what comes after that is read each time.
LIMIT = 2**30
MASK = "exists"


@dataclass(frozen=True)
class _Pair:
    """What is kept of a pair.

    Attributes:
        parents: Parents of the chosen and of the rejected answer.
        logprobs: Name -> log-probs of all parents, first those of the chosen answer; float32.
    """

    parents: list[int]
    logprobs: dict[str, np.ndarray]


@dataclass(frozen=True)
class _Reading:
    """What is on its way to main memory.

    Attributes:
        places: The pairs: the data set of each, and its row.
        tensors: Log-probs (2, B, P) by name, and under `MASK` which parents exist.
        arrival: When it is there; None at once.
    """

    places: list[tuple[str, int]]
    tensors: dict[str, Tensor]
    arrival: torch.cuda.Event | None


class KeptLogprobs:
    """Log-probs of parents by pair, the same on all ranks.

    Whether a microbatch is answered from here depends on all pairs of its step. So all ranks decide alike, and a
    teacher that is split over them is read by all of them or by none.

    Args:
        ranks: They share what each of them has read.
        limit: Bytes that may be kept.
    """

    def __init__(self, ranks: Ranks, limit: int = LIMIT):
        self._ranks = ranks
        self._limit = limit
        self._bytes = 0
        self._on_the_way: _Reading | None = None
        self._pairs: dict[tuple[str, int], _Pair] = {}

    def find(self, batch: PairBatch) -> dict[str, Tensor] | None:
        """The log-probs of a microbatch by name, (2, B, P) each; None unless all pairs of its step are kept.

        All ranks call it together.
        """
        self._take_in()
        if not all((batch.data, row) in self._pairs for row in batch.rows_of_step):
            return None
        pairs, device = [self._pairs[batch.data, row] for row in batch.rows], batch.parent_mask.device
        found = {}
        for name in pairs[0].logprobs:
            # Pinned, so that the host does not wait for the copy.
            values = torch.zeros(batch.parent_mask.shape, pin_memory=device.type == "cuda")
            for index, pair in enumerate(pairs):
                chosen, rejected = torch.from_numpy(pair.logprobs[name]).split(pair.parents)
                values[0, index, : len(chosen)] = chosen
                values[1, index, : len(rejected)] = rejected
            found[name] = values.to(device, non_blocking=True)
        return found

    def keep(self, batch: PairBatch, logprobs: dict[str, Tensor]) -> None:
        """Keep what was read of a microbatch, while there is room. All ranks call it together.

        On a GPU it is on its way when this returns; the next microbatch takes it in.

        Args:
            logprobs: (2, B, P) by name.
        """
        self._take_in()
        tensors = {name: value.float() for name, value in logprobs.items()} | {MASK: batch.parent_mask}
        copied = {name: value.to("cpu", non_blocking=True) for name, value in tensors.items()}
        arrival = None
        if batch.parent_mask.is_cuda:
            arrival = torch.cuda.Event()
            arrival.record()
        self._on_the_way = _Reading([(batch.data, row) for row in batch.rows], copied, arrival)

    def _take_in(self) -> None:
        """Have what is on its way, and share it."""
        reading, self._on_the_way = self._on_the_way, None
        if reading is None:
            return
        if reading.arrival is not None:
            reading.arrival.synchronize()
        values = {name: value.numpy() for name, value in reading.tensors.items()}
        mask = values.pop(MASK)
        own = {}
        for index, place in enumerate(reading.places):
            exists = mask[:, index]
            parents = {name: value[:, index][exists] for name, value in values.items()}
            own[place] = _Pair(exists.sum(1).tolist(), parents)
        for read in self._ranks.gather(own):
            for key, pair in read.items():
                size = sum(value.nbytes for value in pair.logprobs.values())
                if key not in self._pairs and self._bytes + size <= self._limit:
                    self._pairs[key] = pair
                    self._bytes += size

    def state_dict(self) -> dict[str, Any]:
        """All that is kept, for a checkpoint: a resumed run must answer with the very numbers that were read.

        All ranks call it together.
        """
        self._take_in()
        pairs = list(self._pairs.values())
        names = pairs[0].logprobs if pairs else ()
        return {
            "places": list(self._pairs),
            "parents": [pair.parents for pair in pairs],
            "logprobs": {
                name: torch.from_numpy(np.concatenate([pair.logprobs[name] for pair in pairs])) for name in names
            },
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        sizes = [sum(parents) for parents in state_dict["parents"]]
        parts = {name: values.split(sizes) for name, values in state_dict["logprobs"].items()}
        for index, (place, parents) in enumerate(zip(state_dict["places"], state_dict["parents"], strict=True)):
            pair = _Pair(parents, {name: values[index].numpy() for name, values in parts.items()})
            self._pairs[place] = pair
            self._bytes += sum(value.nbytes for value in pair.logprobs.values())
