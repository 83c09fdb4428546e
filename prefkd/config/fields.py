"""Settings of a recipe's config by their type: a recipe of the user's own may call its fields as it likes."""

from dataclasses import fields
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
