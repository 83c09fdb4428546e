"""Files of rows: which kinds can be read, what the others are called, and the reader of each.

Rows count from 1. In JSON lines the number is that of the line, so that an editor finds it.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any, cast

import pyarrow
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet

from prefkd.data.json_values import read_json
from prefkd.data.shards import read_shard
from prefkd.data.tables import rows_of_object
from prefkd.errors import DataError

# (number, row). What is not even a row, a line of broken JSON say, comes as the DataError that it is.
Rows = Iterable[tuple[int, Any]]

# What reading a broken file can end in.
BROKEN = (
    *(OSError, EOFError, ValueError, csv.Error, lzma.LZMAError, zlib.error, zipfile.BadZipFile, tarfile.TarError),
    pyarrow.ArrowException,
)

LONGEST_CSV_VALUE = 2**31 - 1
DELIMITERS = ",;\t|"
HEAD = 512
ROWS_AT_A_TIME = 1000

# How files of a kind begin -> what they are. Longer beginnings stand before shorter ones.
MAGIC = {
    b"\xff\xfe\x00\x00": "UTF-32 text",
    b"\x00\x00\xfe\xff": "UTF-32 text",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow",
    b"\xff\xff\xff\xff": "Arrow",
    b"FEA1": "Feather version 1",
    b"\xd0\xcf\x11\xe0": "an Excel workbook",
    b"SQLite format 3": "an SQLite database",
    b"\x89HDF\r\n": "HDF5",
    b"\x93NUMPY": "a NumPy array",
    b"%PDF": "PDF",
    b"version https://git-lfs": "a Git LFS pointer",
    b"<!DOCTYPE html": "a web page",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
}
REMEDIES = {
    "UTF-16 text": "save it as UTF-8",
    "UTF-32 text": "save it as UTF-8",
    "Feather version 1": "write it again with a newer pandas",
    "a Git LFS pointer": "fetch the file itself with git lfs pull",
    "a web page": "download the file itself",
    "an Excel workbook": "save it as CSV",
}

# Kinds that are not read, by the end of a file's name.
NAMED = {
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods"), "a spreadsheet"),
    **dict.fromkeys((".txt", ".text", ".md"), "plain text, whose lines have no fields"),
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".pth", ".bin"), "a pickle, which can run code when it is read"),
    **dict.fromkeys((".db", ".sqlite", ".sqlite3", ".duckdb"), "a database"),
    **dict.fromkeys((".tgz", ".tbz2", ".txz", ".7z", ".rar"), "an archive"),
    **dict.fromkeys((".h5", ".hdf5"), "HDF5"),
    **dict.fromkeys((".npy", ".npz"), "a NumPy array"),
    **dict.fromkeys((".yaml", ".yml"), "YAML"),
    **dict.fromkeys((".xml", ".html", ".htm"), "markup"),
    ".orc": "ORC",
    ".avro": "Avro",
}


def suffix_of(path: Path) -> str | None:
    """The end of a file's name that says how to read it: `.jsonl`, `.csv.gz`; None if it cannot be read."""
    name = path.name.lower()
    packed = next((packing for packing in PACKINGS if name.endswith(packing)), "")
    kind = next((kind for kind in READERS if name.removesuffix(packed).endswith(kind)), None)
    return None if kind is None or (packed and kind not in PACKED_KINDS) else kind + packed


def file_problems(path: Path) -> Iterator[str]:
    """What keeps a file from being read, as far as its name and its first bytes tell."""
    suffix = suffix_of(path)
    if suffix is None:
        name = path.name.lower()
        what = next((what for end, what in NAMED.items() if name.endswith(end)), None)
        yield f"{path} {f'is {what}' if what else 'cannot be read'}; use {KINDS}"
        return
    if not path.is_file():
        yield f"{path} is not a file that can be read twice (a pipe or a device); write the rows into a file"
        return
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        yield f"{path} cannot be read ({error.strerror})"
        return
    kind, packing = split_suffix(suffix)
    expected = PACKINGS.get(packing) or BINARY_KINDS.get(kind)
    found = _kind_of(head)
    if not head:
        yield f"{path}: there are no rows in it"
    elif expected and found != expected:
        yield f"{path} is not {expected}{f', but {found}' if found else ''}; {_remedy(found, path)}"
    elif found and not expected:
        yield f"{path} is {found}, not {kind.removeprefix('.').upper()}; {_remedy(found, path)}"


def _kind_of(head: bytes) -> str | None:
    found = next((what for magic, what in MAGIC.items() if head.startswith(magic)), None)
    if found == "zip" and b"[Content_Types].xml" in head:
        return "an Excel workbook"
    if found is None and head[257:262] == b"ustar":
        return "tar"
    if found is None and b"\x00" in head:
        return "UTF-16 text" if head.count(b"\x00") > len(head) // 4 else "binary data"
    return found


def _remedy(what: str | None, path: Path) -> str:
    packing = next((end for end, name in PACKINGS.items() if name == what), None)
    if packing and suffix_of(Path(path.name + packing)):
        return f"name it {path.name}{packing}"
    return REMEDIES.get(what or "", "name it after what it is")


def split_suffix(suffix: str) -> tuple[str, str]:
    """`.csv.gz` -> `.csv`, `.gz`."""
    packing = next((end for end in PACKINGS if suffix.endswith(end)), "")
    return suffix.removesuffix(packing), packing


def read_file(path: Path) -> Rows:
    """The rows of a file.

    Raises:
        DataError: It cannot be read as what its name says.
    """
    suffix = cast(str, suffix_of(path))
    kind, packing = split_suffix(suffix)
    try:
        with _unpacked(path, packing) as file:
            yield from READERS[kind](file)
    except BROKEN as error:
        raise DataError(f"{path}: cannot be read as {suffix} ({' '.join(str(error).split())})") from error


def _unpacked(path: Path, packing: str) -> IO[bytes]:
    if packing == ".gz":
        return cast(IO[bytes], gzip.open(path))
    if packing == ".bz2":
        return cast(IO[bytes], bz2.open(path))
    if packing == ".xz":
        return cast(IO[bytes], lzma.open(path))
    if packing == ".zst":
        stream = pyarrow.input_stream(str(path), compression="zstd")
        return cast(IO[bytes], io.BufferedReader(stream))
    if packing == ".zip":
        archive = zipfile.ZipFile(path)
        files = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX")]
        if len(files) != 1:
            raise ValueError(f"it holds {len(files)} files: expected one; unpack it into a folder")
        return archive.open(files[0])
    return path.open("rb")


def _read_json(file: IO[bytes]) -> Rows:
    """JSON lines, or one JSON value: an array of objects, or an object that holds a table (`prefkd.data.tables`).

    Either may have either name. A first line that is an object of its own means lines, which are read one by one.
    """
    lines = enumerate(_without_mark(file), start=1)
    first = next(((number, line) for number, line in lines if line.strip()), None)
    if first is None:
        return
    begins_lines = not first[1].lstrip().startswith(b"[") and isinstance(_json_line(*first)[1], dict)
    second = next(((number, line) for number, line in lines if line.strip()), None) if begins_lines else None
    if begins_lines and second is not None:
        yield from (_json_line(number, line) for number, line in chain([first, second], lines) if line.strip())
        return
    others = [] if second is None and begins_lines else list(lines)
    try:
        value = read_json(b"".join(line for _, line in [first, *others]).decode())
    except json.JSONDecodeError:
        if first[1].lstrip().startswith(b"["):
            raise
        yield from (_json_line(number, line) for number, line in [first, *others] if line.strip())
        return
    yield from [(first[0], value)] if not isinstance(value, list | dict) else rows_of_object(value, first[0])


def _json_line(number: int, line: bytes) -> tuple[int, Any]:
    text = line.strip()
    try:
        return number, read_json(text.decode(errors="surrogatepass"))
    except json.JSONDecodeError as error:
        if text.endswith(b","):
            return _json_line(number, text[:-1])
        return number, DataError(f"not valid JSON ({error.msg} at column {error.colno})")
    except UnicodeDecodeError as error:
        return number, DataError(f"not valid UTF-8 ({error.reason} at byte {error.start})")
    except ValueError as error:
        return number, DataError(str(error))


def _without_mark(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Lines without the byte-order mark that some editors put before the first."""
    for number, line in enumerate(lines):
        yield line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line


def _decoded(lines: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"line {number} is not UTF-8; save it as UTF-8") from error


def _read_csv(file: IO[bytes]) -> Rows:
    """All values are text: an answer "42" or "None" is an answer, not a number and not a gap.

    The delimiter is the one that gives the header most names: comma, semicolon, tab or bar.
    """
    csv.field_size_limit(LONGEST_CSV_VALUE)
    lines = _decoded(_without_mark(file))
    first = next(lines, "")
    if declared := re.fullmatch(r"sep=(.)\s*", first):  # Excel's own
        delimiter, first = declared[1], next(lines, "")
    else:
        delimiter = max(DELIMITERS, key=lambda mark: len(next(csv.reader([first], delimiter=mark), [])))
    reader = csv.DictReader(chain([first], lines), strict=True, delimiter=delimiter)
    _require_own_names(reader.fieldnames or [])
    for number, row in enumerate(reader, start=1):
        yield number, DataError("it has more values than the header has names") if None in row else row


def _read_parquet(file: IO[bytes]) -> Rows:
    table = pyarrow.parquet.ParquetFile(file)
    _require_own_names(table.schema_arrow.names)
    return enumerate((row for batch in table.iter_batches(ROWS_AT_A_TIME) for row in batch.to_pylist()), start=1)


def _read_arrow(file: IO[bytes]) -> Rows:
    """Arrow's file format (Feather version 2 is the same) or its stream format, which `datasets` writes."""
    magic = file.read(6)
    file.seek(0)
    if magic == b"ARROW1":
        reader = pyarrow.ipc.open_file(file)
        batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
    else:
        reader = pyarrow.ipc.open_stream(file)
        batches = iter(reader)
    _require_own_names(reader.schema.names)
    parts = (batch.slice(i, ROWS_AT_A_TIME) for batch in batches for i in range(0, len(batch), ROWS_AT_A_TIME))
    return enumerate((row for part in parts for row in part.to_pylist()), start=1)


def _require_own_names(names: Iterable[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"several columns are named '{twice[0]}'")


READERS: dict[str, Callable[[IO[bytes]], Rows]] = {
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    ".feather": _read_arrow,
    ".tar": read_shard,
}
BINARY_KINDS = {".parquet": "Parquet", ".arrow": "Arrow", ".feather": "Arrow", ".tar": "tar"}
PACKED_KINDS = frozenset(READERS) - {".parquet", ".arrow", ".feather"}
PACKINGS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd", ".zip": "zip"}
KINDS = ".jsonl, .json, .csv, .tsv or .tar (also with .gz, .bz2, .xz, .zst or .zip), .parquet, .arrow or .feather"
