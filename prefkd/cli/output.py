"""What the command line prints: plain lines that a terminal may break but that stay whole when copied or piped."""

import os
import traceback

from rich.console import Console
from rich.text import Text

from prefkd.errors import explain
from prefkd.terminal import console


def say(text: str) -> None:
    """Print a line, or several, for the user."""
    console().print(Text(text), soft_wrap=True)


def complain(error: BaseException) -> bool:
    """Print `error: ...` for each line of an explained error; False if it has no explanation and nothing was printed.

    PREFKD_DEBUG=1 prints the trace as well.
    """
    explanation = explain(error)
    if explanation is None:
        return False
    if os.environ.get("PREFKD_DEBUG"):
        traceback.print_exception(error)
    errors = Console(stderr=True)
    for line in explanation.splitlines():
        errors.print(Text.assemble(("error: ", "bold red"), line), soft_wrap=True)
    return True
