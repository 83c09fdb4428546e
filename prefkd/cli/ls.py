"""`prefkd ls`."""

from pathlib import PurePosixPath

from rich.table import Table
from rich.text import Text

from prefkd import catalog
from prefkd.cli.output import say
from prefkd.terminal import console


def ls() -> None:
    """List the shipped recipes, their configs and the pipelines.

    For example:
        prefkd ls
    """
    recipes = catalog.recipes()
    _print("recipe", "what it does", {recipe.name: recipe.summary for recipe in recipes})
    recipe_of = {config: recipe.name for recipe in recipes for config in recipe.configs}
    # In each folder the configs that are named after their recipe, then the others with what they are for.
    folders: dict[str, dict[str, list[str]]] = {}
    for config in catalog.configs():
        path, recipe = PurePosixPath(config), recipe_of[config]
        group = "" if recipe == path.name else f"for {recipe}: "
        folders.setdefault(f"{path.parent}/", {}).setdefault(group, []).append(path.name)
    lines = {
        folder: "; ".join(group + ", ".join(names) for group, names in sorted(groups.items()))
        for folder, groups in folders.items()
    }
    _print("configs in", "each named after its recipe", lines)
    summaries = {name: catalog.pipeline_summary(path) for name, path in catalog.pipelines().items()}
    _print("pipeline", "what it does", summaries)
    first = recipes[0].configs[0]
    say(f"a config is run as `prefkd run {recipe_of[first]} --config {first}`")


def _print(title: str, explanation: str, rows: dict[str, str]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(title, no_wrap=True)
    table.add_column(explanation, overflow="fold")
    for name, text in rows.items():
        table.add_row(Text(name, "bold"), Text(text))
    console().print(table, "")
