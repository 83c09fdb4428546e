"""`prefkd ls`."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefkd import catalog


def ls() -> None:
    """List the shipped recipes with their configs, and the pipelines.

    For example:
        prefkd ls
    """
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("recipe with its configs, or pipeline", no_wrap=True)
    table.add_column("what it does")
    for recipe in catalog.recipes():
        table.add_row(Text(recipe.name, "bold"), Text(recipe.summary))
        for config in recipe.configs:
            table.add_row(Text(f"  {config}"), "")
    table.add_section()
    for name, path in catalog.pipelines().items():
        table.add_row(Text(name, "bold"), Text(catalog.pipeline_summary(path)))
    Console().print(table)
