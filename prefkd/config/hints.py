"""Type hints of config fields: what they ask for, in words, and whether a value from YAML fits them and its range."""

import types
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

LARGEST_SIZE = 2**31 - 1  # of what is counted; torch and Arrow count rows and tokens in as many bits
MOST_TOKENS = 2**24  # of a text; no model reads as many, and a plan builds a batch of them
LARGEST_SEED = 2**32 - 1  # NumPy takes no larger one
LONGEST_SHOWN = 80

_WORDS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    Path: "a path",
    list: "a list",
    dict: "a section of keys and values",
    types.NoneType: "null",
    Any: "a value",
}


def describe(hint: Any) -> str:
    """What a type hint asks for, in words that follow "is not" and "give"."""
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) is tuple:
        return f"a list of {len(get_args(hint))} ({', '.join(map(describe, get_args(hint)))})"
    if get_origin(hint) in (list, dict):
        return f"{_WORDS[get_origin(hint)]}, each {describe(get_args(hint)[-1])}"
    if is_union(hint):
        return " or ".join(describe(member) for member in members(hint))
    if get_origin(hint) is Annotated:
        return "a component, a section with _component_: dotted.path"
    if is_dataclass(hint):
        return "a section of keys and values"
    return _WORDS.get(get_origin(hint) or hint) or f"a {getattr(hint, '__name__', hint)}"


def shown(value: Any) -> str:
    """A value for a message: as Python writes it, or if that is long its kind and size."""
    text = "null" if value is None else repr(value)
    if len(text) <= LONGEST_SHOWN:
        return text
    if isinstance(value, Mapping):
        return f"a section of {', '.join(map(str, [*value][:4]))}{' and more' if len(value) > 4 else ''}"
    return f"a list of {len(value)}" if isinstance(value, list | tuple) else f"{text[:LONGEST_SHOWN]}..."


def size_problems(section: Any, *names: str, least: int = 1, most: int = LARGEST_SIZE) -> Iterator[str]:
    """Which fields of a config section are outside of a range. A field that is null is not.

    Args:
        names: The fields.
        least, most: The smallest and the largest number that a field may have.
    """
    for name in names:
        value = getattr(section, name)
        if value is not None and value < least:
            yield f"{name}: {value} is too small; use {least} or more"
        elif value is not None and value > most:
            yield f"{name}: {value} is too large; use {most} or less"


def is_union(hint: Any) -> bool:
    """Whether a hint is a Union, an Optional or of the form A | B."""
    return get_origin(hint) in (Union, types.UnionType)


def members(hint: Any) -> list[Any]:
    """The alternatives of a union, or the hint itself. No file holds a tensor: `float | Tensor` asks for a number."""
    if not is_union(hint):
        return [hint]
    return [member for member in get_args(hint) if getattr(member, "__name__", "") != "Tensor"]


def named_sections(hint: Any) -> type | None:
    """The dataclass of a hint `dict[str, dataclass]`: sections of one kind, whose names the file chooses."""
    if get_origin(hint) is not dict:
        return None
    section = get_args(hint)[-1]
    return section if is_dataclass(section) and isinstance(section, type) else None


def listed_sections(hint: Any) -> type | None:
    """The dataclass of a hint `list[dataclass]`: a list of sections of one kind."""
    section = get_args(hint)[-1] if get_origin(hint) is list else None
    return section if is_dataclass(section) and isinstance(section, type) else None


def is_mistaken(value: Any, hint: Any) -> bool:
    """Whether OmegaConf would take a value for something that nobody has written.

    A number such as 2 becomes true, and an escaped interpolation, which is a text, a value of any type.
    """
    kinds = set(members(hint))
    if isinstance(value, int) and value not in (0, 1):
        return bool in kinds and not kinds & {int, float}
    return isinstance(value, str) and r"\${" in value and not fits("text", hint)


def fits(value: Any, hint: Any) -> bool:
    """Whether a YAML value suits a parameter's hint. In doubt (a class that YAML knows nothing of) it does."""
    if is_mistaken(value, hint):
        return False
    if is_union(hint):
        return any(fits(value, member) for member in members(hint))
    if hint in (str, Path):  # OmegaConf would take 3 for "3", but the component gets the value as it stands in the file
        return isinstance(value, str)
    items = get_args(hint)
    if get_origin(hint) is tuple and items and ... not in items:
        return isinstance(value, list | tuple) and len(value) == len(items) and all(map(fits, value, items))
    try:
        slot = OmegaConf.structured(make_dataclass("Slot", [("value", hint)]))
    except (OmegaConfBaseException, TypeError, NameError):
        return True
    try:
        OmegaConf.update(slot, "value", value, merge=False)
        converted = slot.value
    except OmegaConfBaseException:
        return False
    return not isinstance(value, str) or isinstance(converted, str)  # it would take "0.1" for a number
