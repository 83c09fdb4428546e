"""The progress bars of other libraries (datasets, lm-eval) where standard error is a log: lines, and few of them."""

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any, TextIO

# What tqdm draws: `Aligning:  45%|████▌     | 540/1200 [00:12<00:15, 44.6 examples/s]`.
_BAR = re.compile(r"(?P<title>.*?):? *\d+%\|.*\| *(?P<count>\S+/\S+) \[.*<(?P<left>[^,]+), *(?P<speed>[^\],]+)")
_CODES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@contextmanager
def bars_as_lines() -> Iterator[None]:
    """Inside, bars that are drawn on standard error become lines, unless it is a terminal."""
    if sys.stderr.isatty():
        yield
        return
    lines: Any = BarLines(sys.stderr)
    with redirect_stderr(lines):
        yield


class BarLines:
    """A stream in front of a log. A bar that is done within `LOG_INTERVAL` says nothing, a longer one a line each.

    Args:
        stream: The log.
        clock: Seconds that have passed since some moment.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic):
        self._stream, self._clock = stream, clock
        self._title, self._count, self._last = "", "", 0.0
        self._in_bar = False

    def write(self, text: str) -> int:
        if text.startswith("\r"):
            self._in_bar = True
            self._draw(_CODES.sub("", text).strip())
        elif self._in_bar and text in ("", "\n", "\x1b[A"):  # how a bar ends
            self._in_bar = text != "\n"
        else:
            self._in_bar = False
            self._stream.write(text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _draw(self, bar: str) -> None:
        from prefkd.training.display import LOG_INTERVAL  # imports torch; who draws a bar has done so

        found = _BAR.match(bar)
        title, now = (found["title"] if found else bar.partition(":")[0]), self._clock()
        if title != self._title:
            self._title, self._count, self._last = title, "", now
        if bar and now - self._last >= LOG_INTERVAL:
            line = f"{title}: {found['count']}, {found['speed'].strip()}, {found['left']} left" if found else bar
            count = found["count"] if found else bar
            if count != self._count:  # tqdm draws a bar that waits again and again
                self._count, self._last = count, now
                self._stream.write(f"{line}\n")
                self._stream.flush()
