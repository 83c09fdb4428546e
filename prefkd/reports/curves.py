"""The curves of runs from their metrics.jsonl, drawn with matplotlib."""

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pandas import Series

from prefkd.errors import PrefkdError

USUAL = ("loss", "margin", "accuracy")
# The terms of distillation, whatever stands before or after: t2s_kd, objective/uld.
DISTILLATION = re.compile(r"(^|[/_])(kd|ce|uld|min_ed|alm|dual_space|divergence)($|[/_])")
HELD_OUT = "held_out/"
WRITTEN = "written/"  # of the saved folder: single numbers, not curves
# A training curve is smoothed over this part of its steps, since each step sees a few pairs only.
SMOOTHED = 1 / 15
COLUMNS = 3
PANEL = (4.8, 3.4)  # inches
# Okabe and Ito's colours, which the colour-blind tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#5C5F66")


@dataclass(frozen=True)
class RunCurves:
    """What a run has logged.

    Attributes:
        name: Name in the legend.
        file: Its metrics.jsonl.
        rows: The lines, each with `step`, in the order of the steps.
        unfinished: Whether the last line was cut off, and is left out.
    """

    name: str
    file: Path
    rows: list[dict[str, Any]]
    unfinished: bool

    def curve(self, metric: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric; there are gaps where it was not logged."""
        found = [(row["step"], row[metric]) for row in self.rows if isinstance(row.get(metric), int | float)]
        return [step for step, _ in found], [float(value) for _, value in found]

    @property
    def metrics(self) -> set[str]:
        """Names of all that was logged as numbers, without `held_out/`."""
        return {
            name.removeprefix(HELD_OUT)
            for row in self.rows
            for name, value in row.items()
            if isinstance(value, int | float) and name != "step" and not name.startswith(WRITTEN)
        }

    @property
    def constant(self) -> dict[str, float]:
        """The metrics that have one value in four digits, at all steps and on held-out pairs."""
        values = {name: [*self.curve(name)[1], *self.curve(HELD_OUT + name)[1]] for name in self.metrics}
        return {name: logged[0] for name, logged in values.items() if len({f"{value:.4g}" for value in logged}) == 1}


def read_runs(paths: Sequence[Path]) -> list[RunCurves]:
    """Read runs, and find the shortest names that tell them apart.

    Raises:
        PrefkdError: There is no metrics.jsonl, or a line of it is broken.
    """
    files = [path / "metrics.jsonl" if path.is_dir() else path for path in paths]
    names = _names([file.resolve().parent if file.name == "metrics.jsonl" else file.resolve() for file in files])
    runs = []
    for name, path, file in zip(names, paths, files, strict=True):
        if not path.exists():
            raise PrefkdError(f"{path} does not exist; name the folder of a run")
        if not file.is_file():
            raise PrefkdError(f"{path} holds no metrics.jsonl; name the folder of a run (its output_dir)")
        runs.append(RunCurves(name, file, *read_metrics(file)))
    return runs


def read_metrics(file: Path) -> tuple[list[dict[str, Any]], bool]:
    """The lines of a metrics.jsonl, and whether an unfinished last line was left out.

    Where the steps go back, a run was begun or resumed once more: what it writes replaces what was there.

    Raises:
        PrefkdError: A line is broken, or there is none.
    """
    lines = file.read_bytes().split(b"\n")
    rows: list[dict[str, Any]] = []
    unfinished = False
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                unfinished = True
                break
            raise PrefkdError(f"{file}, line {number}: not JSON; fix or delete the line") from error
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise PrefkdError(f"{file}, line {number}: not an object with an integer as step; fix or delete the line")
        while rows and rows[-1]["step"] >= row["step"]:
            rows.pop()
        rows.append(row)
    if not rows:
        raise PrefkdError(f"{file} holds no step yet; wait until the run has written one")
    return rows, unfinished


def panels(runs: Sequence[RunCurves], asked: Sequence[str] = ()) -> list[str]:
    """The metrics to draw.

    Raises:
        PrefkdError: A metric that is asked for is in no run, or none of the usual ones is in any.
    """
    known = set().union(*(run.metrics for run in runs))
    for name in asked:
        if name.removeprefix(HELD_OUT) not in known:
            raise PrefkdError(f"no run has the metric {name}; they have {', '.join(sorted(known))}")
    if asked:
        return list(dict.fromkeys(name.removeprefix(HELD_OUT) for name in asked))
    chosen = [name for name in USUAL if name in known] + sorted(filter(DISTILLATION.search, known - set(USUAL)))
    if not chosen:
        raise PrefkdError(f"no run has {', '.join(USUAL)}; name others with --metric: {', '.join(sorted(known))}")
    return chosen


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Means of up to `window` values around each; values that are not finite are left out."""
    found = Series(values, dtype=float).replace([math.inf, -math.inf], math.nan)
    return found.rolling(window // 2 * 2 + 1, center=True, min_periods=1).mean().tolist()


def draw(runs: Sequence[RunCurves], files: Sequence[Path], asked: Sequence[str] = ()) -> None:
    """Draw a panel for each metric, all runs in it, and write it to files whose suffixes say the format.

    Raises:
        PrefkdError: matplotlib is not installed, or there is nothing to draw.
    """
    names = panels(runs, asked)
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ImportError as error:
        raise PrefkdError("drawing needs matplotlib; install it with pip install 'prefkd[plot]'") from error
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    # Text of an SVG stays text, and the same runs give the same file.
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "prefkd",
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with rc_context(style):
        figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows + 0.6), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for name, axis in zip(names, axes, strict=False):
            _draw_panel(axis, name, runs)
        for axis in axes[len(names) :]:
            axis.set_visible(False)
        kinds = [
            Line2D([], [], color="#5C5F66", linewidth=1.8),
            Line2D([], [], color="#5C5F66", linewidth=1.2, linestyle="--", marker="o", markersize=5),
        ]
        handles = [Line2D([], [], color=_colour(i), linewidth=4) for i in range(len(runs))] + kinds
        labels = [_plain(run.name) for run in runs] + ["training, smoothed", "held-out pairs"]
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 2 * columns), frameon=False)
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            metadata = {"Date": None} if file.suffix == ".svg" else None
            figure.savefig(file, dpi=150, metadata=metadata)


def _draw_panel(axis: Any, metric: str, runs: Sequence[RunCurves]) -> None:
    for i, run in enumerate(runs):
        steps, values = run.curve(metric)
        if steps:
            window = max(1, round(len(steps) * SMOOTHED))
            if window > 1:
                axis.plot(steps, values, color=_colour(i), linewidth=0.7, alpha=0.3)
            axis.plot(steps, smooth(values, window), color=_colour(i), linewidth=1.8)
        steps, values = run.curve(HELD_OUT + metric)
        axis.plot(
            steps, values, "o--", color=_colour(i), linewidth=1.2, markersize=5, markeredgecolor="white", zorder=3
        )
    axis.set_title(_plain(metric), loc="left", fontsize=11)
    axis.set_xlabel("step")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(color="#d5d7dc", linewidth=0.6)
    axis.set_axisbelow(True)
    if metric.endswith("accuracy"):
        axis.set_ylim(-0.02, 1.02)


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def _plain(text: str) -> str:
    """A text in which matplotlib sees no formula, and no mark of what a legend leaves out."""
    escaped = text.replace("$", r"\$")
    return f"\u200b{escaped}" if escaped.startswith("_") else escaped


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that differ from each other; whole paths where they are the same."""
    for length in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = [os.path.join(*folder.parts[-length:]) for folder in folders]
        if len(set(names)) == len(set(folders)):
            return names
    return [str(folder) for folder in folders]
