"""What the tests of recipe evaluate share: a run through the command line, and what is read from its table."""

import json
from pathlib import Path

from tests.recipes.runs import start


def run_evaluation(settings: str, out: Path, *overrides: str, code: int = 0) -> dict[str, list]:
    """Run the recipe with some YAML and return what is in table.json, nothing if it wrote none."""
    start("evaluate", settings, out, *overrides, code=code)
    return table(out) if (out / "table.json").is_file() else {}


def table(out: Path) -> dict[str, list]:
    return json.loads((out / "table.json").read_text())


def pick(found: dict[str, list], **wanted: str) -> dict:
    """The one row of a table that is about something."""
    (row,) = (row for row in found["rows"] if all(row[name] == value for name, value in wanted.items()))
    return row
