"""JSON without losses: Python's own reader silently drops the first of two fields with one name."""

import json
from collections import Counter
from typing import Any


def read_json(text: str) -> Any:
    """The value that a text is.

    Raises:
        ValueError: It is not JSON (`json.JSONDecodeError`), it is nested too deeply, or an object has two fields of one
            name.
    """
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(parts: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(parts)
    if len(found) < len(parts):
        twice = next(name for name, count in Counter(name for name, _ in parts).items() if count > 1)
        raise ValueError(f"two fields are named '{twice}'")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
