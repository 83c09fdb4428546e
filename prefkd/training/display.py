"""What a run shows: its plan, its progress, its result. Rank 0 only; other ranks stay silent.

On a terminal progress is a bar. In a log (nohup, Slurm, CI) it is a line every so often.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from textwrap import shorten
from typing import Protocol

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from prefkd.ranks import Ranks
from prefkd.terminal import WIDTH, console
from prefkd.training.metrics import RESULTS, Outcome
from prefkd.training.samples import ChangedAnswer

# Seconds between two lines of progress in a log.
LOG_INTERVAL = 10.0
# More of an answer, and more answers, are in the report.
LONGEST_ANSWER, SHOWN_ANSWERS = 300, 3


class Bar(Protocol):
    """Progress that is being shown."""

    def advance(self, metrics: str = "", steps: int = 1) -> None:
        """Go some steps on and show the given metrics."""
        ...


class Display:
    """The terminal of a run, or its log.

    Args:
        ranks: Only the main rank prints.
    """

    def __init__(self, ranks: Ranks):
        self.console = console(quiet=not ranks.is_main)
        if not self.console.is_terminal:
            self.console.width = WIDTH  # a log is not a window, whatever COLUMNS says
        self._open: Progress | None = None

    def say(self, text: str) -> None:
        """Print a line, however long."""
        self.console.print(text, soft_wrap=True)

    def table(self, title: str, rows: Mapping[str, object]) -> None:
        """Print names and values under a title."""
        table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for name, value in rows.items():
            table.add_row(name, str(value))
        self.console.print(table)

    def result(self, outcome: Outcome, files: Mapping[str, object], next_step: str) -> None:
        """Print the held-out metrics before training and of what was written, the files, and what to do next."""
        before, written, in_memory = outcome.before, outcome.written, outcome.in_memory
        rows = {
            name: f"{before[name]:.4f} -> {written[name]:.4f}  (in memory {in_memory[name]:.4f})"
            for name in [*RESULTS, *sorted(name for name in before if name.startswith("held_out/accuracy/"))]
            if name in before
        }
        kept = [(name, outcome.kept(name)) for name in ("held_out/loss", "held_out/margin") if name in before]
        if shares := [f"{share:.1%} of the change of {name}" for name, share in kept if share is not None]:
            rows["kept in the folder"] = ", ".join(shares)
        self.table("result", rows | dict(files))
        self.say(next_step)

    def answers(self, changed: Sequence[ChangedAnswer]) -> None:
        """Print what a model answered before it was trained and what it answers now."""
        for answer in changed[:SHOWN_ANSWERS]:
            rows = {name: shorten(text, LONGEST_ANSWER) for name, text in vars(answer).items() if name != "chosen"}
            self.table("", rows)

    @contextmanager
    def progress(self, total: int, done: int = 0) -> Iterator[Bar]:
        """Progress with the latest metrics and the time left; as a bar, all of it fits in 80 columns.

        Args:
            total: Steps of the whole.
            done: Steps that are done already.
        """
        if not self.console.is_terminal:
            lines = LogLines(self.say, total, done)
            try:
                yield lines
            finally:
                lines.close()
            return
        with self._bars() as bars:
            yield TerminalBar(bars, bars.add_task("", total=total, completed=done, metrics=""))

    @contextmanager
    def passing(self, total: int) -> Iterator[Bar]:
        """Progress of something in between, held-out pairs say, that leaves no trace if it is quick.

        In a terminal it is a second bar below that of the training, which disappears at its end.
        """
        if not self.console.is_terminal:
            yield LogLines(self.say, total)  # never closed: the last line is that of the evaluation
            return
        with self._bars(transient=True) if self._open is None else nullcontext(self._open) as bars:
            task = bars.add_task("", total=total, metrics="")
            try:
                yield TerminalBar(bars, task)
            finally:
                bars.remove_task(task)

    @contextmanager
    def _bars(self, *, transient: bool = False) -> Iterator[Progress]:
        columns = (
            BarColumn(bar_width=8),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=transient) as bars:
            self._open = bars
            try:
                yield bars
            finally:
                self._open = None


class TerminalBar:
    """A progress bar of rich."""

    def __init__(self, progress: Progress, task: TaskID):
        self._progress = progress
        self._task = task

    def advance(self, metrics: str = "", steps: int = 1) -> None:
        self._progress.update(self._task, advance=steps, metrics=metrics)


class LogLines:
    """Progress in a log: a line at most every `LOG_INTERVAL` seconds, and one for the last step.

    Args:
        say: Prints a line.
        total: Steps of the whole.
        done: Steps that were done before, which say nothing about how fast these are.
        clock: Seconds that have passed since some moment.
    """

    def __init__(
        self, say: Callable[[str], None], total: int, done: int = 0, *, clock: Callable[[], float] = time.monotonic
    ):
        self._say, self._total, self._clock = say, total, clock
        self._first = self._done = self._said = done
        self._began = self._last = clock()
        self._metrics = ""

    def advance(self, metrics: str = "", steps: int = 1) -> None:
        self._done += steps
        self._metrics = metrics
        if self._clock() - self._last >= LOG_INTERVAL:
            self._write()

    def close(self) -> None:
        """Say how far it has come, if that has not been said."""
        if self._done > self._said:
            self._write()

    def _write(self) -> None:
        self._last, self._said = self._clock(), self._done
        passed, done, left = self._last - self._began, self._done - self._first, self._total - self._done
        seconds = passed * left / max(done, 1) if left > 0 else passed
        when = f"{timedelta(seconds=round(seconds))} left" if left > 0 else f"took {timedelta(seconds=round(seconds))}"
        self._say(f"{self._done}/{self._total}  {self._metrics}{', ' if self._metrics else ''}{when}")
