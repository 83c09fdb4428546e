"""Where pairs come from: files, folders of files, data sets on the Hub -> numbered rows, not yet looked into."""

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import datasets.config
import fsspec
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from prefkd.data.containers import KINDS, Rows, file_problems, read_file, suffix_of
from prefkd.errors import DataError, Problem, first_line, nearest
from prefkd.files import fingerprint, sha256, whole
from prefkd.keys import without_keys

# A path of another file system, s3://bucket/pairs.jsonl say, which fsspec opens.
REMOTE = re.compile(r"([a-z][a-z0-9+.-]*)://.+")
# An address with a password, or with a query, which may hold a key. It would be written to files and to the model card.
WITH_KEYS = re.compile(r"https?://([^/]*@|.*\?)|[a-z]*ftp://[^/]*:[^/]*@", re.IGNORECASE)
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
SPLITS = ("train", "test", "validation", "valid", "dev", "eval", "held_out")
# What `datasets` writes next to the rows of a folder.
SAVED = ("state.json", "dataset_dict.json")
NOT_DATA = (*SAVED, "dataset_info.json", "dataset_infos.json")
# What recipe sample keeps next to the answers of a model: what they depend on, and whether all are there.
RECORDS = ".settings.json"
ROWS_AT_A_TIME = 1000


@dataclass(frozen=True)
class Source:
    """Rows that can be read, and what they are.

    Attributes:
        parts: The name of each file -> a function that reads its rows.
        content: Equal for equal content, wherever it lies.
    """

    parts: dict[str, Callable[[], Rows]]
    content: str


def source_problems(source: str, key: str = "") -> Iterator[Problem]:
    """What keeps a source from being read, as far as can be seen without reading it.

    Args:
        key: Where the config names it.
    """
    for text in _faults(source):
        yield Problem(key, text, about="data", paths=(Path(source),))


def _faults(source: str) -> Iterator[str]:
    path = Path(source)
    try:
        if not source.strip():
            yield "an empty text names no data"
        elif WITH_KEYS.match(source):
            yield (
                f"{without_keys(source)} has a password or a query, which would be written to files; fetch the data "
                "yourself and name the file, or put the password where fsspec looks for it (~/.config/fsspec)"
            )
        elif remote := REMOTE.fullmatch(source):
            yield from _protocol_faults(source, remote[1])
        elif path.is_dir():
            yield from _folder_problems(path)
        elif path.is_symlink() and not path.exists():
            yield f"{source} is a link to {path.readlink()}, which does not exist"
        elif path.exists():
            yield from file_problems(path)
        elif suffix_of(path) or not HUB_ID.fullmatch(source):
            nearby = [file.name for file in path.parent.iterdir() if suffix_of(file)] if path.parent.is_dir() else []
            yield f"{source} does not exist" + (nearest(path.name, nearby) if nearby else "")
        for file in filter(is_unfinished, _data_files(path) if path.is_dir() else [path]):
            yield f"{file} is not finished; run the recipe that writes it again; it resumes"
    except OSError as error:
        yield f"{source} cannot be read ({error.strerror})"


def is_unfinished(path: Path) -> bool:
    """Whether a run began a file of rows and has not finished it."""
    try:
        return json.loads(path.with_suffix(RECORDS).read_bytes())["finished"] is False
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _protocol_faults(source: str, protocol: str) -> Iterator[str]:
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        yield f"{source}: {first_line(error)}; install it, or copy the files here"
    except ValueError:
        yield f"{source}: fsspec knows no {protocol}://{nearest(protocol, fsspec.available_protocols())}"


def _fetched(source: str) -> Path:
    """A copy of a remote file or folder, in the cache of data sets under a name that changes with its content."""
    try:
        system, place = fsspec.url_to_fs(source)
        files = system.find(place, detail=True)
        if not files:
            raise DataError(f"{source}: there is no such file or folder")
        content = fingerprint("remote", source, [[name, str(system.checksum(name))] for name in sorted(files)])
        folder = Path(datasets.config.HF_DATASETS_CACHE) / "prefkd_remote" / content
        for name in files:
            inner = name.removeprefix(place).strip("/")
            copy = folder / (f"{Path(place).name}/{inner}" if inner else Path(place).name)
            if not copy.is_file():
                with whole(copy) as unfinished:
                    system.get_file(name, str(unfinished))
    except DataError:
        raise
    except Exception as error:  # each file system has errors of its own
        raise DataError(f"{source}: cannot be fetched: {first_line(error) or type(error).__name__}") from error
    return folder / Path(place).name


def _folder_problems(folder: Path) -> Iterator[str]:
    if _is_saved(folder):
        return
    files = _data_files(folder)
    if not files:
        yield f"{folder} holds no data files; use {KINDS}"
    for file in files:
        if not file.exists():
            yield f"{file} is a link to {file.readlink()}, which does not exist"


def part_problems(
    source: str, *, split: str, subset: str | None, revision: str | None = None
) -> Iterator[Problem | str]:
    """What keeps the part of a source that a config names from being read."""
    if not source.strip():
        return  # no folder, though Path makes one of it
    yield from split_problems(source, split, "split")
    if Path(source).is_file():
        for name, value, unset in (("split", split, "train"), ("subset", subset, None), ("revision", revision, None)):
            if value != unset:
                yield f"{name}: {value} means nothing to a file; leave it out"


def split_problems(source: str, split: str, key: str) -> Iterator[Problem]:
    """What keeps a split of a folder from being read. Only the Hub knows the splits of a data set that it has.

    Args:
        key: Where the config names the split.
    """
    for text in _split_faults(Path(source), split):
        yield Problem(key, text, paths=(Path(source),))


def _split_faults(folder: Path, split: str) -> Iterator[str]:
    if not folder.is_dir() or any(_folder_problems(folder)):
        return
    try:
        if (folder / "dataset_dict.json").is_file():
            known = json.loads((folder / "dataset_dict.json").read_bytes())["splits"]
            if split not in known:
                yield f"{folder} has no split {split}{nearest(split, known)}"
        elif not _is_saved(folder):
            _files_of_split(folder, split)
    except DataError as error:
        yield str(error)
    except (OSError, ValueError, KeyError, TypeError):
        yield f"{folder}: its dataset_dict.json is broken; write it again with save_to_disk"


def open_source(source: str, *, split: str, subset: str | None, revision: str | None = None) -> Source:
    """Find a source. Nothing is parsed yet.

    Raises:
        DataError: There is no such source, or it has no such split.
    """
    for text in _faults(source):
        raise DataError(text)
    if REMOTE.fullmatch(source):
        return open_source(str(_fetched(source)), split=split, subset=subset)
    path = Path(source)
    if path.is_dir() and _is_saved(path):
        return _open_saved(path, split)
    if path.is_dir():
        files = {file.relative_to(path).as_posix(): file for file in _files_of_split(path, split)}
    elif path.exists():
        files = {path.name: path}
    else:
        data = _load_from_hub(source, subset, split, revision)
        return Source({source: lambda: _rows_of(data)}, content=data._fingerprint)
    for problem in (problem for file in files.values() for problem in file_problems(file)):
        raise DataError(problem)
    digests = {name: sha256(file) for name, file in files.items()}
    return Source({name: lambda file=file: read_file(file) for name, file in files.items()}, json.dumps(digests))


def _rows_of(data: Dataset) -> Rows:
    """As Arrow has them: pictures and sounds are not decoded."""
    batches = cast(Any, data.with_format("arrow")).iter(ROWS_AT_A_TIME)
    return enumerate((row for batch in batches for row in batch.to_pylist()), start=1)


def _is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` of `datasets` wrote it."""
    return any((folder / name).is_file() for name in SAVED)


def _open_saved(folder: Path, split: str) -> Source:
    """A data set of `save_to_disk`, or a split of several."""
    try:
        data = load_from_disk(str(folder))
    except Exception as error:  # as many kinds as there are ways in which its files can be broken
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{folder}: save_to_disk wrote it, and it cannot be read: {reason}") from error
    part = folder
    if isinstance(data, DatasetDict):
        if split not in data:
            raise DataError(f"{folder}: there is no split {split}{nearest(split, map(str, data))}")
        data, part = data[split], folder / split
    digests = [sha256(file) for file in sorted(part.glob("*.arrow"))]
    return Source({part.name: lambda: _rows_of(data)}, json.dumps(digests))


def _data_files(folder: Path) -> list[Path]:
    """Files that can be read, and links to some that are not there. What is hidden is not data."""
    found = []
    for inner, folders, names in os.walk(folder):
        folders[:] = (name for name in folders if not name.startswith("."))  # a .venv may hold a hundred thousand files
        for name in names:
            file = Path(inner, name)
            if name.startswith(".") or name in NOT_DATA or name.endswith(RECORDS) or not suffix_of(file):
                continue
            if file.is_file() or (file.is_symlink() and not file.exists()):
                found.append(file)
    return sorted(found)


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


def _load_from_hub(name: str, subset: str | None, split: str, revision: str | None) -> Dataset:
    try:
        try:
            data = load_dataset(name, name=subset, split=split, revision=revision)
        except ValueError:  # the subset is not a configuration, so it must be a folder
            if subset is None:
                raise
            data = load_dataset(name, data_dir=subset, split=split, revision=revision)
    except Exception as error:  # the network, the Hub and the builders of data sets have no error in common
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name}: no file here, and the Hub does not give it out: {reason}") from error
    return cast(Dataset, data)
