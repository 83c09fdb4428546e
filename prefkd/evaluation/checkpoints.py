"""The models that are evaluated: each is loaded when something is asked of it.

Several processes work in rounds: what one of them cannot do ends the round on all of them, so that none waits for ever.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from transformers import PreTrainedModel

from prefkd.data.fingerprints import Fingerprint
from prefkd.data.sides import ModelSide
from prefkd.errors import PrefkdError, Problem, explain
from prefkd.models.contrast import model_fingerprint
from prefkd.models.frozen import FrozenModel
from prefkd.models.load import TeacherConfig, load_causal_lm, read_side
from prefkd.models.logprob_model import LogprobModel
from prefkd.models.lora import ONLY
from prefkd.models.quantize import quantize
from prefkd.models.served import ServedModel
from prefkd.models.server import answers
from prefkd.ranks import Found, Ranks, together

Item = TypeVar("Item")


@dataclass
class CheckpointConfig(TeacherConfig):
    """A model that is evaluated: a base, one that was trained, an adapter on its base, or one behind a server.

    A missing or damaged model is not a mistake in the config: the others are evaluated, and the table says `failed`.
    """

    def problems(self) -> Iterator[Problem | str]:
        may_be_missing = self.server is None and self.path is not None
        for problem in map(Problem.of, super().problems()):
            if problem.about is None or not may_be_missing:
                yield problem
        if self.placement == "shard":
            yield "placement: shard is for teachers; each process evaluates with a whole model, so remove it"

    def missing(self) -> str | None:
        """What keeps it from being loaded, as far as its files tell."""
        problem = next(super().problems(), None)
        return None if problem is None else str(problem)


class Checkpoint:
    """A model under the name that it has in the table.

    Args:
        name: Its name.
        config: Where it is and how it reads.
        device: Where it goes once it is loaded.
    """

    def __init__(self, name: str, config: CheckpointConfig, device: torch.device):
        self.name = name
        self.config = config
        self.device = device

    @cached_property
    def side(self) -> ModelSide:
        """How it reads: tokenizer and template."""
        self._require_files()
        return read_side(self.config)

    @cached_property
    def lm(self) -> PreTrainedModel:
        """The model itself, as a constant, on its device."""
        self._require_files()
        if self.config.server is not None:
            raise PrefkdError(
                f"{self.config.label} gives log-probs and answers only; use a model in memory for the rest"
            )
        lm = load_causal_lm(self.config, dtype=self.config.torch_dtype, device=self.device)
        if self.config.quantization != "none":
            quantize(lm, self.config.quantization)
        return lm.requires_grad_(False).eval()

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """What its answers depend on. Of a model that is gone nothing is known but its settings."""
        settings: Fingerprint = {
            "checkpoint.path": self.config.label if self.config.server is None else self.config.server.model,
            "checkpoint.adapter_path": self.config.adapter,
            "checkpoint.dtype": self.config.dtype,
            "checkpoint.template": self.config.template,
        }
        if self.config.missing():
            return settings
        if self.config.server is not None and not answers(self.config.server):
            return settings
        return settings | model_fingerprint("checkpoint", self.config) | {"checkpoint.side": self.side.fingerprint}

    @property
    def description(self) -> str:
        """Path and adapter, for the terminal."""
        return self.config.label + (f"  {self.config.adapter}" if self.config.adapter else "")

    @cached_property
    def served(self) -> ServedModel | None:
        """The model behind a server, None for one that is loaded here."""
        if self.config.server is None:
            return None
        served = ServedModel(self.config.server, self.side)
        served.connect()
        return served

    def load(self) -> None:
        """Have the model in memory, here or on its server."""
        _ = self.served or self.lm

    def reader(self, chunk_size: int | None) -> FrozenModel | ServedModel:
        """The model as a function from a `TokenBatch` to the log-prob of each of its targets, (N,).

        Args:
            chunk_size: Target tokens whose logits exist at one time; None = as many as the device has room for.
        """
        if self.served is not None:
            return self.served
        base = LogprobModel(self.lm, chunk_size=chunk_size, precision=self.config.torch_dtype)
        return FrozenModel(base.freeze(), None if self.config.adapter is None else ONLY)

    def release(self) -> None:
        """Give its memory back."""
        self.__dict__.pop("lm", None)
        self.__dict__.pop("served", None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _require_files(self) -> None:
        problem = self.config.missing()
        if problem is not None:
            raise PrefkdError(problem)


def reason(error: BaseException) -> str:
    """Why something failed, in one line."""
    return " ".join((explain(error) or f"{type(error).__name__}: {error}").split())


def on_all(ranks: Ranks, work: Callable[[], Found]) -> list[Found]:
    """What each rank found, as `prefkd.ranks.together`; a single process sees an error as it is."""
    return [work()] if ranks.world_size == 1 else together(ranks, work, reason)


def in_rounds(ranks: Ranks, items: Sequence[Item], work: Callable[[Item], list[Found]]) -> Iterator[list[Found]]:
    """Go through items, one for each rank in a round.

    Args:
        items: All items, the same on all ranks.
        work: Called with one item.

    Yields:
        What the ranks of a round found, together and in order.
    """
    for first in range(0, len(items), ranks.world_size):
        own = first + ranks.rank
        parts = on_all(ranks, lambda own=own: work(items[own]) if own < len(items) else [])
        yield [row for part in parts for row in part]
