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
    ("catalog", "terminal"),
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
    found = [line.strip() for line in lines if DANGLING.match(line)]
    assert not found, "say what it is, with a noun"


def test_no_recipe_and_no_module_guesses_what_a_config_has() -> None:
    guesses = re.compile(r"\b(has|get)attr\(config\b")
    outside = [path for path in SOURCES if path.parent.name != "config"]
    found = [path.name for path in outside if guesses.search(path.read_text(encoding="utf-8"))]
    assert not found, "ask `prefkd.config.fields`"


def test_columns_of_rows_are_spelled_in_one_module() -> None:
    """The tokens, parents and scores of an answer: `prefkd.data.rows` has their names, and says what is there."""
    spelled = re.compile(
        r"[\"'](student|teacher|\{side\})_(prompt|chosen|rejected|\{answer\})"
        r"|[\"'](chosen|rejected|\{answer\})_(parents|ends|characters|single|reference|positive|negative)[\"']"
    )
    found = [
        f"{path.name}: {line.strip()}"
        for path in SOURCES
        if path.parts[-2:] != ("data", "rows.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if spelled.search(line)
    ]
    assert not found


def test_contributing_answers_are_true() -> None:
    """Each file of an answer is there, and each name stands in one of its files."""
    root = PACKAGE.parent
    lines = (root / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Where do I look?")[2].splitlines()
    answers = [line.split("|")[2] for line in lines if line.startswith("| ")]
    checked = 0
    for answer in answers:
        words = re.findall(r"`([^`]+)`", answer)
        files = [root / word for word in words if "/" in word]
        assert all(file.exists() for file in files), answer
        text = "".join(file.read_text(encoding="utf-8") for file in files if file.is_file())
        for name in (word.lstrip("@") for word in words if "/" not in word and " " not in word):
            assert name in text, f"{name} is not in {answer}"
            checked += 1
    assert checked > 8
