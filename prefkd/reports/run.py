"""The page of a training run: what it has learned, its curves, its answers, and how the two models split text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from prefkd.config.fields import setting
from prefkd.data.batches import ParentScores
from prefkd.data.pairs import DataConfig, load_pairs
from prefkd.data.rows import ANSWERS, INSTRUCTIONS, Contents, answer_column
from prefkd.data.steps import Microbatch
from prefkd.models.load import ModelConfig, TeacherConfig
from prefkd.models.teacher import Teacher
from prefkd.reports.alignment.answers import read_answers
from prefkd.reports.alignment.pairs import COLOUR_NAMES, show_pair
from prefkd.reports.alignment.weights import Weights, read_weights
from prefkd.reports.curves import HELD_OUT, SMOOTHED, RunCurves, panels, read_metrics, smooth
from prefkd.reports.page import digits, number, render_page
from prefkd.reports.pairs import FEWEST_PARENTS, ShownPair
from prefkd.training.metrics import Outcome
from prefkd.training.run import TrainingRun
from prefkd.training.samples import changed_answers
from prefkd.weighting import WeightConfig

FILE = "report.html"
SHOWN_PAIRS = 4
# A page need not draw more points of a curve than its screen has dots.
MOST_POINTS = 500


@dataclass(frozen=True)
class Panel:
    """A curve on the page, in a square of 100 by 100 whose top left corner is 0, 0.

    Attributes:
        name: The metric.
        low, high: Values at the bottom and at the top, in three digits.
        first, last: Steps at the left and the right.
        steps, smoothed, held_out: Points, "x,y x,y ...".
        dots: Points of held-out pairs with their texts: x, y, text.
    """

    name: str
    low: str
    high: str
    first: int
    last: int
    steps: str
    smoothed: str
    held_out: str
    dots: list[tuple[float, float, str]]


def write_report(recipe: str, config: Any, run: TrainingRun, outcome: Outcome) -> dict[str, object]:
    """Write report.html into the folder of a finished run; all ranks call it, the main one writes.

    Args:
        recipe: Name of the recipe.
        config: Its config.
        run: The run that trained it.
        outcome: Its held-out metrics.

    Returns:
        What is written, by the name that it has at the end of the run.
    """
    path: Path = config.output_dir / FILE
    if not run.ranks.is_main:
        return {}
    model = setting(config, ModelConfig, but=TeacherConfig)
    teacher = next((part for part in vars(run).values() if isinstance(part, Teacher)), None)
    pairs, weights = (_shown_pairs(config, run, teacher)) if teacher is not None else ([], None)
    rows, unfinished = read_metrics(config.output_dir / "metrics.jsonl")
    curves = RunCurves(recipe, config.output_dir / "metrics.jsonl", rows, unfinished)
    constant = curves.constant
    usual = [name for name in (*panels([curves]), *(curves.metrics & {"samples/win_rate"})) if name not in constant]
    results = outcome.results()
    page = render_page(
        "run.html",
        recipe=recipe,
        student=model.path if model is not None else config.output_dir,
        teacher=teacher.config.path or teacher.description if teacher is not None else None,
        data=run.description["data"],
        results=[
            (name.removeprefix(HELD_OUT), outcome.before[name], outcome.written[name], outcome.in_memory[name])
            for name in results
        ],
        unchanged=[
            (name.removeprefix(HELD_OUT), value) for name, value in outcome.before.items() if name not in results
        ],
        held_out=len(run.held_out_pairs),
        panels=[_panel(curves, name) for name in usual],
        more=[_panel(curves, name) for name in sorted(curves.metrics - {*usual, *constant})],
        constant=[(name, digits(constant[name])) for name in sorted(constant) if HELD_OUT + name not in outcome.before],
        answers=changed_answers(config.output_dir),
        pairs=pairs,
        legend=list(enumerate(COLOUR_NAMES)),
        weight_legend=weights.scale.legend if weights else None,
        settings=(config.output_dir / "config.yaml").read_text(encoding="utf-8"),
    )
    path.write_text(page, encoding="utf-8")
    return {"report": path}


def _panel(curves: RunCurves, metric: str) -> Panel:
    steps, values = curves.curve(metric)
    held_steps, held_values = curves.curve(HELD_OUT + metric)
    smoothed = smooth(values, max(1, round(len(values) * SMOOTHED)))
    finite = [value for value in (*values, *held_values) if np.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    first, last = 0, max(*steps, *held_steps, 1)

    def place(step: int, value: float) -> tuple[float, float]:
        height = (value - low) / (high - low) if high > low else 0.5
        return round(100 * (step - first) / (last - first), 2), round(98 - 96 * height, 2)

    def line(xs: Sequence[int], ys: Sequence[float]) -> str:
        points = [(x, y) for x, y in zip(xs, ys, strict=True) if np.isfinite(y)]
        points = points[:: max(1, len(points) // MOST_POINTS)]
        return " ".join("{},{}".format(*place(x, y)) for x, y in points)

    held_out = [(step, value) for step, value in zip(held_steps, held_values, strict=True) if np.isfinite(value)]
    return Panel(
        name=metric,
        low=digits(low),
        high=digits(high),
        first=first,
        last=last,
        steps=line(steps, values),
        smoothed=line(steps, smoothed),
        held_out=line(held_steps, held_values),
        dots=[(*place(step, value), f"step {step}: {number(value, 4)}") for step, value in held_out],
    )


def _shown_pairs(config: Any, run: TrainingRun, teacher: Teacher) -> tuple[list[ShownPair], Weights | None]:
    """A few training pairs as both models read them, and the weights of their parents if they differ."""
    lengths = np.array([run.train_pairs[answer_column(answer, "parents")] for answer in ANSWERS]).min(0)
    ordered = np.flatnonzero(lengths >= FEWEST_PARENTS) if lengths.max() >= FEWEST_PARENTS else np.arange(len(lengths))
    aligned = run.train_pairs.select(ordered[:SHOWN_PAIRS])
    data, sides = setting(config, DataConfig), {"student": run.side, "teacher": teacher.side}
    assert data is not None, "a recipe trains on pairs"
    weights = _weights(config, run, teacher, aligned) if data.has_rivals else None
    shown = [
        show_pair(pair, "from the training pairs", sides, weights.of_pair(pair.file, pair.row) if weights else None)
        for pair in read_answers(load_pairs(data).train, aligned, sides)
    ]
    return shown, weights


def _weights(config: Any, run: Any, teacher: Teacher, aligned: Dataset) -> Weights | None:
    """Weights from the scores in the data set, or from a teacher in memory, which reads the shown pairs again."""
    settings = setting(config, WeightConfig)
    if settings is None or settings.contrast == "uniform" or run.ranks.world_size > 1:
        return None
    if "positive" not in Contents.of(aligned).scores:
        batch = run.collate(aligned, Microbatch(list(range(len(aligned))))).to(run.ranks.device)
        logprobs = teacher.logprobs(batch)
        if "positive" not in logprobs:
            return None
        scores = {name: logprobs[name] for name in INSTRUCTIONS}
        # No weight depends on a reference, which may be the student as it follows itself.
        columns = ParentScores(torch.zeros_like(scores["positive"]), **scores).columns(batch.parent_mask)
        for name in columns[0].keys() - aligned.column_names:
            aligned = aligned.add_column(name, [row[name].tolist() for row in columns])  # pyright: ignore
    return read_weights(aligned, settings)
