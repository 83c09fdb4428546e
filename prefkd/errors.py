"""The errors that a user can cause. The command line prints them in one line each and exits with code 2."""

import errno
import os
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

USE_LESS_MEMORY = "lower the batch size or the maximum length, or turn activation checkpointing on"
_REMEDIES = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "free some of your quota, or write to another disk",
    errno.EROFS: "write to another folder",
    errno.EEXIST: "a folder of that name is needed; name another one",
    errno.ENOTDIR: "a folder of that name is needed; name another one",
    errno.EACCES: "change its permissions, or use another folder",
    errno.EPERM: "change its permissions, or use another folder",
    errno.EISDIR: "a file is needed; name one",
    errno.ENOENT: "check the spelling",
    errno.ELOOP: "its links lead in a circle; remove one of them",
    errno.ENAMETOOLONG: "use a shorter name",
}


class PrefkdError(Exception):
    """Something the user can fix. The message says what is wrong, where, and what to do, in one line."""


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
        line = f"{self.key}: {self.text}" if self.key else self.text
        return "\\n".join(line.splitlines())  # a name may hold a line break

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
        self.problems = [Problem.of(problem) for problem in problems]
        super().__init__("\n".join(map(str, self.problems)))


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


def explain(error: BaseException) -> str | None:
    """What a user can do about an error, in one line for each thing; None where it is a mistake in the program."""
    if isinstance(error, PrefkdError):
        return str(error)
    text = " ".join(str(error).split())
    if isinstance(error, ValueError) and "null byte" in text:
        return "a path holds the character 0, which no name has; remove it"
    torch = sys.modules.get("torch")  # not imported for the question's sake
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return f"out of memory; {USE_LESS_MEMORY}"
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return f"out of GPU memory; {USE_LESS_MEMORY}"
    cache = _cache_of(error)
    if cache is not None:
        reason = os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else text
        return f"{getattr(error, 'filename', None)}: {reason}; {cache}"
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{os.strerror(error.errno).lower()}; {_REMEDIES[error.errno]}"
    if "No space left on device" in text:  # safetensors and torch wrap it in exceptions of their own
        return f"{text}; {_REMEDIES[errno.ENOSPC]}"
    if isinstance(error, OSError):
        return f"{error.filename}: {(error.strerror or text).lower()}" if error.filename else text
    return None


def _cache_of(error: BaseException) -> str | None:
    """What to do if an error is about a cache of Hugging Face, which lies in the user's home unless it is told."""
    name = error.filename if isinstance(error, OSError) else None
    if not isinstance(name, str):
        return None
    path = Path(name).absolute()
    for module, variable in (("datasets.config", "HF_DATASETS_CACHE"), ("huggingface_hub.constants", "HF_HOME")):
        folder = getattr(sys.modules.get(module), variable, None)  # not imported for the question's sake
        if folder is not None:
            cache = Path(folder).absolute()
            # The cache, what is in it, or a folder on the way to it that is not there yet.
            if cache == path or cache in path.parents or (path in cache.parents and not path.exists()):
                others = " (HF_HOME for all caches of Hugging Face)" if variable != "HF_HOME" else ""
                return f"this is the cache {cache}; set {variable}{others} to a folder that can be written to"
    return None
