"""Read a config for a plan: its mistakes are errors as always, but what it names need not be there yet."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from prefkd import catalog
from prefkd.catalog import load_recipe
from prefkd.config import examine_config
from prefkd.errors import ConfigError, PrefkdError

# What may come later, and the state of this machine and of the folder that a run would write.
_ELSEWHERE = ("model", "adapter", "scores", "data", "projectors", "device", "output", "resume")


def read_for_plan(recipe: ModuleType, name: str, path: Path, overrides: Sequence[str]) -> Any:
    """The config of a recipe, whether or not data, weights and the results of earlier stages are there.

    Raises:
        ConfigError: With all that is wrong besides that.
        PrefkdError: The recipe is none that can be planned.
    """
    if not can_be_planned(recipe):
        names = [shipped.name for shipped in catalog.recipes() if can_be_planned(load_recipe(shipped.path))]
        raise PrefkdError(f"{name} neither trains nor scores, so there is no step to plan; use {', '.join(names)}")
    config, problems = examine_config(recipe.Config, path, overrides)
    wrong = [problem for problem in problems if problem.about not in _ELSEWHERE]
    if wrong:
        raise ConfigError(wrong)
    return config


def can_be_planned(recipe: ModuleType) -> bool:
    """Whether a recipe says which models it has."""
    return hasattr(recipe, "load_models")
