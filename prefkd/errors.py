"""The errors that a user can cause. The command line prints them in one line each and exits with code 2."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class PrefkdError(Exception):
    """Something the user can mend. The message says what is wrong, where, and what to do, in one line."""


class ConfigError(PrefkdError):
    """Everything that is wrong in a config, found in one pass.

    Args:
        problems: One line each: the key, the value and the remedy.
    """

    def __init__(self, problems: Sequence[str]):
        super().__init__("\n".join(problems))
        self.problems = list(problems)


class DataError(PrefkdError):
    """A row that cannot be used. The message names the file, the row and the field."""


def first_line(error: BaseException) -> str:
    """What an exception says, in one line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the nearest known one, or all of them."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known: {', '.join(names)}" if names else "; it takes none"
