"""Settings of a recipe's config by their type: a recipe of the user's own may call its fields as it likes."""

from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

Kind = TypeVar("Kind")


def setting(config: Any, kind: type[Kind], *, but: type | tuple[type, ...] = ()) -> Kind | None:
    """The first setting that is of a type, and of none of the types in `but`; None if there is none."""
    return next(
        (value for value in vars(config).values() if isinstance(value, kind) and not isinstance(value, but)), None
    )


def name_of(config: Any, wanted: Any) -> str:
    """The name of a setting."""
    return next(part.name for part in fields(config) if vars(config)[part.name] is wanted)


def settings_of(config: Any) -> dict[str, Any]:
    """The values of a recipe's config by dotted key, without its output_dir."""
    values = {key: str(value) if isinstance(value, Path) else value for key, value in flat(asdict(config))}
    return {key: value for key, value in values.items() if key != "output_dir"}


def flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The values in nested sections and lists, with their dotted keys."""
    if not isinstance(value, (dict, list, tuple)) or not value:
        yield key, list(value) if isinstance(value, tuple) else value
        return
    for name, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from flat(item, f"{key}.{name}" if key else str(name))
