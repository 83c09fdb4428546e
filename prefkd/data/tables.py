"""One JSON value that holds a whole table, in the ways that pandas, `datasets` and people write it -> numbered rows."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MESSAGE_KEYS = frozenset({"role", "content", "from", "value"})
# What people call the list of rows in an object that holds other things as well.
ROWS = ("data", "rows", "records", "examples", "instances", "items", "entries", "samples", "pairs")


def rows_of_object(value: Sequence[Any] | Mapping[str, Any], first: int) -> Iterator[tuple[int, Any]]:
    """The rows of a JSON value.

        [row, ...]                                      an array
        {"data": [row, ...], ...}                       an object with a list of such a name, or with nothing else
        {"columns": [name], "data": [[cell]]}           pandas, orient="split"
        {name: {"0": cell}}                             pandas, orient="columns"
        {"0": row}                                      pandas, orient="index"
        {"rows": [{"row_idx": 0, "row": row}, ...]}     the Hub's viewer
        {name: [cell]}                                  one list of cells for each column
        row                                             one row

    Args:
        value: The value.
        first: The number of a row that is the value itself.

    Raises:
        ValueError: It holds several tables, or its columns have different lengths.
    """
    if isinstance(value, list):
        yield from enumerate(value, start=1)
        return
    assert isinstance(value, Mapping)
    lists = {name: part for name, part in value.items() if isinstance(part, list)}
    objects = {name: part for name, part in value.items() if isinstance(part, dict)}
    if "columns" in lists and "data" in lists:
        rows = (dict(zip(value["columns"], cells, strict=True)) for cells in value["data"])
    elif len(objects) == len(value) and _are_numbered(value):
        rows = iter(value.values())
    elif len(objects) == len(value) and all(_are_numbered(cells) for cells in value.values()):
        rows = _of_columns({name: list(cells.values()) for name, cells in value.items()})
    elif (name := next((name for name in ROWS if _are_rows(lists.get(name))), None)) and not _is_row(value):
        rows = (row["row"] if {"row", "row_idx"} <= set(row) else row for row in lists[name])
    elif len(lists) == len(value) and len(value) > 1 and all(_are_rows(part) for part in lists.values()):
        raise ValueError(f"it holds several tables: {', '.join(value)}; write each into a file of its own")
    elif len(value) == 1 and _are_rows(next(iter(value.values()))):
        rows = iter(next(iter(value.values())))
    elif len(lists) == len(value) > 1 and not any(_are_messages(part) for part in lists.values()):
        rows = _of_columns(lists)
    else:
        yield first, value
        return
    yield from enumerate(rows, start=1)


def _of_columns(columns: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    if len(set(map(len, columns.values()))) > 1:
        raise ValueError("its columns have different lengths")
    return (dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True))


def _are_numbered(value: Mapping[str, Any]) -> bool:
    return bool(value) and all(key.isdecimal() for key in value)


def _are_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(part, dict) and MESSAGE_KEYS & set(part) for part in value)
    )


def _are_rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, dict) for part in value) and not _are_messages(value)


def _is_row(value: Mapping[str, Any]) -> bool:
    return "chosen" in value or "rejected" in value or "prompt" in value
