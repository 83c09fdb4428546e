"""Which models a recipe has in memory, and what it asks of them: those of its config, without weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prefkd.data.batches import PairBatch, TokenBatch
from prefkd.data.tokenizing import INSTRUCTIONS
from prefkd.estimate.models import Frozen, make_frozen, make_skeleton, read_architecture
from prefkd.method.dual_space import DualSpaceProjectors
from prefkd.models.contrast import contrast_readers
from prefkd.models.frozen import FrozenModel
from prefkd.models.load import TeacherConfig
from prefkd.models.logprob_model import LogprobModel
from prefkd.models.lora import add_adapter
from prefkd.models.teacher import LiveTeacher, Questions, Teacher, make_readers
from prefkd.training.combination import Objective
from prefkd.training.losses import has_reference


@dataclass(frozen=True)
class Company:
    """The models of a run.

    Attributes:
        learner: The model that is trained, None for recipe score.
        frozen: Those that are only read.
        teacher: What the recipe asks about a batch, None where there is no teacher.
        passes: How often each of the frozen models reads a microbatch.
        scores: What is not asked of a model but stands beside the pairs: log-probs that were stored or read ahead.
    """

    learner: LogprobModel | None
    frozen: Frozen
    teacher: Callable[[PairBatch], Any] | None
    passes: tuple[int, ...]
    scores: tuple[str, ...]


def gather_company(config: Any) -> Company:
    """The models of a recipe's config, on the meta device."""
    if hasattr(config, "contrast"):
        return _scoring(config)
    teacher = getattr(config, "teacher", None)
    if teacher is None:
        reads_ahead = hasattr(config, "loss") and has_reference(config.loss)
        return Company(_learner(config), Frozen([], []), None, (), ("reference",) if reads_ahead else ())
    if hasattr(config, "objective"):
        return _with_live_teacher(config)
    weights = getattr(config, "weights", None)
    is_reference = getattr(config, "reference", "teacher") == "teacher"
    gets_instructions = weights is not None and weights.prompts is not None
    if teacher.scores is not None or not (is_reference or gets_instructions):
        stored = weights is not None and weights.contrast == "scores"
        return Company(_learner(config), Frozen([], []), Teacher({}, description=""), (), _stored(stored))
    frozen = make_frozen({"teacher": teacher}, chunk_size=config.training.chunk_size)
    readers = make_readers(_Once(frozen.models[0]), is_reference=is_reference, gets_instructions=gets_instructions)
    ahead = () if is_reference else _stored(False)
    return Company(_learner(config), frozen, Teacher(readers, description=""), (len(readers),), ahead)


def _learner(config: Any, projectors: DualSpaceProjectors | None = None) -> LogprobModel:
    """The model that the recipe trains, in the types that it gives its weights."""
    training, lora = config.training, getattr(config, "lora", None)
    key = "student" if hasattr(config, "student") else "model"
    lm = make_skeleton(getattr(config, key), key, training.compute_dtype if lora else torch.float32)
    if lora:
        add_adapter(lm, lora, seed=training.seed)
    if training.activation_checkpointing:
        lm.gradient_checkpointing_enable({"use_reentrant": False})
    precision = training.compute_dtype
    return LogprobModel(lm, chunk_size=training.chunk_size, precision=precision, projectors=projectors).train()


def _with_live_teacher(config: Any) -> Company:
    """That of a recipe with an objective, whose teacher may be asked for hidden states."""
    objective = Objective(config.objective)
    questions: Questions = config.questions(objective)
    asked = questions.to_model(config.teacher)
    configs: dict[str, TeacherConfig] = {"teacher": config.teacher} if asked.any else {}
    frozen = make_frozen(configs, chunk_size=config.training.chunk_size)
    model = frozen.models[0] if frozen.models else None
    teacher = LiveTeacher(model, asked, description="")
    if model is not None:
        teacher.readers = make_readers(_Once(model), is_reference=False, gets_instructions=asked.contrast)
    stored = config.teacher.scores is not None and "weights" in objective.needs and config.weights.contrast == "scores"
    ahead = _stored(stored) if questions.start_is_reference or (config.teacher.scores and questions.reference) else ()
    projectors = None
    if "projectors" in objective.needs:
        assert model is not None, "projectors need the teacher's states"
        own = read_architecture(config.student, "student").get_text_config().hidden_size
        with torch.device("meta"):
            projectors = DualSpaceProjectors(own, model.base.lm.config.get_text_config().hidden_size)
    passes = (len(teacher.readers) + (teacher.model is not None),) * len(frozen.models)
    return Company(_learner(config, projectors), frozen, teacher, passes, ahead)


def _scoring(config: Any) -> Company:
    """That of recipe score: the teacher, and what is contrasted."""
    contrast = config.contrast
    configs = {"teacher": config.teacher, **{f"contrast.{name}": model for name, model in contrast.models.items()}}
    frozen = make_frozen(configs, chunk_size=config.chunk_size)
    own, *pair = map(_Once, frozen.models)
    readers = contrast_readers(contrast, own, *pair)
    passes = (1 if pair else len(readers), *(1 for _ in pair))
    return Company(None, frozen, Teacher(readers, description=""), passes, ())


class _Once:
    """A model that is asked several times about batches of one shape, and in fact reads the first."""

    def __init__(self, model: FrozenModel):
        self.model = model
        self.has_read = False

    def __call__(self, tokens: TokenBatch) -> Tensor:
        if self.has_read:
            return torch.zeros(len(tokens.targets))
        self.has_read = True
        return self.model(tokens)


def _stored(contrast: bool) -> tuple[str, ...]:
    return ("reference", *INSTRUCTIONS) if contrast else ("reference",)
