"""What a stage of a pipeline was made from, kept in its folder, so that what is finished need not run again.

A stage is made from the text of its recipe, the settings of its resolved config, and the content of every file and
folder that a setting names: data, models, what earlier stages have written, and the user's own readers and terms.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, get_origin, get_type_hints

from prefkd.config.components import own_file
from prefkd.config.fields import flat
from prefkd.config.hints import members
from prefkd.errors import PrefkdError
from prefkd.files import read_object, sha256, write_json

FILE_NAME = "stage.json"


@dataclass(frozen=True)
class StageInputs:
    """What decides about a stage's result.

    Attributes:
        recipe: SHA-256 of its text.
        settings: The values of the resolved config by dotted key; its output_dir decides nothing.
        inputs: SHA-256 of the files and folders that settings name, by dotted key.
    """

    recipe: str
    settings: dict[str, Any]
    inputs: dict[str, str]

    def changes(self, now: "StageInputs") -> list[str]:
        """What is different now, a few words each. Missing inputs do not count: the result is still there."""
        changed = ["the recipe"] if now.recipe != self.recipe else []
        for key in self.settings | now.settings:
            old, new = self.settings.get(key, "nothing"), now.settings.get(key, "nothing")
            if old != new:
                changed.append(f"{key} {shorten(str(old), 40)} -> {shorten(str(new), 40)}")
            elif key in now.inputs and now.inputs[key] != self.inputs.get(key):
                changed.append(f"the content of {key} ({new})")
        return changed


@dataclass(frozen=True)
class Record:
    """A stage that was started, and, unless `seconds` is None, finished.

    Attributes:
        seconds: How long it ran.
        files: Names and sizes in bytes of what it wrote.
    """

    fingerprint: StageInputs
    seconds: float | None = None
    files: dict[str, int] = field(default_factory=dict)

    def lost(self, folder: Path) -> list[str]:
        """Which files of the stage are gone or have another size."""
        there = _sizes(folder)
        return [name for name, size in self.files.items() if there.get(name) != size]


def read_record(folder: Path) -> Record | None:
    """The record of the stage that wrote to a folder, None where no pipeline did."""
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    stored: Any = read_object(path, *(part.name for part in fields(Record)))
    try:
        return Record(**stored | {"fingerprint": StageInputs(**stored["fingerprint"])})
    except TypeError as error:  # of None, which is what a damaged file holds, too
        raise PrefkdError(f"{path} is damaged; remove it, and the stage runs again") from error


def record_start(folder: Path, fingerprint: StageInputs) -> None:
    """Note that a stage is going to write to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FILE_NAME, asdict(Record(fingerprint)))


def record_end(folder: Path, fingerprint: StageInputs, seconds: float) -> None:
    """Note that a stage is finished."""
    write_json(folder / FILE_NAME, asdict(Record(fingerprint, seconds, _sizes(folder))))


def paths_in(config: Any, key: str = "") -> Iterator[tuple[str, Path]]:
    """The texts of a config, by dotted key, that name a file or a folder if there is one.

    A few fixed words are not paths, and neither are arguments of a component: a metric logger's folder is not an input.
    The file of the user's own in which a component is written is one.
    """
    hints = get_type_hints(type(config))
    for part in fields(config):
        path = f"{key}.{part.name}" if key else part.name
        if path != "output_dir" and not any(get_origin(hint) is Literal for hint in members(hints[part.name])):
            yield from _paths(vars(config)[part.name], path)


def _paths(value: Any, key: str) -> Iterator[tuple[str, Path]]:
    """The paths in one setting, in the sections of a list or a dictionary too."""
    if is_dataclass(value):
        yield from paths_in(value, key)
    elif isinstance(value, dict) and "_component_" in value:
        for name, item in flat(value, key):
            if name.endswith("._component_") and isinstance(item, str) and (file := own_file(item)) is not None:
                yield name, file
    elif isinstance(value, (dict, list, tuple)):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _paths(item, f"{key}.{name}")
    elif isinstance(value, (str, Path)) and str(value):
        yield key, Path(value)


class Contents:
    """SHA-256 of files and of folders, hidden files left out.

    Args:
        cache: File that remembers them: what has the same size and time of change is not read again.
    """

    def __init__(self, cache: Path):
        self._cache = cache
        known = (read_object(cache) if cache.is_file() else None) or {}
        self._known = {name: entry for name, entry in known.items() if isinstance(entry, list) and len(entry) == 3}

    def digest(self, path: Path) -> str:
        """The SHA-256 of a file, or of the names and the contents of the files in a folder."""
        if path.is_dir():
            digests = {name: self._digest_file(path / name) for name in _sizes(path)}
            return hashlib.sha256(json.dumps(digests).encode()).hexdigest()
        return self._digest_file(path)

    def save(self) -> None:
        """Write the cache."""
        write_json(self._cache, self._known)

    def _digest_file(self, path: Path) -> str:
        status, name = path.stat(), str(path.resolve())
        size, time, digest = self._known.get(name, (None, None, ""))
        if (size, time) != (status.st_size, status.st_mtime_ns):
            digest = sha256(path)
            self._known[name] = [status.st_size, status.st_mtime_ns, digest]
        return digest


def _sizes(folder: Path) -> dict[str, int]:
    """The sizes in bytes of the files in a folder and below it, by their names from there; not of hidden ones."""
    sizes = {}
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in files if not name.startswith(".") and name != FILE_NAME):
            path = Path(parent, name)
            if path.is_file():  # and no link that leads nowhere
                sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    return sizes
