"""What the header of a shipped config tells its reader to do."""

import re
import shlex
from itertools import takewhile
from typing import NamedTuple

from prefkd import catalog


class Run(NamedTuple):
    """A line `prefkd run RECIPE --config CONFIG OVERRIDES`."""

    recipe: str
    config: str
    overrides: list[str]
    processes: int


def header(name: str) -> str:
    """The comment at the top of a shipped config or pipeline."""
    lines = catalog.find_shipped(name).read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(takewhile(lambda line: line.startswith("#"), lines))


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
