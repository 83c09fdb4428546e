"""A chain of recipes as one file: read, checked as a whole, and compared with what is finished already.

    output_dir: runs/mine
    values:
      teacher: models/teacher
    stages:
      dpo:
        recipe: dpo
        config: demo/dpo
        overrides: {model: {path: "${values.teacher}"}}
      score:
        recipe: score
        config: demo/score
        overrides: {teacher: {adapter: "${stages.dpo.output_dir}/adapter"}}

A stage writes to <output_dir>/<its name> unless it has an output_dir of its own. It depends on those stages in whose
folders a setting of its lies, however the setting came by its value. Stages can be repeated: `prefkd.pipeline.rounds`.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from graphlib import CycleError, TopologicalSorter
from keyword import iskeyword
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from prefkd import catalog
from prefkd.catalog import load_recipe
from prefkd.config import examine_config, load_config, read_layers
from prefkd.config.fields import settings_of
from prefkd.config.hints import shown
from prefkd.errors import ConfigError, PrefkdError, Problem, nearest
from prefkd.files import sha256
from prefkd.pipeline.records import Contents, StageInputs, paths_in
from prefkd.pipeline.rounds import unroll


@dataclass
class StageConfig:
    """A stage as the file describes it.

    Attributes:
        recipe: Name of a recipe, or the path of one.
        config: Name of a config, or the path of one.
        output_dir: The stage's folder.
        overrides: Settings laid over the config, section by section.
    """

    recipe: str
    config: str
    output_dir: Path
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """A stage whose recipe can be imported and whose settings have the right types.

    Attributes:
        overrides: Settings that are laid over the config, as `prefkd run` takes it.
        settings: The resolved config by dotted key.
        paths: Settings that name a file or a folder, if it exists.
        problems: Reasons in its config against running now.
        outputs: Outputs that the recipe declares; None if it declares none.
        needs: Names of the stages on whose output it works.
    """

    name: str
    recipe_path: Path
    config_path: Path
    output_dir: Path
    overrides: tuple[str, ...]
    settings: dict[str, Any]
    paths: dict[str, Path]
    problems: tuple[Problem, ...]
    outputs: tuple[str, ...] | None
    needs: frozenset[str] = frozenset()

    def fingerprint(self, contents: Contents) -> StageInputs:
        """What decides about its result, as things are now."""
        inputs = {key: contents.digest(path) for key, path in self.paths.items() if os.path.exists(path)}
        return StageInputs(sha256(self.recipe_path), self.settings, inputs)


@dataclass(frozen=True)
class Pipeline:
    """Stages, each after those that it needs."""

    output_dir: Path
    stages: tuple[Stage, ...]

    def built_on(self, name: str) -> set[str]:
        """The stages that a stage needs, and those that these need."""
        needs = {stage.name: stage.needs for stage in self.stages}
        found: set[str] = set()
        queue = [*needs[name]]
        while queue:
            found.add(nearer := queue.pop())
            queue += needs[nearer] - found
        return found


def read_pipeline(path: Path, overrides: Sequence[str] = ()) -> Pipeline:
    """Read a pipeline and every recipe and config that it names.

    Args:
        path: The YAML file.
        overrides: `key=value` for any key of the file.

    Raises:
        ConfigError: With everything that is wrong whatever files there may be, one line each.
    """
    config = _load(path, overrides)
    specs: dict[str, StageConfig] = {part.name: vars(config.stages)[part.name] for part in fields(config.stages)}
    problems: list[Problem | str] = [*_folder_problems(specs)]
    stages: list[Stage] = []
    folders = [spec.output_dir for spec in specs.values()]
    for name, spec in specs.items():
        try:
            stages.append(_examine(name, spec))
        except ConfigError as error:
            problems += [in_stage(name, problem) for problem in error.problems if not problem.lies_in(folders)]
        except PrefkdError as error:
            problems.append(in_stage(name, Problem.of(str(error))))
    if problems:
        for stage in stages:
            problems += [in_stage(stage.name, problem) for problem in stage.problems if not problem.lies_in(folders)]
        raise ConfigError(problems)
    return Pipeline(config.output_dir, tuple(_in_order(_connected(stages))))


def in_stage(name: str, problem: Problem) -> Problem:
    """A problem of a stage's config as the pipeline tells it."""
    return replace(problem, key="", text=f"stage {name}: {problem}")


def _load(path: Path, overrides: Sequence[str]) -> Any:
    """The file's content as an object with the attributes output_dir, values and stages."""
    raw, overrides = unroll(read_layers(path), overrides)
    stages, values = raw.get("stages"), raw.get("values") or {}
    if not isinstance(stages, dict) or not stages:
        raise ConfigError([f"{path}: stages: missing; give a section for each stage, with recipe and config in it"])
    if not isinstance(values, dict):
        raise ConfigError([f"{path}: values: {shown(values)} is not a section of keys and values"])
    names = [name for name in stages if not (isinstance(name, str) and name.isidentifier() and not iskeyword(name))]
    if names:
        rule = "not a name; use letters, digits and _, a letter first, and not a Python keyword"
        raise ConfigError([f"stages.{name}: {rule}" for name in names])
    unknown = {
        key: f"{key}: there is no stage {name}{nearest(name, stages)}"
        for key, text in _texts(raw)
        for name in re.findall(r"\$\{stages\.(\w+)", text)
        if name not in stages
    }
    problems: list[Problem | str] = [*unknown.values()]
    for key in (override.partition("=")[0] for override in overrides):
        value = re.match(r"values\.([\w-]+)", key)
        if value and value[1] not in values:
            problems.append(f"{key}: unknown key{nearest(value[1], map(str, values))}")
    try:
        config = load_config(_config_class(stages), raw, overrides)
    except ConfigError as error:
        problems += [problem for problem in error.problems if problem.key not in unknown]
    if problems:
        raise ConfigError(problems)
    return config


def _config_class(stages: Mapping[str, Any]) -> type:
    """A dataclass with a section for each stage, so that a wrong key in a stage is found as in any config."""

    def section(name: str) -> type:
        folder = ("output_dir", Path, field(default=f"${{output_dir}}/{name}"))
        return make_dataclass(name, [folder], bases=(StageConfig,))

    sections = make_dataclass("Stages", [(name, section(name)) for name in stages])
    values = ("values", dict[str, Any], field(default_factory=dict))
    return make_dataclass("PipelineConfig", [("output_dir", Path), ("stages", sections), values])


def _folder_problems(specs: Mapping[str, StageConfig]) -> Iterator[str]:
    folders = {name: Path(os.path.abspath(spec.output_dir)) for name, spec in specs.items()}
    for name, folder in folders.items():
        for other, outer in folders.items():
            if name != other and (outer in folder.parents or (outer == folder and name > other)):
                yield f"stages.{name}.output_dir: lies in the folder of stage {other}; name another one"


def _examine(name: str, spec: StageConfig) -> Stage:
    """Import the recipe of a stage and read its config.

    Raises:
        PrefkdError: One line for each thing that is wrong.
    """
    recipe_path, config_path = catalog.find_run(spec.recipe, spec.config)
    recipe = load_recipe(recipe_path)
    if "output_dir" not in (part.name for part in fields(recipe.Config)):
        raise PrefkdError(f"the Config of {spec.recipe} has no output_dir, where a stage has to write; add one")
    if "output_dir" in spec.overrides:
        raise PrefkdError("output_dir belongs next to recipe and config, not in overrides; move it there")
    overrides = (f"output_dir={_written(str(spec.output_dir))}", *_settings(spec.overrides))
    config, problems = examine_config(recipe.Config, config_path, overrides)
    outputs = getattr(recipe.Config, "outputs", None)
    return Stage(
        name=name,
        recipe_path=recipe_path,
        config_path=config_path,
        output_dir=spec.output_dir,
        overrides=overrides,
        settings=settings_of(config),
        paths=dict(paths_in(config)),
        problems=tuple(problems),
        outputs=tuple(outputs(config)) if outputs else None,
    )


def _settings(overrides: Mapping[Any, Any], key: str = "") -> Iterator[str]:
    """Nested overrides as key=value, each value written so that YAML reads it back."""
    for name, value in overrides.items():
        path = f"{key}.{name}" if key else str(name)
        if "." in str(name):
            first, _, rest = str(name).partition(".")
            raise PrefkdError(f"overrides.{path}: a key has no dots here; write {first}: {{{rest}: ...}}")
        if isinstance(value, dict) and value and "_component_" not in value:
            yield from _settings(value, path)
        else:
            yield f"{path}={_written(value)}"


def _written(value: Any) -> str:
    """A value as YAML in one line: a text as it is where YAML reads it as that text, else as JSON."""
    if isinstance(value, str):
        try:
            if OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"])) == {"value": value}:
                return value
        except (yaml.YAMLError, OmegaConfBaseException):
            pass
    return json.dumps(value, ensure_ascii=False)


def _connected(stages: Sequence[Stage]) -> list[Stage]:
    """The stages, each with what it needs.

    Raises:
        ConfigError: If one names something that another does not write.
    """
    folders = {stage.name: Path(os.path.abspath(stage.output_dir)) for stage in stages}
    outputs = {stage.name: stage.outputs for stage in stages}
    connected, problems = [], []
    for stage in stages:
        needs = set()
        for key, value in stage.settings.items():
            path = Path(os.path.abspath(value)) if isinstance(value, str) else None
            for name, folder in folders.items():
                if path is None or name == stage.name or not path.is_relative_to(folder):
                    continue
                needs.add(name)
                part = next(iter(path.relative_to(folder).parts), None)
                known = outputs[name]
                if part is not None and known is not None and part not in known:
                    problems.append(f"stage {stage.name}: {key}: stage {name} writes no {part}{nearest(part, known)}")
        connected.append(replace(stage, needs=frozenset(needs)))
    if problems:
        raise ConfigError(problems)
    return connected


def _in_order(stages: Sequence[Stage]) -> Iterator[Stage]:
    """The stages as they stand in the file, but each after those that it needs.

    Raises:
        ConfigError: If some need each other.
    """
    try:
        TopologicalSorter({stage.name: stage.needs for stage in stages}).prepare()
    except CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        raise ConfigError([f"stages: {circle} need each other; let one of them start from something else"]) from error
    left = {stage.name: stage for stage in stages}
    while left:
        ready = next(stage for stage in left.values() if not stage.needs & left.keys())
        yield left.pop(ready.name)


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """The texts in nested sections and lists, with their keys as errors name them."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _texts(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, f"{key}[{index}]")
