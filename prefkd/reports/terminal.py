"""Tables in a terminal, all in one style."""

from rich.table import Table
from rich.text import Text


def table(*headings: str, wraps: bool = False) -> Table:
    """An empty table without lines.

    Args:
        headings: Headings of its columns; if all are empty, there is no row of headings.
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
    """A cell in one line, which is cut where there is no room."""
    return Text(text, no_wrap=True, overflow="ellipsis")
