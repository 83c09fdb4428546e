"""Read a config for a plan: its mistakes are errors as always, but what it names need not be there yet."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from prefkd import catalog
from prefkd.cli.launch import load_recipe
from prefkd.config import examine_config
from prefkd.data.pairs import DataConfig
from prefkd.data.scores import scores_problems
from prefkd.data.sources import source_problems
from prefkd.errors import ConfigError, PrefkdError
from prefkd.models.load import ModelConfig, TeacherConfig
from prefkd.models.lora import adapter_problems
from prefkd.models.quantize import device_problems
from prefkd.models.teacher import TeacherSource
from prefkd.training.projectors import ProjectorConfig

# About the state of this machine and of the folder that a run would write.
ELSEWHERE = ("output_dir: ", "training.resume: ", "training.device: ", "device: ")


def read_for_plan(recipe: ModuleType, name: str, path: Path, overrides: Sequence[str]) -> Any:
    """The config of a recipe, whether or not data, weights and the results of earlier stages are there.

    Raises:
        ConfigError: With all that is wrong beside that.
        PrefkdError: The recipe is none that can be planned.
    """
    if not can_be_planned(recipe):
        names = [shipped.name for shipped in catalog.recipes() if can_be_planned(load_recipe(shipped.path))]
        raise PrefkdError(f"{name} neither trains nor scores, so that there is no step to plan; use {', '.join(names)}")
    config, problems = examine_config(recipe.Config, path, overrides)
    absent = {line for key, section in _sections(config) for line in _absences(key, section)}
    wrong = [line for line in problems if line not in absent and not line.startswith(ELSEWHERE)]
    if wrong:
        raise ConfigError(wrong)
    return config


def can_be_planned(recipe: ModuleType) -> bool:
    """Whether a recipe says which models it has."""
    return hasattr(recipe, "load_models")


def _sections(section: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    for part in fields(section):
        value, path = getattr(section, part.name), f"{key}{part.name}."
        if is_dataclass(value):
            yield path, value
            yield from _sections(value, path)


def _absences(key: str, section: Any) -> Iterator[str]:
    """The problems of a section that are about files that may come later, and about a GPU that is elsewhere."""
    if isinstance(section, ModelConfig) and section.path is not None:
        yield from (f"{key}{problem}" for problem in ModelConfig.problems(section))
    if isinstance(section, TeacherConfig):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        yield from (f"{key}{problem}" for problem in device_problems(section.quantization, device))
        if section.adapter is not None:
            yield from (f"{key}adapter: {problem}" for problem in adapter_problems(section.adapter, section.path))
    if isinstance(section, TeacherSource) and section.scores is not None:
        yield from (f"{key}scores: {problem}" for problem in scores_problems(section.scores))
    if isinstance(section, DataConfig):
        for name in ("source", "held_out_source"):
            if (source := getattr(section, name)) is not None:
                yield from (f"{key}{name}: {problem}" for problem in source_problems(source))
    if isinstance(section, ProjectorConfig):
        yield from (f"{key}{problem}" for problem in ProjectorConfig(path=section.path).problems())
