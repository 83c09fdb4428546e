"""The shipped recipes, configs and pipelines, found by looking into their folders."""

import ast
import importlib.util
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, is_dataclass
from difflib import get_close_matches
from functools import cache
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from prefkd.errors import PrefkdError, first_line, nearest

# How warnings begin that a user can do nothing about: they are about calls of prefkd's own, or of a library's.
_FOR_DEVELOPERS = (
    "`gradient_checkpointing_enable` is deprecated",  # the name that all versions of transformers 5 know
    "barrier\\(\\): using the device under current context",  # which is the right one: join_ranks has set it
    "OptimState.* does not implement _stable_hash_for_caching",  # of torchao's optimizers
)

# A wheel holds recipes/ and configs/ inside the package; in a checkout and an editable install they lie next to it.
_PACKAGE = Path(__file__).resolve().parent
_HOME = _PACKAGE if (_PACKAGE / "recipes").is_dir() else _PACKAGE.parent
RECIPES, CONFIGS = _HOME / "recipes", _HOME / "configs"


@dataclass(frozen=True)
class Recipe:
    """A shipped recipe.

    Attributes:
        name: File name without its suffix.
        summary: First line of the file's docstring.
        configs: Names of its configs, which are their paths below configs/ without suffix.
    """

    name: str
    path: Path
    summary: str
    configs: tuple[str, ...]


def recipes() -> list[Recipe]:
    """All shipped recipes, by name. The files are read, not imported."""
    recipe_names = {name: recipe_of(config) for name, config in configs().items()}
    found = []
    for path in sorted(RECIPES.glob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        names = tuple(name for name, recipe in recipe_names.items() if recipe == path.stem)
        found.append(Recipe(path.stem, path, docstring.partition("\n")[0], names))
    return found


def configs() -> dict[str, Path]:
    """All shipped configs, by name (such as demo/tis_dpo_distill): a file, or `FILE/NAME` in a file of several."""
    return {name: path for name, path in _shipped().items() if not _is_base(name) and not is_pipeline(path)}


def recipe_of(config: Path) -> str | None:
    """The recipe that a config is for, as it or its base says."""
    return _written_in(config, "recipe")


def pipelines() -> dict[str, Path]:
    """All shipped pipelines, by name (such as demo/pipeline)."""
    return {name: path for name, path in _shipped().items() if not _is_base(name) and is_pipeline(path)}


def is_pipeline(path: Path) -> bool:
    """Whether a file lists stages, as no config of a recipe does."""
    return _written_in(path, "stages") is not None


def header_of(path: Path) -> str:
    """The comment at the top of a config's file."""
    lines = (path if path.is_file() else path.parent).read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(takewhile(lambda line: line.startswith("#"), lines))


def pipeline_summary(path: Path) -> str:
    """The first line of a pipeline's file, which is a comment."""
    return header_of(path).partition("\n")[0].removeprefix("# ")


def find_recipe(name: str) -> Path:
    """The file of a shipped recipe, or of the user's own where `name` is a path.

    Raises:
        PrefkdError: If there is neither; the message names the nearest shipped recipe.
    """
    return _find("recipe", name, {path.stem: path for path in RECIPES.glob("*.py")})


def find_config(name: str, recipe: str | None = None) -> Path:
    """The file of a shipped config, or of the user's own where `name` is a path.

    Args:
        name: The config. One in a file of several is `FILE/NAME`, or the file alone with a recipe that one is for.
        recipe: The recipe that it is run with.

    Raises:
        PrefkdError: If there is neither; the message names the nearest shipped config.
    """
    shipped = configs()
    for file in (CONFIGS / f"{name}.yaml", Path(name)):
        held = {held: file / held for held in _held(file) if not is_pipeline(file / held)}
        if held:
            fitting = [path for path in held.values() if recipe_of(path) == recipe]
            if len(fitting) == 1:
                return fitting[0]
            raise PrefkdError(f"{name} holds several configs; name one: {', '.join(f'{name}/{held}' for held in held)}")
    return _find("config", name, shipped)


def find_run(recipe: str, config: str | None) -> tuple[Path, Path]:
    """The files of a recipe and its config.

    Args:
        recipe: Name or path of the recipe; or, without a config, of a config that says what recipe it is for.
        config: Name or path of the config.

    Raises:
        PrefkdError: If one is not there, or a config alone does not say its recipe.
    """
    if config is not None:
        return find_recipe(recipe), find_config(config, Path(recipe).stem)
    shipped = {known.name: known.configs for known in recipes()}
    if recipe in shipped or recipe.endswith(".py"):
        example = shipped.get(recipe) or ["mine.yaml"]
        raise PrefkdError(f"{recipe} needs a config; add --config, for instance --config {example[0]}")
    path = find_config(recipe)
    own = recipe_of(path)
    if own is None:
        remedy = "write `recipe: NAME` into it, or name the recipe and --config"
        raise PrefkdError(_fault(path) or f"{recipe} does not say its recipe; {remedy}")
    if not isinstance(own, str):
        raise PrefkdError(f"{recipe}: recipe: {own!r} is not the name of a recipe (`prefkd ls` lists all)")
    return find_recipe(own), path


def find_base(name: str) -> Path:
    """The file of a shipped config or base, or of the user's own where `name` is a path.

    Raises:
        PrefkdError: If there is neither; the message names the nearest shipped one.
    """
    shipped = CONFIGS / f"{name}.yaml"
    return shipped if shipped.is_file() else _find("config", name, _shipped())


def find_pipeline(name: str) -> Path:
    """The file of a shipped pipeline, or of the user's own where `name` is a path.

    Raises:
        PrefkdError: If there is neither; the message names the nearest shipped pipeline.
    """
    return _find("pipeline", name, pipelines())


def find_shipped(name: str) -> Path:
    """The file of the shipped recipe, config or pipeline of this name.

    Raises:
        PrefkdError: If there is none; the message names the nearest one.
    """
    shipped = {recipe.name: recipe.path for recipe in recipes()} | _shipped()
    if name not in shipped:
        raise PrefkdError(f"no recipe, config or pipeline is named {name}{_hint(name, shipped)}")
    return shipped[name]


def shipped_file(*parts: Any) -> str:
    """Path of a file below configs/, which a config writes as ${shipped:demo/train.jsonl}.

    Args:
        parts: Its name there, which OmegaConf splits at commas.

    Raises:
        PrefkdError: If there is no such file; the message names the nearest one.
    """
    name = ",".join(map(str, parts))
    path = CONFIGS / name
    if not path.is_file():
        files = (path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*") if path.is_file())
        raise PrefkdError(f"no file {name} is shipped{nearest(name, files)}")
    return str(path)


def _shipped() -> dict[str, Path]:
    """All that can be run, and bases, by name; those in inner folders last, since they are variants."""
    found = {}
    for file in sorted(CONFIGS.rglob("*.yaml")):
        name = file.relative_to(CONFIGS).with_suffix("").as_posix()
        found |= {f"{name}/{held}": file / held for held in _held(file)} or {name: file}
    return dict(sorted(found.items(), key=lambda item: (item[0].count("/"), item[0].partition("/")[0])))


def _is_base(name: str) -> bool:
    return name.startswith("bases/")


def _held(file: Path) -> list[str]:
    """The names of the configs in a file of several."""
    held = _keys(file).get("configs") if file.suffix in (".yaml", ".yml") and file.is_file() else None
    return [str(name) for name in held] if isinstance(held, dict) else []


def _written_in(config: Path, key: str) -> Any:
    """What a config or its base writes under a key, None if neither does."""
    keys = _keys(config)
    if key not in keys and "base" in keys:
        try:
            keys = _keys(find_base(str(keys["base"])))
        except PrefkdError:  # reading the config will say so
            return None
    return keys.get(key)


def unreadable(path: Path, error: yaml.YAMLError | ValueError | RecursionError) -> str:
    """What to say of a YAML file that cannot be read, from what a reader raised."""
    if isinstance(error, yaml.MarkedYAMLError):
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        problem = error.problem or ""
        if twice := re.fullmatch("found duplicate key (.+)", problem):
            problem = f"the key {twice[1]} stands here for the second time; remove one"
        elif problem.startswith("but "):
            problem = f"{error.context}, {problem}"
        return f"{path}, line {line}: {problem}"
    if isinstance(error, RecursionError):
        return f"{path}: its sections are nested too deeply; use fewer levels"
    if isinstance(error, yaml.YAMLError | UnicodeDecodeError):
        return f"{path}: not a YAML text in UTF-8; save it as one"
    return f"{path}: a number or a date in it cannot be read; quote it if it is a text"


def _fault(config: Path) -> str | None:
    """Why the file of a config cannot be read, None if it can."""
    file = config if config.is_file() else config.parent
    try:
        parse(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return unreadable(file, error)
    return None


@cache
def parse(text: str) -> Any:
    """What a YAML text holds, interpolations as they are written."""
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _keys(config: Path) -> dict[Any, Any]:
    """What a config writes itself; nothing where it cannot be read, which reading it as a config will explain."""
    file = config if config.is_file() else config.parent
    try:
        keys = parse(file.read_text(encoding="utf-8"))
        found = keys if file == config else next(v for k, v in keys["configs"].items() if str(k) == config.name)
    except (OSError, ValueError, yaml.YAMLError, RecursionError, KeyError, TypeError, AttributeError, StopIteration):
        return {}
    return found if isinstance(found, dict) else {}


def _find(kind: str, name: str, shipped: dict[str, Path]) -> Path:
    if name in shipped:
        return shipped[name]
    if not name.strip():
        raise PrefkdError(f"{name!r} names no {kind}; `prefkd ls` lists all")
    path = Path(name)
    if path.is_file():
        return path
    if path.parent.is_file():
        held = _held(path.parent)
        if path.name not in held:
            raise PrefkdError(f"{path.parent} holds no {kind} {path.name}{nearest(path.name, held) if held else ''}")
        return path
    if path.is_dir():
        raise PrefkdError(f"{name} is a folder; give the path of the {kind} file in it")
    if path.suffix in (".py", ".yaml", ".yml"):
        raise PrefkdError(f"no {kind} file {name}{_hint(path.stem, shipped)}")
    raise PrefkdError(f"no {kind} is named {name}{_hint(name, shipped)}; a file of your own is given by its path")


def _hint(name: str, shipped: Iterable[str]) -> str:
    close = get_close_matches(name, shipped, n=1)
    return (f"; did you mean {close[0]}?" if close else "") + " (`prefkd ls` lists all)"


def hush_libraries() -> None:
    """Leave the terminal to prefkd: no progress bar for each file of weights, no notes about optional kernels."""
    logging.getLogger("torchao").setLevel(logging.ERROR)
    for warning in _FOR_DEVELOPERS:
        warnings.filterwarnings("ignore", message=warning)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def load_recipe(path: Path) -> ModuleType:
    """Import a recipe file. Modules next to it and in the current folder can be imported, by it and by its config.

    Raises:
        PrefkdError: If it cannot be imported, or lacks `Config` or `main`.
    """
    hush_libraries()
    for folder in (str(path.resolve().parent), os.getcwd()):
        if folder not in sys.path:
            sys.path.append(folder)  # at the end, so that it hides no installed module
    name = f"prefkd_recipe_{path.stem}"  # not the bare stem: a recipe may be called like an installed module
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PrefkdError(f"{path} is not a Python file; a recipe ends in .py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        file = os.path.relpath(error.filename or path)
        line = f", line {error.lineno}" if error.lineno else ""
        raise PrefkdError(f"{file}{line}: {error.msg}") from error
    except ImportError as error:
        raise PrefkdError(f"{path} cannot be imported: {error}") from error
    except (PrefkdError, MemoryError):
        raise
    except (Exception, SystemExit) as error:  # a file of the user's may do anything; PREFKD_DEBUG=1 shows where
        raise PrefkdError(f"{path} cannot be imported: {type(error).__name__}: {first_line(error)}") from error
    for part in ("Config", "main"):
        if not hasattr(module, part):
            raise PrefkdError(f"{path} is not a recipe: it defines no {part}; `prefkd cp` gives you one to start from")
    if not is_dataclass(module.Config):
        raise PrefkdError(f"{path} is not a recipe: its Config is not a dataclass; put @dataclass above it")
    return module
