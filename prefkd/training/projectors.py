"""Projectors: what dual-space distillation trains besides the student, with a learning rate of its own."""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import AutoConfig, PreTrainedModel

from prefkd.data.vocabulary import Vocabularies
from prefkd.errors import PrefkdError, Problem
from prefkd.files import whole
from prefkd.method.dual_space import DualSpaceProjectors
from prefkd.method.dual_space_v2 import ExactProjectors, head_map
from prefkd.models.head import head_scale_and_cap
from prefkd.models.kept_states import kept_hidden_size, load_head
from prefkd.models.load import ModelConfig, TeacherConfig, load_causal_lm, stored_dtype
from prefkd.models.logprob_model import LogprobModel
from prefkd.models.questions import TeacherSource
from prefkd.ranks import Ranks

# Learning rates of projectors that start at random, and of one that starts from least squares.
RANDOM_RATE, FITTED_RATE = 1e-3, 1e-4


@dataclass
class ProjectorConfig:
    """How projectors are trained; of no effect where no term of the objective has any.

    Those of dual_space start at random, that of dual_space_v2 where the heads of both models agree best.

    Attributes:
        lr: Their learning rate, which the schedule scales as it does the student's. null = 1e-3 for those that start at
            random (DSKD, arXiv 2406.17328), 1e-4 for that of dual_space_v2: a higher one makes it worse than it starts
            (docs/terms.md). All else is the optimizer's.
        warmup_steps: Number of steps at the start that train the projectors alone.
        path: The projectors.safetensors of an earlier run to start from.
    """

    lr: float | None = None
    warmup_steps: int = 0
    path: Path | None = None

    def problems(self) -> Iterator[Problem | str]:
        if self.lr is not None and not 0 < self.lr < math.inf:
            yield f"lr: {self.lr} would stop the projectors from learning; use a positive number, for example 1e-3"
        if self.warmup_steps < 0:
            yield f"warmup_steps: {self.warmup_steps} is negative; use 0 for none"
        if self.path is not None and not self.path.is_file():
            text = f"{self.path} does not exist; name the projectors.safetensors of an earlier run"
            yield Problem("path", text, about="projectors", paths=(self.path,))


def projectors_for(
    needs: Collection[str],
    config: ProjectorConfig,
    student: ModelConfig,
    teacher: TeacherConfig,
    vocabularies: Vocabularies | None,
    *,
    seed: int,
    device: torch.device,
) -> DualSpaceProjectors | ExactProjectors | None:
    """The projectors that an objective asks for, None if it asks for none.

    Args:
        needs: Needs of the objective.
        vocabularies: The tokens of both models, which dual_space_v2 needs.
    """
    if "projectors" in needs:
        return make_projectors(config, student, teacher, seed=seed, device=device)
    if "exact_projectors" in needs and vocabularies is not None:
        return make_exact_projectors(config, student, teacher, vocabularies, device=device)
    return None


def make_projectors(
    config: ProjectorConfig, student: ModelConfig, teacher: ModelConfig, *, seed: int, device: torch.device
) -> DualSpaceProjectors:
    """Projectors between the hidden states of two models, the same on all ranks; on the meta device without values.

    Raises:
        PrefkdError: Those to start from belong to models of other sizes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projectors = DualSpaceProjectors(_hidden_size(student), _hidden_size(teacher))
    if config.path is not None and device.type != "meta":
        load_projectors(config.path, projectors)
    return projectors.to(device)


def make_exact_projectors(
    config: ProjectorConfig,
    student: ModelConfig,
    teacher: TeacherConfig,
    vocabularies: Vocabularies,
    *,
    device: torch.device,
) -> ExactProjectors:
    """The projector of dual_space_v2; on the meta device without values.

    Raises:
        PrefkdError: That to start from belongs to models of other sizes, or a model cannot be loaded.
    """
    projectors = ExactProjectors(_hidden_size(student), _hidden_size(teacher))
    if config.path is not None and device.type != "meta":
        load_projectors(config.path, projectors)
    elif device.type != "meta":
        # Only rows of the heads are kept in memory, since the models may be split over the ranks later.
        (own, own_scale), (its, its_scale) = (_stored_head(model) for model in (student, teacher))
        shared = vocabularies.shared.within(len(own), len(its))
        with torch.no_grad():
            projectors.t2s.weight.copy_(
                head_map(own_scale * own[shared.student].float(), its_scale * its[shared.teacher].float())
            )
    return projectors.to(device)


def _stored_head(model: ModelConfig) -> tuple[Tensor, float]:
    """The output layer of a checkpoint, (V, H), and the factor of its logits; of a teacher in scores, theirs."""
    if (folder := _scores_alone(model)) is not None:
        kept = load_head(folder, device=torch.device("cpu"))
        return kept.head, kept.scale
    lm = load_causal_lm(model, dtype=stored_dtype(model), device=torch.device("cpu"))
    return _head(lm).detach(), head_scale_and_cap(lm.config)[0]


def _head(lm: PreTrainedModel) -> Tensor:
    weight = lm.get_output_embeddings().weight  # pyright: ignore[reportOptionalMemberAccess]
    assert isinstance(weight, Tensor)
    return weight


def load_projectors(path: Path, projectors: DualSpaceProjectors | ExactProjectors) -> None:
    """Read projectors from a file.

    Raises:
        PrefkdError: It holds something else, or projectors of other sizes.
    """
    try:
        projectors.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise PrefkdError(f"projectors.path: {path} holds no projectors of these two models; remove it") from error


def save_projectors(model: LogprobModel, folder: Path, *, ranks: Ranks) -> dict[str, Path]:
    """Save the projectors of a model as float32 safetensors; all ranks call it, the main one writes.

    Returns:
        The file by the name `projectors`; nothing for a model that has none.
    """
    if model.projectors is None:
        return {}
    path = folder / "projectors.safetensors"
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Any] = get_model_state_dict(model.projectors, options=options)
    if ranks.is_main:
        with whole(path) as unfinished:
            save_file({name: value.contiguous() for name, value in state.items()}, unfinished)
    ranks.wait()
    return {"projectors": path}


def parameter_groups(model: LogprobModel, config: ProjectorConfig) -> list[dict[str, Any]]:
    """The parameters for an optimizer: what learns of the model, and the projectors with their own learning rate."""
    learns = [parameter for parameter in model.lm.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [{"params": learns}]
    if model.projectors is not None:
        rate = config.lr or (FITTED_RATE if isinstance(model.projectors, ExactProjectors) else RANDOM_RATE)
        groups.append({"params": list(model.projectors.parameters()), "lr": rate})
    return groups


def _scores_alone(model: ModelConfig) -> Path | None:
    """The folder of scores that a teacher is known by, None for one that can be loaded."""
    return model.scores if isinstance(model, TeacherSource) and model.path is None else None


def _hidden_size(config: ModelConfig) -> int:
    if (folder := _scores_alone(config)) is not None:
        return kept_hidden_size(folder)
    found = AutoConfig.from_pretrained(config.path, **config.hub)
    return found.get_text_config().hidden_size
