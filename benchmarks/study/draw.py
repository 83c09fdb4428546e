r"""A picture of the study: what the rows have learned, and what it has cost.

    pip install '.[plot]'
    python benchmarks/study/draw.py --out runs/study --tuned --picture study.svg

Upwards: the chosen answer is more likely than the rejected one, in more of the held-out pairs. To the left: the chosen
answers are more likely. Intervals are left out, since those of the differences, which count, are in the table.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
import yaml
from matplotlib import rc_context
from matplotlib.figure import Figure
from readings import COST
from settings import HERE
from summary import ALONE, Values, names_of, read_values

from prefkd.reports.curves import COLOURS

UP = "log-prob accuracy"
# Text of an SVG stays text, and the same runs give the same file.
STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "prefkd", "axes.grid": True, "grid.color": "#d5d7dc"}


@dataclass
class Arguments:
    """What is drawn."""

    out: Path = Path("runs/study")
    """Folder of the runs."""
    rows: tuple[str, ...] = ()
    """Rows of the picture, all that have finished if none is given."""
    tuned: bool = False
    """Take the runs whose learning rate was chosen."""
    picture: Path = Path("study.svg")
    """The file, .svg or .png."""


def main(arguments: Arguments) -> None:
    known = yaml.safe_load((HERE / "rows.yaml").read_text(encoding="utf-8"))["rows"]
    rows = arguments.rows or known
    values = read_values(arguments.out, {row: names_of(arguments.out, row, tuned=arguments.tuned) for row in rows})
    with rc_context(STYLE):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axis = figure.subplots()
        # The rows lie along a rising line, so names that fall do not meet.
        name: dict[str, Any] = {"rotation": -30, "rotation_mode": "anchor", "va": "top", "fontsize": 9}
        for row, measured in values.items():
            x, y = mean(measured, COST), mean(measured, UP)
            axis.plot(x, y, "o", color=COLOURS[0 if row in ALONE else 1], markersize=7)
            axis.annotate(row, (x, y), xytext=(6, 0), textcoords="offset points", **name)
        axis.set(xlabel=f"{COST} (less is better)", ylabel=UP)
        axis.set_title("orange: learns from a teacher; blue: does not", loc="left", fontsize=10)
        axis.margins(0.12)
        axis.spines[["top", "right"]].set_visible(False)
        metadata = {"Date": None} if arguments.picture.suffix == ".svg" else None
        figure.savefig(arguments.picture, dpi=150, metadata=metadata)
    print(f"wrote {arguments.picture}")


def mean(measured: Values, metric: str) -> float:
    """Over pairs and seeds."""
    return float(np.mean(np.stack(list(measured[metric].values()))))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
