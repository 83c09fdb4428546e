"""The errors that a user can cause. The command line prints them in one line each and exits with code 2."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path


class PrefkdError(Exception):
    """Something the user can mend. The message says what is wrong, where, and what to do, in one line."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a config. Its text is for people; programs ask the other fields.

    Attributes:
        key: The dotted key, empty for a problem of the whole.
        text: The value, what is wrong with it, and the remedy.
        about: The kind of thing that is missing or unusable, which may be there later or on another machine: "model",
            "adapter", "scores", "data", "projectors", "device", "output" (the folder of the run) or "resume". None for
            a mistake in the config itself.
        paths: The files and folders whose content decides whether there is a problem.
    """

    key: str
    text: str
    about: str | None = None
    paths: tuple[Path, ...] = ()

    def __str__(self) -> str:
        return f"{self.key}: {self.text}" if self.key else self.text

    @classmethod
    def of(cls, line: "Problem | str") -> "Problem":
        """A problem from a line `key: text`, which is how a section may write one that needs no more."""
        if isinstance(line, Problem):
            return line
        key, colon, text = line.partition(": ")
        return cls(key, text) if colon else cls("", line)

    def under(self, key: str) -> "Problem":
        """The same problem in the section at a key."""
        return replace(self, key=f"{key}.{self.key}" if key and self.key else key or self.key)

    def lies_in(self, folders: Collection[Path]) -> bool:
        """Whether one of its paths is one of some folders, or in one."""
        return any(path.absolute().is_relative_to(folder.absolute()) for path in self.paths for folder in folders)


class ConfigError(PrefkdError):
    """Everything that is wrong in a config, found in one pass.

    Args:
        problems: One each: the key, the value and the remedy.
    """

    def __init__(self, problems: Sequence[Problem | str]):
        super().__init__("\n".join(map(str, problems)))
        self.problems = [Problem.of(problem) for problem in problems]


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
