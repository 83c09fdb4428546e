"""Shards as WebDataset has them: a tar file of small files, read as a stream -> rows.

    0001.json                                           a row, or a table of rows (`prefkd.data.tables`)
    part.jsonl                                          a row in each line
    0001.prompt.txt  0001.chosen.txt  0001.rejected.txt  a row: files that lie together and share their name up to the
                                                        first dot, each a field; one of them may be JSON

Rows count from 1 through the whole shard.
"""

import json
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import PurePosixPath
from typing import IO, Any

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
        parts = ((_key(member.name), member.name, _content(archive, member)) for member in archive if _is_data(member))
        rows = (row for _, sample in groupby(parts, key=lambda part: part[0]) for row in _rows_of_sample([*sample]))
        yield from enumerate(rows, start=1)


def _rows_of_sample(sample: list[tuple[str, str, bytes]]) -> Iterator[Any]:
    """The rows of files that belong together."""
    fields: dict[str, Any] = {}
    for key, name, content in sample:
        field = name.removeprefix(key).lstrip(".")
        inner, _, kind = field.rpartition(".")
        try:
            if field in LINES:
                yield from (_line(name, line) for line in content.splitlines() if line.strip())
            elif field == "json":
                value = json.loads(content)
                if len(sample) == 1 and isinstance(value, list | dict):
                    yield from (row for _, row in rows_of_object(value, 1))
                    return
                fields |= value if isinstance(value, dict) else {field: value}
            elif inner and kind == "json":
                fields[inner] = json.loads(content)
            elif kind in TEXT:
                fields[inner or field] = content.decode()
            else:
                yield DataError(f"{name} cannot be read: expected .json, .jsonl or .txt in a shard")
                return
        except ValueError as error:
            yield DataError(f"{name} is not {'valid UTF-8' if kind in TEXT else 'valid JSON'} ({error})")
            return
    if fields:
        yield fields


def _line(name: str, line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        return DataError(f"a line of {name} is not valid JSON ({error})")


def _key(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_name(path.name.partition(".")[0]))


def _is_data(member: tarfile.TarInfo) -> bool:
    """Whether a member is a file that is not hidden, as those that macOS adds are."""
    return member.isfile() and not PurePosixPath(member.name).name.startswith(".")


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None  # it is a file
    return file.read()
