"""What a recipe sees of a task, whatever the task is, and what becomes of the parts that fail."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from prefkd.evaluation.checkpoints import Checkpoint, reason
from prefkd.evaluation.table import Failure, Series
from prefkd.training.display import Bar, Display


class Attempts:
    """Parts of an evaluation; one may fail without the others.

    Args:
        display: Where a failure is told at once.

    Attributes:
        failures: Failures so far.
    """

    def __init__(self, display: Display):
        self.display = display
        self.failures: list[Failure] = []

    @contextmanager
    def attempt(self, checkpoint: str, task: str) -> Iterator[None]:
        """What goes wrong inside is kept for the table."""
        try:
            yield
        except Exception as error:  # a model of the user's may fail in any way, and the others still count
            self.failures.append(Failure(checkpoint, task, reason(error)))
            self.display.say(f"failed: {checkpoint}, {task}: {reason(error)}")


class Task(Protocol):
    """Something that all checkpoints are asked.

    Attributes:
        name: Its name in the table.
        size: How many things one checkpoint is asked.
    """

    name: str
    size: int

    def ask(self, checkpoint: Checkpoint, bar: Bar) -> None:
        """Ask a checkpoint what it was not asked before, and keep its answers on disk."""
        ...

    def score(self, attempts: Attempts) -> None:
        """Let others judge the answers, if the task has such, now that no checkpoint is in memory."""
        ...

    def series(self) -> Iterator[Series]:
        """The numbers of the checkpoints that could be asked."""
        ...

    def notes(self) -> Iterator[str]:
        """What a reader of the table must know."""
        ...
