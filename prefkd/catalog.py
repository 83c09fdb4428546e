"""The shipped recipes, configs and pipelines, found by looking into their folders."""

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from prefkd.errors import PrefkdError, nearest

# A wheel holds recipes/ and configs/ inside the package; in a checkout and an editable install they lie beside it.
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
    found = []
    for path in sorted(RECIPES.glob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        names = tuple(name for name, config in configs().items() if recipe_of(config) == path.stem)
        found.append(Recipe(path.stem, path, docstring.partition("\n")[0], names))
    return found


def configs() -> dict[str, Path]:
    """The files of all shipped configs, by name (such as demo/tis_dpo_distill)."""
    return {name: path for name, path in _yaml_files().items() if not _is_pipeline(path)}


def recipe_of(config: Path) -> str:
    """The recipe that a shipped config is for: that of the command in its first lines, `prefkd run RECIPE --config`."""
    name = re.escape(config.relative_to(CONFIGS).with_suffix("").as_posix())
    command = re.search(rf"^#.*prefkd run (\S+) --config {name}$", config.read_text(encoding="utf-8"), re.MULTILINE)
    return command[1] if command else config.stem


def pipelines() -> dict[str, Path]:
    """The files of all shipped pipelines, by name (such as demo/pipeline)."""
    return {name: path for name, path in _yaml_files().items() if _is_pipeline(path)}


def pipeline_summary(path: Path) -> str:
    """The first line of a pipeline's file, which is a comment."""
    return path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def find_recipe(name: str) -> Path:
    """The file of a shipped recipe, or of the user's own where `name` is a path.

    Raises:
        PrefkdError: If there is neither; the message names the nearest shipped recipe.
    """
    return _find("recipe", name, {recipe.name: recipe.path for recipe in recipes()})


def find_config(name: str) -> Path:
    """The file of a shipped config, or of the user's own where `name` is a path.

    Raises:
        PrefkdError: If there is neither; the message names the nearest shipped config.
    """
    return _find("config", name, configs())


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
    shipped = {recipe.name: recipe.path for recipe in recipes()} | _yaml_files()
    if name not in shipped:
        raise PrefkdError(f"no recipe, config or pipeline is named {name}{_hint(name, shipped)}")
    return shipped[name]


def shipped_file(name: str) -> str:
    """Path of a file below configs/, which a config writes as ${shipped:demo/train.jsonl}.

    Raises:
        PrefkdError: If there is no such file; the message names the nearest one.
    """
    path = CONFIGS / name
    if not path.is_file():
        files = (path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*") if path.is_file())
        raise PrefkdError(f"no file {name} is shipped{nearest(name, files)}")
    return str(path)


def _yaml_files() -> dict[str, Path]:
    """By name; those in inner folders last, since they are variants."""
    paths = sorted(CONFIGS.rglob("*.yaml"), key=lambda path: (len(path.parts), path))
    return {path.relative_to(CONFIGS).with_suffix("").as_posix(): path for path in paths}


def _is_pipeline(path: Path) -> bool:
    """Whether a file lists stages, as no config of a recipe does."""
    return re.search("^stages:", path.read_text(encoding="utf-8"), re.MULTILINE) is not None


def _find(kind: str, name: str, shipped: dict[str, Path]) -> Path:
    if name in shipped:
        return shipped[name]
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        raise PrefkdError(f"{name} is a folder; give the path of the {kind} file in it")
    if path.suffix in (".py", ".yaml", ".yml"):
        raise PrefkdError(f"no {kind} file {name}{_hint(path.stem, shipped)}")
    raise PrefkdError(f"no {kind} is named {name}{_hint(name, shipped)}; a file of your own is given by its path")


def _hint(name: str, shipped: Iterable[str]) -> str:
    close = get_close_matches(name, shipped, n=1)
    return (f"; did you mean {close[0]}?" if close else "") + " (`prefkd ls` lists all)"
