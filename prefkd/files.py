"""Files that appear under their name only when they are complete, with the permissions that a user's files have."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write a file or a folder under, which becomes `path` when the block ends, in place of what is there.

    So a full disk or a kill leaves nothing behind that looks complete. Libraries that write through temporary files
    leave them readable by their owner alone; what appears under `path` has the permissions that the umask grants.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove(unfinished)
    unfinished.touch()
    permissions = unfinished.stat().st_mode & 0o666
    unfinished.unlink()
    yield unfinished
    written = unfinished.rglob("*") if unfinished.is_dir() else (unfinished,)
    for file in written:
        if file.is_file() and not file.is_symlink():
            file.chmod(permissions)
    if unfinished.is_dir() or path.is_dir():
        _remove(path)
    unfinished.replace(path)


def sha256(path: Path) -> str:
    """SHA-256 of the content of a file, in hexadecimal digits."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def fingerprint(*parts: Any) -> str:
    """A short name for data: equal for equal parts (anything JSON can hold), in every process and on every machine."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    with whole(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_object(path: Path, *keys: str) -> dict[str, Any] | None:
    """What a JSON file holds that prefkd or peft wrote; None if it is damaged: no object with these keys."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and all(key in found for key in keys) else None


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a file of JSON lines, whole or not at all."""
    with whole(path) as unfinished:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        unfinished.write_text("".join(lines), encoding="utf-8")
