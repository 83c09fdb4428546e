"""What the header of a shipped file of configs tells its reader to do."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from prefkd import catalog

FILES = sorted(
    path
    for path in catalog.CONFIGS.rglob("*.yaml")
    if path.parent.name != "bases" and path not in catalog.pipelines().values()
)


class Run(NamedTuple):
    """A line `prefkd run RECIPE --config CONFIG OVERRIDES`."""

    recipe: str
    config: str
    overrides: list[str]
    processes: int

    @property
    def path(self) -> Path:
        """The config that it runs."""
        return catalog.find_run(self.recipe, self.config)[1]


def header(name: str) -> str:
    """The comment at the top of a file below configs/, named without its suffix."""
    return catalog.header_of(catalog.CONFIGS / f"{name}.yaml")


def downloads(text: str) -> list[str]:
    """The models that it fetches."""
    return re.findall(r"^#   prefkd download (\S+)$", text, re.MULTILINE)


def runs(text: str) -> list[Run]:
    """The runs that it names."""
    found = []
    for line in re.findall(r"^#   prefkd run (.+)$", text, re.MULTILINE):
        recipe, option, config, *rest = shlex.split(line)
        assert option == "--config", line
        several = "--nproc-per-node" in rest
        processes = int(rest.pop()) if several else 1
        found.append(Run(recipe, config, rest[:-1] if several else rest, processes))
    return found
