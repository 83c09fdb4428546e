"""The table: every metric of every checkpoint with its interval, and the paired difference to the baseline."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from prefkd.evaluation.statistics import Interval, bootstrap_interval, normal_interval, paired_difference


@dataclass(frozen=True)
class Series:
    """The numbers of one checkpoint under one metric.

    Attributes:
        task: The task, such as the name of the data.
        subset: The part of the data; empty for all of it.
        metric: Name of the metric.
        checkpoint: Who is measured.
        values: Item (pair, prompt, question) -> number; the mean is reported.
        reported: Mean and standard error (None if that is not known either), where the items themselves are not known;
            `values` is then empty.
        is_percent: Whether a reader wants it in percent.
    """

    task: str
    subset: str
    metric: str
    checkpoint: str
    values: Mapping[str, float] = field(default_factory=dict)
    reported: tuple[float, float | None] | None = None
    is_percent: bool = True


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        count: Items that all checkpoints of this metric have; None where only mean and standard error are known.
        value, low, high: The mean and its 95 % interval, if that is known.
        difference, difference_low, difference_high: The mean difference to the baseline and its 95 % interval, None for
            the baseline itself.
        is_percent: Whether a reader wants it in percent.
    """

    task: str
    subset: str
    metric: str
    checkpoint: str
    count: int | None
    value: float
    low: float | None
    high: float | None
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    is_percent: bool


@dataclass(frozen=True)
class Failure:
    """Something that could not be evaluated."""

    checkpoint: str
    task: str
    reason: str


@dataclass(frozen=True)
class ResultTable:
    """What an evaluation has found.

    Attributes:
        baseline: The checkpoint that the others are compared with, or None.
        rows: The rows, sorted by metric, the checkpoints in the order of the config.
        failures: Parts that could not be evaluated.
        notes: Remarks on how the numbers came about.
    """

    baseline: str | None
    rows: list[Row]
    failures: list[Failure]
    notes: list[str]

    def terminal(self) -> Group:
        """The table for the terminal."""
        table = RichTable(box=None, padding=(0, 2, 0, 0), title="result", title_justify="left")
        for name, justify in zip(self._header(), ("left", "left", "left", "right", "left", "left"), strict=False):
            table.add_column(name, justify=justify, no_wrap=name == "checkpoint")  # pyright: ignore[reportArgumentType]
        for cells in self._cells():
            table.add_row(*cells)
        below = [Text(f"failed: {failure.checkpoint}, {failure.task}: {failure.reason}") for failure in self.failures]
        return Group(table, *below, *map(Text, self.notes))

    def markdown(self) -> str:
        """The table for a README or a report."""
        lines = [self._header(), ["---"] * len(self._header()), *self._cells()]
        table = "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
        failures = (f"- failed: {failure.checkpoint}, {failure.task}: {failure.reason}\n" for failure in self.failures)
        notes = (f"- {note}\n" for note in self.notes)
        below = "".join([*failures, *notes])
        return f"{table}\n{below}" if below else table

    def json(self) -> str:
        """All of it, numbers in full."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    def csv(self) -> str:
        """The rows, and a row with a reason for each failure."""
        text = io.StringIO()
        names = [*Row.__dataclass_fields__, "failed"]
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in self.rows)
        for failure in self.failures:
            writer.writerow({"task": failure.task, "checkpoint": failure.checkpoint, "failed": failure.reason})
        return text.getvalue()

    def write(self, folder: Path) -> list[Path]:
        """Write table.md, table.json and table.csv."""
        folder.mkdir(parents=True, exist_ok=True)
        contents = {"table.md": self.markdown(), "table.json": self.json(), "table.csv": self.csv()}
        for name, content in contents.items():
            (folder / name).write_text(content, encoding="utf-8")
        return [folder / name for name in contents]

    def _header(self) -> list[str]:
        header = ["task", "metric", "checkpoint", "n", "value [95 % interval]"]
        return [*header, f"difference to {self.baseline}"] if self.baseline else header

    def _cells(self) -> Iterator[list[str]]:
        for row in self.rows:
            cells = [
                f"{row.task} / {row.subset}" if row.subset else row.task,
                row.metric.replace("_", " "),
                row.checkpoint,
                "" if row.count is None else str(row.count),
                _interval((row.value, row.low, row.high), row.is_percent),
            ]
            if self.baseline:
                difference = (row.difference, row.difference_low, row.difference_high)
                cells.append(_interval(difference, row.is_percent, sign="+"))
            yield cells


def make_rows(series: Sequence[Series], *, baseline: str | None, resamples: int, seed: int) -> list[Row]:
    """A row for each series. Checkpoints of one metric are compared on the items that all of them have.

    Args:
        series: In the order of the checkpoints.
        baseline: Name of the checkpoint that the others are compared with.
        resamples, seed: Settings of the bootstrap.
    """
    groups: dict[tuple[str, str, str], list[Series]] = {}
    for one in series:
        groups.setdefault((one.task, one.subset, one.metric), []).append(one)
    return [row for group in groups.values() for row in _group_rows(group, baseline, resamples, seed)]


def _group_rows(group: Sequence[Series], baseline: str | None, resamples: int, seed: int) -> Iterator[Row]:
    with_values = [one for one in group if one.values]
    first = with_values[0].values if with_values else ()
    common = [key for key in first if all(key in one.values for one in with_values)]
    if with_values and not common:
        return
    base = next((one for one in group if one.checkpoint == baseline), None)

    def numbers(one: Series) -> np.ndarray:
        return np.array([one.values[key] for key in common])

    for one in group:
        other = base if base is not None and base is not one and bool(base.values) == bool(one.values) else None
        value = bootstrap_interval(numbers(one), resamples=resamples, seed=seed) if one.values else _reported(one)
        difference = None
        if other is not None and one.values:
            difference = paired_difference(numbers(one), numbers(other), resamples=resamples, seed=seed)
        elif other is not None:
            difference = _independent_difference(one, other)
        low, high = (None, None) if math.isnan(value.low) else (value.low, value.high)
        no_interval = difference is None or math.isnan(difference.low)
        yield Row(
            task=one.task,
            subset=one.subset,
            metric=one.metric,
            checkpoint=one.checkpoint,
            count=len(common) if one.values else None,
            value=value.mean,
            low=low,
            high=high,
            difference=difference.mean if difference else None,
            difference_low=difference.low if difference and not no_interval else None,
            difference_high=difference.high if difference and not no_interval else None,
            is_percent=one.is_percent,
        )


def _reported(one: Series) -> Interval:
    """The interval of a mean that is told without its items; no numbers as its ends if it has no standard error."""
    assert one.reported is not None, "a series has values or a reported mean"
    mean, error = one.reported
    return normal_interval(mean, math.nan if error is None else error)


def _independent_difference(one: Series, other: Series) -> Interval:
    """The difference of two means whose items are not known, as if these were not the same."""
    assert one.reported is not None and other.reported is not None, "neither has values"
    (mean, error), (other_mean, other_error) = one.reported, other.reported
    if error is None or other_error is None:
        return normal_interval(mean - other_mean, math.nan)
    return normal_interval(mean - other_mean, math.hypot(error, other_error))


def _interval(numbers: tuple[float | None, float | None, float | None], is_percent: bool, sign: str = "") -> str:
    """Mean, low and high for a reader, as far as they are known."""
    scale, digits = (100, 1) if is_percent else (1, 3)
    mean, low, high = ("" if number is None else f"{number * scale:{sign}.{digits}f}" for number in numbers)
    unit = " %" if is_percent and mean else ""
    return f"{mean}{unit} [{low}, {high}]" if low else f"{mean}{unit}"
