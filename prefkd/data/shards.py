"""Shards as WebDataset has them: a tar file of small files, read as a stream -> rows.

    0001.json                                           a row, or a table of rows (`prefkd.data.tables`)
    part.jsonl                                          a row in each line
    0001.prompt.txt  0001.chosen.txt  0001.rejected.txt  a row: files that lie together and share their name up to the
                                                        first dot, each a field; one of them may be JSON

Rows count from 1 through the whole shard.
"""

import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import PurePosixPath
from typing import IO, Any

from prefkd.data.json_values import read_json
from prefkd.data.tables import rows_of_object
from prefkd.errors import DataError

LINES = ("jsonl", "ndjson")
TEXT = ("txt", "text")


def read_shard(file: IO[bytes]) -> Iterator[tuple[int, Any]]:
    """The rows of a shard. What is wrong with one comes in its place, as the `DataError` that it is.

    Raises:
        tarfile.TarError: It is damaged.
    """
    with tarfile.open(fileobj=file, mode="r|") as archive:
        parts = (_part(archive, member) for member in archive if _is_data(member))
        rows = (row for _, sample in groupby(parts, key=lambda part: part[0]) for row in _rows_of_sample([*sample]))
        yield from enumerate(rows, start=1)


def _rows_of_sample(sample: list[tuple[str, str, bytes | None]]) -> Iterator[Any]:
    """The rows of files that belong together."""
    fields: dict[str, Any] = {}
    for key, name, content in sample:
        field = name.removeprefix(key).lstrip(".")
        inner, _, kind = field.rpartition(".")
        found: dict[str, Any] = {}
        try:
            if content is None:
                yield DataError(f"{name} is a link: expected a file in a shard; pack it with tar --hard-dereference -h")
                return
            if field in LINES:
                yield from (_line(name, line) for line in content.splitlines() if line.strip())
            elif field == "json":
                value = read_json(content.decode())
                if len(sample) == 1 and isinstance(value, list | dict):
                    yield from (row for _, row in rows_of_object(value, 1))
                    return
                found = value if isinstance(value, dict) else {field: value}
            elif inner and kind == "json":
                found[inner] = read_json(content.decode())
            elif kind in TEXT:
                found[inner or field] = content.decode()
            else:
                yield DataError(f"{name} cannot be read: expected .json, .jsonl or .txt in a shard")
                return
        except ValueError as error:
            yield DataError(f"{name} is not {'valid UTF-8' if kind in TEXT else 'valid JSON'} ({error})")
            return
        if twice := sorted(fields.keys() & found.keys()):
            yield DataError(f"{name} has field '{twice[0]}' once more; remove one of the files")
            return
        fields |= found
    if fields:
        yield fields


def _line(name: str, line: bytes) -> Any:
    try:
        return read_json(line.decode())
    except ValueError as error:
        return DataError(f"a line of {name} is not valid JSON ({error})")


def _part(archive: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[str, str, bytes | None]:
    """What a member belongs to, its name, and its content, which a link does not have."""
    path = PurePosixPath(member.name)  # ./0001.json is 0001.json
    file = archive.extractfile(member) if member.isfile() else None
    return str(path.with_name(path.name.partition(".")[0])), str(path), None if file is None else file.read()


def _is_data(member: tarfile.TarInfo) -> bool:
    """Whether a member is a file that is not hidden, as those that macOS adds are."""
    name = PurePosixPath(member.name).name
    return (member.isfile() or member.issym() or member.islnk()) and bool(name) and not name.startswith(".")
