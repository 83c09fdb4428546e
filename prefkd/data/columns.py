"""Columns of a data set under the names that a format reads."""

from collections.abc import Mapping
from typing import Any

from prefkd.data.fields import has_content
from prefkd.errors import DataError


def renamed(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """A row with fields under other names.

    Args:
        row: Field name -> value.
        columns: The name that a format reads -> the column that holds it; dots lead into objects and lists, as in
            `input.messages` or `answers.0.text`. A column of that whole name comes first.

    Returns:
        The named fields, and what is left of the row. A field that another takes the name of keeps its content, as
        `{name} of the file`, so that it counts as not read.

    Raises:
        DataError: A column is missing.
    """
    found, rest = {}, dict(row)
    for name, path in columns.items():
        found[name] = value_at(row, path)
        rest = _without(rest, [path] if path in row else path.split("."))
    return {f"{name} of the file" if name in found else name: value for name, value in rest.items()} | found


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """What a row has in a column; dots lead into objects and lists.

    Raises:
        DataError: The column is missing.
    """
    value: Any = row
    for key in [path] if path in row else path.split("."):
        if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        elif isinstance(value, Mapping) and key in value:
            value = value[key]
        else:
            raise DataError(f"column '{path}' is missing")
    return value


def _without(value: Any, keys: list[str]) -> Any:
    """A copy of a value without what lies at a path; what is left empty is left out."""
    key, *others = keys
    if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
        part = _without(value[int(key)], others) if others else None
        return [part if i == int(key) else other for i, other in enumerate(value)]
    if not isinstance(value, Mapping) or key not in value:
        return value
    rest = {name: part for name, part in value.items() if name != key}
    if others and has_content(left := _without(value[key], others)):
        rest[key] = left
    return rest
