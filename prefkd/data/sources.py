"""Where pairs come from: files, folders of files, data sets on the Hub -> numbered rows, not yet looked into.

Rows count from 1. In JSON lines the number is that of the line, so that an editor finds it.
"""

import csv
import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import pyarrow
import pyarrow.parquet
from datasets import Dataset, load_dataset

from prefkd.errors import DataError, nearest

# (number, row). What is not even a row, a line of broken JSON say, comes as the DataError that it is.
Rows = Iterable[tuple[int, Any]]

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
SPLITS = ("train", "test", "validation", "valid", "dev", "eval", "held_out")
LONGEST_CSV_VALUE = 2**31 - 1


@dataclass(frozen=True)
class Source:
    """Rows that can be read, and what they are.

    Attributes:
        parts: The name of each file -> a function that reads its rows.
        content: Equal for equal content, wherever it lies.
    """

    parts: dict[str, Callable[[], Rows]]
    content: str


def source_problems(source: str) -> Iterator[str]:
    """What keeps a source from being read, as far as can be seen without reading it."""
    path = Path(source)
    if path.is_dir():
        if not _data_files(path):
            yield f"{source} holds no data files; expected {', '.join(READERS)}"
    elif path.exists():
        if not _suffix(path):
            yield f"{source} cannot be read; use {', '.join(READERS)}"
    elif _suffix(path) or not HUB_ID.fullmatch(source):
        beside = [file.name for file in path.parent.iterdir() if _suffix(file)] if path.parent.is_dir() else []
        yield f"{source} does not exist" + (nearest(path.name, beside) if beside else "")


def open_source(source: str, *, split: str, subset: str | None) -> Source:
    """Find a source. Nothing is parsed yet.

    Raises:
        DataError: There is no such source, or it has no such split.
    """
    for problem in source_problems(source):
        raise DataError(problem)
    path = Path(source)
    if path.is_dir():
        files = {file.relative_to(path).as_posix(): file for file in _files_of_split(path, split)}
    elif path.exists():
        files = {path.name: path}
    else:
        data = _load_from_hub(source, subset, split)
        return Source({source: lambda: enumerate(data, start=1)}, content=data._fingerprint)
    digests = {name: _sha256(file) for name, file in files.items()}
    return Source({name: lambda file=file: _read_file(file) for name, file in files.items()}, json.dumps(digests))


def _data_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and _suffix(file))


def _files_of_split(folder: Path, split: str) -> list[Path]:
    """Files named after the split, as in train.jsonl, train-00000.parquet or train/a.csv; no name = training data."""

    def is_of(file: Path, name: str) -> bool:
        return any(re.match(rf"{re.escape(name)}(?![a-z])", part) for part in file.relative_to(folder).parts)

    files = _data_files(folder)
    chosen = [file for file in files if is_of(file, split)]
    if not chosen and split == "train":
        chosen = [file for file in files if not any(is_of(file, name) for name in SPLITS)]
    if not chosen:
        names = [file.relative_to(folder).as_posix() for file in files[:5]]
        raise DataError(f"{folder}: no file is named after the split {split}; there are {', '.join(names)}")
    return chosen


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _load_from_hub(name: str, subset: str | None, split: str) -> Dataset:
    try:
        try:
            data = load_dataset(name, name=subset, split=split)
        except ValueError:  # the subset is not a configuration, so it must be a folder
            if subset is None:
                raise
            data = load_dataset(name, data_dir=subset, split=split)
    except Exception as error:  # the network, the Hub and the builders of data sets have no error in common
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name}: no file here, and the Hub does not give it out: {reason}") from error
    return cast(Dataset, data)


def _suffix(path: Path) -> str | None:
    return next((suffix for suffix in READERS if path.name.lower().endswith(suffix)), None)


def _read_file(path: Path) -> Rows:
    suffix = cast(str, _suffix(path))
    try:
        with gzip.open(path) if suffix.endswith(".gz") else path.open("rb") as file:
            yield from READERS[suffix](cast(IO[bytes], file))
    except (OSError, EOFError, ValueError, csv.Error, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as {suffix} ({error})") from error


def _read_json_lines(file: Iterable[bytes]) -> Rows:
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                yield number, json.loads(line.strip())
            except json.JSONDecodeError as error:
                yield number, DataError(f"no valid JSON ({error.msg} at column {error.colno})")
            except UnicodeDecodeError as error:
                yield number, DataError(f"no valid UTF-8 ({error.reason} at byte {error.start})")


def _read_json(file: IO[bytes]) -> Rows:
    """One array of objects; JSON lines are often named .json too."""
    content = file.read()
    if content.lstrip().startswith(b"["):
        return enumerate(json.loads(content), start=1)
    return _read_json_lines(content.splitlines(keepends=True))


def _read_csv(file: IO[bytes]) -> Rows:
    """All values are text: an answer "42" or "None" is an answer, not a number and not a gap."""
    csv.field_size_limit(LONGEST_CSV_VALUE)
    lines = (line.decode("utf-8-sig" if number == 0 else "utf-8") for number, line in enumerate(file))
    for number, row in enumerate(csv.DictReader(lines, strict=True), start=1):
        yield number, DataError("it has more values than the header has names") if None in row else row


def _read_parquet(file: IO[bytes]) -> Rows:
    rows = (row for batch in pyarrow.parquet.ParquetFile(file).iter_batches() for row in batch.to_pylist())
    return enumerate(rows, start=1)


READERS: dict[str, Callable[[IO[bytes]], Rows]] = {
    ".jsonl": _read_json_lines,
    ".jsonl.gz": _read_json_lines,
    ".json": _read_json,
    ".json.gz": _read_json,
    ".csv": _read_csv,
    ".csv.gz": _read_csv,
    ".parquet": _read_parquet,
}
