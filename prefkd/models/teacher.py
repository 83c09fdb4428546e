"""The teacher: what it says about a batch, with models in memory or from scores that were written earlier.

Either way a batch goes in and `ParentScores` come out, so that a loss never asks how the teacher was stored.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from prefkd.data.batches import PairBatch, ParentScores, TokenBatch
from prefkd.data.scores import Scores, scores_problems
from prefkd.data.templates import ModelSide
from prefkd.models.load import ModelConfig, TeacherConfig, load_causal_lm, load_tokenizer
from prefkd.models.logprob_model import LogprobModel
from prefkd.models.lora import adapters_off, load_adapter, use_adapter
from prefkd.training.progress import parameter_count


@dataclass
class TeacherSource(TeacherConfig):
    """The teacher of a distillation: a model in memory, or what recipe `score` wrote down. Give one of the two.

    Attributes:
        path: The model. The other settings of a model are about it.
        scores: The folder `scores` of a run of recipe `score`. The teacher's tokenizer lies in it, so that nothing of
            the teacher itself is needed; `template: auto` is then the template that was scored.
    """

    path: str | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    scores: Path | None = None

    def problems(self) -> Iterator[str]:
        if self.path is None and self.scores is None:
            yield "path: missing; give a model, or scores: the folder that recipe score wrote"
        elif self.path is not None and self.scores is not None:
            yield "path: stands beside scores; remove one of the two (~teacher.path or ~teacher.scores)"
        elif self.scores is not None:
            yield from (f"scores: {problem}" for problem in scores_problems(self.scores))
        else:
            yield from super().problems()


class FrozenModel:
    """A model that is only read: a base, as it is or with an adapter on it.

    Args:
        base: The base, which several frozen models may share.
        adapter: Name of the adapter in the base.
    """

    def __init__(self, base: LogprobModel, adapter: str | None):
        self.base = base
        self.adapter = adapter

    @torch.no_grad()
    def __call__(self, tokens: TokenBatch) -> Tensor:
        """log pi(y_t | x, y_<t) of each target token, (N,) float32."""
        with self._switched():
            return self.base(tokens)

    def check(self, tokens: TokenBatch, name: str) -> None:
        """Compare with the model's own logits, see `LogprobModel.check`."""
        with self._switched():
            self.base.check(tokens, name)

    def _switched(self) -> AbstractContextManager[None]:
        lm = self.base.lm
        if self.adapter is not None:
            use_adapter(lm, self.adapter)
            return nullcontext()
        return adapters_off(lm) if getattr(lm, "peft_config", None) else nullcontext()


def load_frozen(
    configs: Sequence[TeacherConfig], *, probe: TokenBatch, chunk_size: int, device: torch.device
) -> list[FrozenModel]:
    """Load models that are only read. Those on the same base share it: it is in memory once, whatever stands on it.

    Args:
        probe: A pair of the teacher's tokens, on which each model is checked.
        chunk_size: Target tokens whose logits exist at one time.
    """
    bases: dict[str, LogprobModel] = {}
    models = []
    for config in configs:
        base_config = replace(config, adapter=None)
        key = str(base_config)
        if key not in bases:
            lm = load_causal_lm(base_config, dtype=config.torch_dtype, device=device)
            bases[key] = LogprobModel(lm, chunk_size=chunk_size, precision=config.torch_dtype)
        name = None
        if config.adapter is not None:
            name = f"adapter_{len(models)}"  # not its path: peft allows no dots
            load_adapter(bases[key].lm, config.adapter, name=name)
        bases[key].freeze()
        models.append(FrozenModel(bases[key], name))
    for config, model in zip(configs, models, strict=True):
        model.check(probe, config.adapter or config.path)
    return models


@dataclass(frozen=True)
class Reader:
    """A model, and which of the token sequences of a batch it reads.

    Attributes:
        model: Log-probs of target tokens, (N,), of a token batch.
        view: The name of the sequences in `PairBatch`.
    """

    model: Callable[[TokenBatch], Tensor]
    view: Literal["student", "teacher", "positive", "negative"]

    @torch.no_grad()
    def __call__(self, batch: PairBatch) -> Tensor:
        """log-prob of each parent, (2, B, P)."""
        tokens: TokenBatch = getattr(batch, self.view)
        return batch.parent_sums(self.model(tokens), tokens)


class Teacher:
    """Gives the scores of a batch: what models in memory say, and for the rest what came with the batch.

    Args:
        readers: The models that are asked, by the name of their score in `ParentScores`.
        description: What the teacher is, in a line for the terminal.
    """

    def __init__(self, readers: Mapping[str, Reader], *, description: str):
        self.readers = readers
        self.description = description

    def __call__(self, batch: PairBatch) -> ParentScores:
        read = {name: reader(batch) for name, reader in self.readers.items()}
        return replace(batch.scores, **read) if batch.scores else ParentScores(**read)


def open_teacher(
    config: TeacherSource,
    *,
    is_reference: bool,
    gets_instructions: bool,
    probe: PairBatch,
    chunk_size: int,
    device: torch.device,
) -> Teacher:
    """The teacher of a distillation. A model is loaded only if something is asked of one.

    Args:
        is_reference: Whether students are compared with it, rather than with their own start.
        gets_instructions: Whether a model in memory answers under a positive and a negative instruction too.
        probe: A batch on which a model in memory is checked.
        chunk_size: Target tokens whose logits exist at one time.
    """
    if config.scores is not None:
        return Teacher({}, description=f"scores in {config.scores}, no model in memory")
    if not (is_reference or gets_instructions):
        return Teacher({}, description=f"{config.path}, of which nothing is asked")
    [model] = load_frozen([config], probe=probe.teacher, chunk_size=chunk_size, device=device)
    readers = {"reference": Reader(model, "teacher")} if is_reference else {}
    if gets_instructions:
        readers |= {"positive": Reader(model, "positive"), "negative": Reader(model, "negative")}
    return Teacher(readers, description=f"{config.path}  {parameter_count(model.base)} parameters, {config.dtype}")


def teacher_side(config: TeacherSource, scores: Scores | None) -> ModelSide:
    """How the teacher reads: its own tokenizer, or the one that lies with the scores."""
    if scores is None:
        return ModelSide(load_tokenizer(config), config.template)
    template = scores.template if config.template == "auto" else config.template
    return ModelSide(load_tokenizer(ModelConfig(str(scores.tokenizer))), template)
