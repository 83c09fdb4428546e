"""Rules of the house: imports fall straight down, and a line of a docstring can be read alone."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "prefkd"
SOURCES = sorted([*PACKAGE.rglob("*.py"), *PACKAGE.parent.glob("recipes/*.py")])
DANGLING = re.compile(r"\s+[a-z_*][a-z_0-9, *]*: (Of|Those|That|What|The same)\b")
FLOORS = (
    ("method", "errors", "files", "keys"),
    ("catalog",),
    ("config",),
    ("ranks",),
    ("data",),
    ("weighting",),
    ("models",),
    ("demo",),
    ("training",),
    ("reports", "pipeline"),
    ("estimate", "evaluation"),
    ("candidates", "proposal"),
    ("cli",),
    ("__main__",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module == "prefkd":
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prefkd."):
            yield str(node.module).split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (name.name.split(".")[1] for name in node.names if name.name.startswith("prefkd."))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_import_climbs(path: Path) -> None:
    own = room_of(path)
    if own == "__init__":
        return
    for room in imported_rooms(path.read_text(encoding="utf-8")):
        below = FLOOR_OF[room] < FLOOR_OF[own]
        assert room == own or below, f"{own} imports {room}, which is not below it"


def test_a_climbing_import_is_seen() -> None:
    rooms = list(imported_rooms("from prefkd import cli\nimport prefkd.training.run\nfrom prefkd.data.pairs import x"))
    assert rooms == ["cli", "training", "data"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_docstring_line_stands_alone(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [
        line.strip() for line in lines if re.match(r"\s+[a-z_*][a-z_0-9, *]*: (Of|Those|That|What|The same)\b", line)
    ]
    assert not found, "say what it is, with a noun"
