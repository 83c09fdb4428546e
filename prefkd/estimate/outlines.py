"""The models of a run without weights: the recipe's own `load_models` makes them on the meta device."""

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

import torch

from prefkd.config.fields import setting
from prefkd.data.pairs import DataConfig
from prefkd.data.steps import Microbatch
from prefkd.errors import PrefkdError
from prefkd.estimate.models import read_architecture
from prefkd.estimate.rows import full_pairs
from prefkd.models.load import LearnerConfig, ModelConfig, TeacherConfig
from prefkd.models.logprob_model import LogprobModel
from prefkd.models.quantize import Quantization
from prefkd.models.teacher import Teacher
from prefkd.models.varlen import tries_varlen, use_varlen, varlen_obstacle
from prefkd.ranks import Ranks
from prefkd.training.settings import Recomputed, TrainingConfig

Kind = TypeVar("Kind")
GPU = torch.device("cuda")


@dataclass(frozen=True)
class Outlines:
    """What a recipe has in memory.

    Attributes:
        models: Result of its `load_models`.
        batch: Its largest microbatch.
        pairs: Pairs of this microbatch.
        step_pairs: Pairs of a step; of a microbatch where nothing is trained.
        role: Name of the model that is trained, in `models`; None for recipe score.
        learner: The model that is trained.
        quantization: The kind in which the base of that model is stored.
        recomputed: The setting `activation_checkpointing`.
        on_gpu: Whether the run is planned for a GPU: weights are cast by FSDP2, and attention has no mask.
        asked: Name of the teacher, in `models`; None where there is no teacher.
        teacher: The teacher.
    """

    models: Any
    batch: Any
    pairs: int
    step_pairs: int
    role: str | None
    learner: LogprobModel | None
    quantization: Quantization
    recomputed: Recomputed
    on_gpu: bool
    asked: str | None
    teacher: Teacher | None

    @property
    def frozen(self) -> list[tuple[TeacherConfig, LogprobModel]]:
        """The models that are only read, each base once, with its config."""
        if self.teacher is None or not self.teacher.models:
            return []
        configs = [config for config in self.teacher.configs if config.server is None]
        models = zip(configs, self.teacher.models, strict=True)
        bases = {id(model.base): (config, model.base) for config, model in models}
        return [*bases.values()]


def load_outlines(recipe: ModuleType, config: Any, gpu_bytes: float | None = None) -> Outlines:
    """Let a recipe make its models, and a microbatch of the largest pairs that its config allows.

    Args:
        gpu_bytes: Memory of the GPU, if it is known.

    Raises:
        PrefkdError: The config.json of a model cannot be had, or there is no such architecture.
    """
    ranks = Ranks(0, 1, torch.device("meta"))
    training = setting(config, TrainingConfig)
    data = setting(config, DataConfig)
    assert data is not None, "a recipe that trains or scores reads pairs"
    try:
        models = recipe.load_models(config, ranks)
        role, learner = _part(models, LogprobModel)
        asked, teacher = _part(models, Teacher)
        holder = training or config
        pairs = pairs_at_once(holder, data)
        pairs = min(pairs, training.batch_size) if training else pairs
        full = full_pairs(data, pairs, kept_size=teacher.kept_hidden_size if teacher is not None else 0)
        batch = models.collate(full, Microbatch([*range(pairs)]))
        if teacher is not None:
            teacher.load(batch.teacher, chunk_size=holder.chunk_size, attention=holder.attention, ranks=ranks)
    except PrefkdError as error:
        for key, model in model_settings(config):
            read_architecture(model, key)
        raise error
    step_pairs = training.batch_size if training else pairs
    trained = setting(config, LearnerConfig)
    kind = trained.quantization if trained is not None else "none"
    recomputed = training.activation_checkpointing if training is not None else "none"
    on_gpu = holder.device != "cpu"
    found = Outlines(models, batch, pairs, step_pairs, role, learner, kind, recomputed, on_gpu, asked, teacher)
    for model in (*(base for _, base in found.frozen), *([learner] if learner else [])) if on_gpu else ():
        model.gpu_bytes = gpu_bytes
        if tries_varlen(model.attention, GPU) and varlen_obstacle(model.lm, model.precision, GPU) is None:
            use_varlen(model.lm)
            model.packs = True
    return found


def pairs_at_once(config: Any, data: DataConfig) -> int:
    """Pairs of a microbatch, where each is as long as `data` allows.

    Args:
        config: The section with `microbatch_size` and `microbatch_tokens`.
    """
    if config.microbatch_tokens is None:
        return config.microbatch_size
    longest = data.max_prompt_length + 2 * (data.max_length - data.max_prompt_length)
    return max(1, config.microbatch_tokens // longest)


def model_settings(config: Any) -> Iterator[tuple[str, ModelConfig]]:
    """The models of a config that are read from a path, by their key."""
    for name, value in vars(config).items():
        if isinstance(value, ModelConfig) and value.path is not None:
            yield name, value


def _part(models: Any, kind: type[Kind]) -> tuple[str | None, Kind | None]:
    return next(((name, value) for name, value in vars(models).items() if isinstance(value, kind)), (None, None))
