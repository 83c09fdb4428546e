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


@dataclass(frozen=True)
class _Pair:
    """What is kept of a pair.

    Attributes:
        parents: Parents of the chosen and of the rejected answer.
        logprobs: Name -> log-probs of all parents, first those of the chosen answer; float32.
    """

    parents: list[int]
    logprobs: dict[str, np.ndarray]


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
        self._pairs: dict[tuple[str, int], _Pair] = {}

    def find(self, batch: PairBatch) -> dict[str, Tensor] | None:
        """The log-probs of a microbatch by name, (2, B, P) each; None unless all pairs of its step are kept."""
        if not all((batch.data, row) in self._pairs for row in batch.rows_of_step):
            return None
        pairs = [self._pairs[batch.data, row] for row in batch.rows]
        found = {}
        for name in pairs[0].logprobs:
            values = torch.zeros(batch.parent_mask.shape)
            for index, pair in enumerate(pairs):
                chosen, rejected = torch.from_numpy(pair.logprobs[name]).split(pair.parents)
                values[0, index, : len(chosen)] = chosen
                values[1, index, : len(rejected)] = rejected
            found[name] = values.to(batch.parent_mask.device)
        return found

    def keep(self, batch: PairBatch, logprobs: dict[str, Tensor]) -> None:
        """Keep what was read of a microbatch, while there is room. All ranks call it together.

        Args:
            logprobs: (2, B, P) by name.
        """
        mask = batch.parent_mask.cpu().numpy()
        values = {name: value.float().cpu().numpy() for name, value in logprobs.items()}
        own = {}
        for index, row in enumerate(batch.rows):
            exists = mask[:, index]
            parents = {name: value[:, index][exists] for name, value in values.items()}
            own[batch.data, row] = _Pair(exists.sum(1).tolist(), parents)
        for read in self._ranks.gather(own):
            for key, pair in read.items():
                size = sum(value.nbytes for value in pair.logprobs.values())
                if key not in self._pairs and self._bytes + size <= self._limit:
                    self._pairs[key] = pair
                    self._bytes += size

    def state_dict(self) -> dict[str, Any]:
        """All that is kept, for a checkpoint: a resumed run must answer with the very numbers that were read."""
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
