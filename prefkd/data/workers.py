"""Worker processes: how many there can be, and how they come by large objects."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import multiprocess


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def one_thread_in_workers() -> None:
    """Keep a worker process from tokenizing on all cores: its siblings are on them."""
    if multiprocess.parent_process() is not None:  # pyright: ignore[reportAttributeAccessIssue]
        os.environ["TOKENIZERS_PARALLELISM"] = "false"


@contextmanager
def same_environment() -> Iterator[None]:
    """Keep `os.environ` the object that it is: datasets puts a copy in its place when it maps in several processes.

    Whoever holds the old one, rich for the width of the terminal, would not see what is set later.
    """
    environment = os.environ
    yield
    os.environ = environment  # noqa: B003


class Shared:
    """Something large for worker processes. A forked one inherits it; to send it a tokenizer can take ten seconds."""

    alive: ClassVar[WeakValueDictionary[int, "Shared"]] = WeakValueDictionary()

    def __init__(self, value: Any):
        self.value = value
        self.alive[id(self)] = self

    def __reduce__(self):
        if multiprocess.get_start_method() == "fork":  # pyright: ignore[reportAttributeAccessIssue]
            return _inherited, (id(self),)
        return Shared, (self.value,)


def _inherited(key: int) -> Shared:
    return Shared.alive[key]
