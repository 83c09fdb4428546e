"""The arguments that verbs share."""

from typing import Annotated, Any

from tyro.conf import arg


def optional(metavar: str) -> Any:
    """An argument whose help does not repeat that it may be left out."""
    return arg(metavar=metavar, help_behavior_hint="")


RecipeName = Annotated[str, arg(metavar="RECIPE")]
Overrides = Annotated[tuple[str, ...], optional("[KEY=VALUE ...]")]
Config = Annotated[str | None, optional("CONFIG")]
