"""What is printed: tables in one style, and lines that stay whole in a pipe or a file."""

import os
import re
import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

# Columns of a pipe or a file: nobody looks at it in a window, and a program that reads it wants lines whole.
WIDTH = 1000
_BLANKS = re.compile(" +$", re.MULTILINE)


def console(*, quiet: bool = False) -> Console:
    """What to print on. Outside a terminal lines are whole, unless COLUMNS is set, and none ends in blanks."""
    made = Console(quiet=quiet, highlight=False)
    if not made.is_terminal:
        made.file = _Trimmed()  # pyright: ignore[reportAttributeAccessIssue]
        if "COLUMNS" not in os.environ:
            made.width = WIDTH
    return made


class _Trimmed:
    """Standard output without the blanks to which rich fills up the cells of a table."""

    def write(self, text: str) -> int:
        return sys.stdout.write(_BLANKS.sub("", text))

    def flush(self) -> None:
        sys.stdout.flush()

    def isatty(self) -> bool:
        return False


def table(*headings: str, wraps: bool = False) -> Table:
    """An empty table without lines.

    Args:
        headings: Headings of its columns; if all are empty, their row is left out.
        wraps: Break long cells into lines, rather than cut them.
    """
    made = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, show_header=any(headings))
    for heading in headings:
        made.add_column(Text(heading, "dim"), no_wrap=not wraps, overflow="fold" if wraps else "ellipsis")
    return made


def heading(text: str) -> Text:
    """What stands above a table."""
    return Text(text, "bold")


def in_one_line(text: str) -> Text:
    """A cell in one line, which is cut at the width of its column."""
    return Text(text, no_wrap=True, overflow="ellipsis")
