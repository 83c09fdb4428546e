"""What a run shows on the terminal: its plan, a progress bar, its result. Rank 0 only; other ranks stay silent."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from torch import nn

from prefkd.ranks import Ranks


class Display:
    """The terminal of a run.

    Args:
        ranks: Only the main rank prints.
    """

    def __init__(self, ranks: Ranks):
        self.console = Console(quiet=not ranks.is_main, highlight=False)

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

    def result(
        self, before: Mapping[str, float], after: Mapping[str, float], files: Mapping[str, object], next_step: str
    ) -> None:
        """Print the held-out metrics before and after, what was written, and what to do next."""
        shown = ("held_out/loss", "held_out/accuracy", "held_out/logprob_accuracy", "held_out/margin")
        rows = {name: f"{before[name]:.4f} -> {after[name]:.4f}" for name in shown if name in before}
        self.table("result", rows | dict(files))
        self.say(next_step)

    @contextmanager
    def progress(self, total: int, done: int = 0) -> Iterator["Bar"]:
        """A progress bar with the latest metrics and the time left; all of it fits in 80 columns.

        Args:
            total: Steps of the whole.
            done: Steps that are done already.
        """
        columns = (
            BarColumn(bar_width=8),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            yield Bar(progress, progress.add_task("", total=total, completed=done, metrics=""))


def parameter_count(module: nn.Module | None) -> str:
    """Number of parameters for a reader, such as `135 M`."""
    count = sum(parameter.numel() for parameter in module.parameters()) if module is not None else 0
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.0f} M"


class Bar:
    """A running progress bar."""

    def __init__(self, progress: Progress, task: TaskID):
        self._progress = progress
        self._task = task

    def advance(self, metrics: str = "", steps: int = 1) -> None:
        """Go some steps on and show the given metrics."""
        self._progress.update(self._task, advance=steps, metrics=metrics)
