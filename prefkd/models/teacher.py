"""The teacher: what it says about a batch, with models in memory or from scores that were written earlier.

Either way a batch goes in and `ParentScores` come out, so that a loss never asks how the teacher was stored.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from prefkd.data.batches import PairBatch, ParentScores, TokenBatch
from prefkd.data.scores import Scores, scores_problems
from prefkd.data.templates import ModelSide
from prefkd.errors import Problem
from prefkd.models.frozen import FrozenModel, load_frozen
from prefkd.models.load import ModelConfig, TeacherConfig, embedding_count, load_tokenizer, read_side
from prefkd.models.logprob_model import TokenStates
from prefkd.ranks import Ranks
from prefkd.training.display import parameter_count


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

    def problems(self) -> Iterator[Problem | str]:
        if self.path is None and self.scores is None:
            yield "path: missing; give a model, or scores: the folder that recipe score wrote"
        elif self.path is not None and self.scores is not None:
            yield "path: stands beside scores; remove one of the two (~teacher.path or ~teacher.scores)"
        elif self.scores is not None:
            yield from scores_problems(self.scores, "scores")
        else:
            yield from super().problems()


@dataclass
class LiveTeacherSource(TeacherSource):
    """The teacher of a distillation that may ask for more than log-probs: a model, scores, or both.

    Attributes:
        path: The model. Beside scores it gives what scores do not hold: hidden states, and logits made of them.
        scores: The folder `scores` of a run of recipe `score`. Log-probs are taken from it, also beside a model.
    """

    def problems(self) -> Iterator[Problem | str]:
        if self.path is None or self.scores is None:
            yield from super().problems()
        else:
            yield from TeacherConfig.problems(self)
            yield from scores_problems(self.scores, "scores")


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


def make_readers(
    model: Callable[[TokenBatch], Tensor], *, is_reference: bool, gets_instructions: bool
) -> dict[str, Reader]:
    """What one model is asked: as the reference, and as pi+ and pi- under a positive and a negative instruction."""
    readers = {"reference": Reader(model, "teacher")} if is_reference else {}
    if gets_instructions:
        readers |= {"positive": Reader(model, "positive"), "negative": Reader(model, "negative")}
    return readers


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
    ranks: Ranks,
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
    [model] = load_frozen([config], probe=probe.teacher, chunk_size=chunk_size, ranks=ranks)
    readers = make_readers(model, is_reference=is_reference, gets_instructions=gets_instructions)
    return Teacher(readers, description=f"{config.path}  {parameter_count(model.base)} parameters, {model.storage}")


@dataclass(frozen=True)
class Questions:
    """What a training asks of its teacher.

    Attributes:
        reference: log-probs of the answers, to compare the student with.
        contrast: log-probs under pi+ and pi-, for importance weights.
        logprobs: log-probs of the answers, for their own sake.
        states: Hidden states at the targets.
        start_is_reference: Whether the student is compared with its own start, whose log-probs take the place of the
            teacher's in its scores.
    """

    reference: bool
    contrast: bool
    logprobs: bool
    states: bool
    start_is_reference: bool

    def to_model(self, config: LiveTeacherSource) -> "Questions":
        """Those that scores do not answer."""
        if config.scores is None:
            return self
        return replace(self, reference=False, contrast=False, logprobs=self.logprobs and self.start_is_reference)

    @property
    def any(self) -> bool:
        """Whether anything is asked."""
        return self.reference or self.contrast or self.logprobs or self.states

    def problems(self, config: LiveTeacherSource) -> Iterator[str]:
        """Why a teacher cannot answer, and when it is asked in vain."""
        if config.scores is None:
            return
        asked = self.to_model(config)
        if config.path is None and asked.any:
            what = "hidden states" if asked.states else "log-probs of the teacher beside the student's own start"
            yield f"path: missing, but the objective asks for {what}, which scores do not give; add the model"
        elif config.path is not None and not asked.any:
            yield "path: stands beside scores, but the objective asks nothing of a model; remove it (~teacher.path)"


@dataclass(frozen=True)
class TeacherSignals:
    """What a teacher says of a microbatch. What it was not asked is None.

    Attributes:
        scores: The log-probs that the student is compared with, and those under pi+ and pi-.
        logprobs: (2, B, P) its own log-prob of each parent.
        states: Its states at its targets.
    """

    scores: ParentScores | None
    logprobs: Tensor | None
    states: TokenStates | None


class LiveTeacher:
    """A teacher that answers with states too.

    Args:
        model: None where nothing is asked of a model.
        asked: What is asked of it.
        description: What the teacher is, in a line for the terminal.
    """

    def __init__(self, model: FrozenModel | None, asked: Questions, *, description: str):
        self.asked = asked
        self.description = description
        self.model = model if asked.reference or asked.logprobs or asked.states else None
        self.readers = make_readers(model, is_reference=False, gets_instructions=asked.contrast) if model else {}

    def __call__(self, batch: PairBatch) -> TeacherSignals:
        read = {name: reader(batch) for name, reader in self.readers.items()}
        states = self.model.states(batch.teacher) if self.model else None
        logprobs = None
        if states and (self.asked.reference or self.asked.logprobs):
            logprobs = batch.parent_sums(states.logprobs(), batch.teacher)
            read |= {"reference": logprobs} if self.asked.reference else {}
        scores = replace(batch.scores, **read) if batch.scores else ParentScores(**read) if read else None
        return TeacherSignals(scores, logprobs, states if self.asked.states else None)


def open_live_teacher(
    config: LiveTeacherSource, questions: Questions, *, probe: PairBatch, chunk_size: int, ranks: Ranks
) -> LiveTeacher:
    """The teacher of a distillation. A model is loaded only if there is a question that scores do not answer.

    Args:
        questions: All that is asked.
        probe: A batch on which a model in memory is checked.
        chunk_size: Target tokens whose logits exist at one time.
    """
    asked = questions.to_model(config)
    if not asked.any:
        source = f"scores in {config.scores}" if config.scores and questions.any else "nothing is asked of it"
        return LiveTeacher(None, asked, description=f"{source}, no model in memory")
    [model] = load_frozen([config], probe=probe.teacher, chunk_size=chunk_size, ranks=ranks)
    description = f"{config.path}  {parameter_count(model.base)} parameters, {model.storage}"
    if config.scores:
        description += f"; log-probs from {config.scores}"
    return LiveTeacher(model, asked, description=description)


def teacher_side(config: TeacherSource, scores: Scores | None) -> ModelSide:
    """How the teacher reads: its own tokenizer, or the one that lies with the scores."""
    if scores is None:
        return read_side(config)
    template = scores.template if config.template == "auto" else config.template
    if config.path is not None:
        return ModelSide(load_tokenizer(config), template, embeddings=embedding_count(config))
    return ModelSide(load_tokenizer(ModelConfig(str(scores.tokenizer))), template)
