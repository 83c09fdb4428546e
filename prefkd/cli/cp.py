"""`prefkd cp`."""

import shlex
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, arg

from prefkd import catalog
from prefkd.cli.output import say
from prefkd.errors import PrefkdError


def cp(
    name: Annotated[str, arg(metavar="NAME")],
    dest: Annotated[Path, arg(metavar="DEST")],
    /,
    *,
    force: Annotated[FlagCreatePairsOff[bool], arg(help_behavior_hint="")] = False,
) -> None:
    """Copy a recipe, a config or a pipeline to a file of your own. A config is merged with its base.

    For example:
        prefkd cp demo/tis_dpo_distill ./mine.yaml
        prefkd cp tis_dpo_distill ./mine.py

    Args:
        name: Name of a recipe, a config or a pipeline, as `prefkd ls` shows it.
        dest: File to write, with or without its suffix, or a folder. Missing folders are created.
        force: Overwrite an existing file.
    """
    source = catalog.find_shipped(name)
    suffix = ".py" if source.suffix == ".py" else ".yaml"
    target = dest / f"{source.stem}{suffix}" if dest.is_dir() else dest if dest.suffix else dest.with_suffix(suffix)
    if target.suffix != suffix:
        raise PrefkdError(f"{name} is a {suffix} file; give {target} that suffix, or none")
    if target.exists() and not force:
        raise PrefkdError(f"{target} already exists; name another file, or overwrite it with --force")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(_text(source), encoding="utf-8", newline="")
    say(f"wrote {target}\nrun it: {_run_command(source, target)}")


def _text(source: Path) -> str:
    if source.suffix == ".py":
        return source.read_bytes().decode()
    from prefkd.config import written_out

    return written_out(source)


def _run_command(source: Path, copy: Path) -> str:
    """How a copy is run: a recipe with its first shipped config, a config with its own recipe, a pipeline as it is."""
    path = shlex.quote(str(copy))
    if source in catalog.pipelines().values():
        return f"prefkd pipeline {path}"
    if source.suffix != ".py":
        return f"prefkd run {catalog.recipe_of(source)} --config {path}"
    configs = next(recipe.configs for recipe in catalog.recipes() if recipe.path == source)
    return f"prefkd run {path} --config {configs[0] if configs else 'CONFIG'}"
