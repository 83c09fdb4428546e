"""The program `prefkd`: a command each for finding, copying, checking, fetching and running."""

import io
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import partial, wraps
from typing import Any

import tyro
from rich.text import Text

import prefkd
from prefkd.cli.cat import cat
from prefkd.cli.cp import cp
from prefkd.cli.download import download
from prefkd.cli.inspect import inspect
from prefkd.cli.ls import ls
from prefkd.cli.new import new
from prefkd.cli.output import complain, say
from prefkd.cli.pipeline import pipeline
from prefkd.cli.plan import plan
from prefkd.cli.plot import plot
from prefkd.cli.run import run
from prefkd.cli.validate import validate
from prefkd.errors import PrefkdError, nearest

LEAST_WIDTH = 20  # characters of a terminal

COMMANDS: dict[str, Callable[..., None]] = {
    command.__name__.replace("_", "-"): command
    for command in (ls, cp, cat, new, validate, plan, download, inspect, run, pipeline, plot)
}

# What tyro says of an argument, and how prefkd says it.
_PLAIN = (
    (r"Missing value for argument '(\S+)'\. Expected 1 values\.", r"\1 needs a value"),
    (r"Unrecognized options: ", "too many arguments: "),
    (r"Error parsing (\S+): .*(?i:\bint\b).*?('[^']*')\]?\.?$", r"\1: \2 is not an integer"),
    (r"invalid choice ('.*') for argument '(\S+)'\. Expected one of \((.*)\)\.", r"\2: \1 is not one of \3"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code: 0, 2 after a user's mistake, 130 after Ctrl-C."""
    _make_terminal_usable()
    if not any(name in os.environ for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")):
        # Texts vary in length, and the gaps that their tensors leave would take gigabytes. Torch reads it when it is
        # imported, which has not happened yet.
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    try:
        _parsed(sys.argv[1:] if arguments is None else arguments)()
        sys.stdout.flush()  # a full disk is told of here, and not while Python ends
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        sys.stderr.close()
    except KeyboardInterrupt as interrupt:
        complain(PrefkdError(str(interrupt) or "interrupted"))
        return 130
    except Exception as error:
        if not complain(error):
            raise
        return 2
    return 0


def _make_terminal_usable() -> None:
    """Let closed streams, characters that cannot be shown, and a width of nothing be no reason to fail or to hang."""
    told = os.environ.get("COLUMNS", "")
    if shutil.get_terminal_size().columns < LEAST_WIDTH or told == "0":
        os.environ["COLUMNS"] = str(LEAST_WIDTH)  # tyro would look for room for ever, and rich print nothing
    sys.stdout, sys.stderr = (stream or io.StringIO() for stream in (sys.stdout, sys.stderr))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _parsed(arguments: Sequence[str]) -> Callable[[], None]:
    """The call that a command line asks for."""
    command, *rest = arguments or ["--help"]
    if command in ("-h", "--help"):
        return partial(say, _overview())
    if command == "--version":
        return partial(say, prefkd.__version__)
    if command not in COMMANDS:
        raise PrefkdError(f"there is no command {command}{nearest(command, COMMANDS)} (`prefkd --help` explains them)")
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            return tyro.cli(_deferred(COMMANDS[command]), prog=f"prefkd {command}", args=_overrides_last(rest))
    except SystemExit as end:
        if not end.code:  # the help was asked for
            raise
        problem = _unknown_option(command, rest) or _in_one_line(printed.getvalue())
        raise PrefkdError(f"{problem} (`prefkd {command} --help` explains)") from None


def _overview() -> str:
    commands = "\n".join(f"  {name:16}{_first_line(command)}" for name, command in COMMANDS.items())
    return f"{_first_line(prefkd)}\n\n{commands}\n\n`prefkd COMMAND --help` explains a command, with examples."


def _first_line(documented: Any) -> str:
    return (documented.__doc__ or "").partition("\n")[0]


def _deferred(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """A function of the same signature that only binds its arguments, so that parsing ends before it starts."""
    return wraps(command)(lambda *args, **kwargs: partial(command, *args, **kwargs))


def _overrides_last(arguments: Sequence[str]) -> list[str]:
    """key=value and ~key moved to the end, where tyro takes them as one list; users write them anywhere."""
    return sorted(arguments, key=lambda text: bool(re.match(r"~[\w.\[\]-]+$|\w[\w.\[\]-]*=", text)))


def _unknown_option(command: str, arguments: Sequence[str]) -> str | None:
    """What to say of the first option that the command's help does not know; tyro would rather miss a required one."""
    with redirect_stdout(io.StringIO()) as printed, suppress(SystemExit):
        tyro.cli(_deferred(COMMANDS[command]), args=["--help"])
    known = set(re.findall(r"--[a-z][a-z-]*", printed.getvalue()))
    options = (text.partition("=")[0] for text in arguments if text.startswith("--"))
    return next((f"there is no option {name}{nearest(name, known)}" for name in options if name not in known), None)


def _in_one_line(box: str) -> str:
    """The text of a message that tyro draws as a box: a title, parts between lines, and last a pointer to the help.

    The box has a frame where the terminal knows UTF-8, else blanks.
    """
    rows = [re.sub("^[│╭╰]|[│╮╯]$", " ", row).rstrip() for row in Text.from_ansi(box).plain.splitlines()[1:]]
    text = " ".join(";" if re.fullmatch("[─-]+", row.strip()) else row.strip() for row in rows if row.strip())
    text = re.split(";? For full helptext| Got errors| ; Argument helptext", text.strip("; "))[0].rstrip(" ;")
    if text.startswith("Missing from"):  # then names, and further in what each of them is
        names = [row.strip() for row in rows if re.match(" {6}[^ ]", row) and "--help" not in row]
        return f"missing: {', '.join(names)}"
    for pattern, plain in _PLAIN:
        text = re.sub(pattern, plain, text)
    return text
