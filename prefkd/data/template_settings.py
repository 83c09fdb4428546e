"""Settings of a model's template."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import jinja2
from jinja2 import meta, nodes

from prefkd.config.hints import shown
from prefkd.errors import PrefkdError, first_line, nearest

Kind = Literal["auto", "chat", "plain"]
# What every template is given; the rest of what it reads are arguments.
_GIVEN = {"messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now"}


@dataclass(frozen=True)
class TemplateSettings:
    """How a model reads a conversation. A config may name the kind alone, `template: plain`.

    Attributes:
        kind: `chat` = the tokenizer's chat template, `plain` = role headings, `auto` = chat where there is one.
        path: A file with a chat template, in place of the tokenizer's own. A trained model is saved with it.
        arguments: Arguments of the template, `{enable_thinking: false}` say.
        thoughts: `keep` = a thought before an answer, <think> ... </think> or `reasoning_content`, is a part of the
            answer on both sides; `drop` = it is left out on both sides.
    """

    kind: Kind = "auto"
    path: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    thoughts: Literal["keep", "drop"] = "keep"


def template_settings(value: Any) -> TemplateSettings:
    """The settings that a config gives: a kind, or a section of keys and values.

    Raises:
        PrefkdError: They cannot be used.
    """
    for problem in template_problems(value):
        raise PrefkdError(f"template{problem}")
    return TemplateSettings(**value) if isinstance(value, Mapping) else TemplateSettings(value)


def template_problems(value: Any) -> Iterator[str]:
    """What is wrong with the settings of a template, each as `.key: problem; remedy`."""
    kinds, names = get_args(Kind), [one.name for one in fields(TemplateSettings)]
    if not isinstance(value, Mapping):
        if value not in kinds:
            yield f": {shown(value)} is not one of {', '.join(kinds)}, nor a section with {', '.join(names)}"
        return
    for key in value:
        if key not in names:
            yield f".{key}: unknown key{nearest(str(key), names)}"
    for key, known in (("kind", kinds), ("thoughts", ("keep", "drop"))):
        if value.get(key, known[0]) not in known:
            yield f".{key}: {shown(value[key])} is not one of {', '.join(known)}"
    arguments = value.get("arguments", {})
    if not isinstance(arguments, Mapping) or not all(str(name).isidentifier() for name in arguments):
        yield f".arguments: {shown(arguments)} is not a section of names and values"
    else:
        for name in (name for name, given in arguments.items() if not _is_json(given)):
            yield f".arguments.{name}: {shown(arguments[name])} is not a value of JSON; give a text or a finite number"
    path = value.get("path")
    if path is not None and not isinstance(path, str):
        yield f".path: {shown(path)} is not a path; name a file"
    elif path is not None:
        yield from _path_problems(Path(path))
    if value.get("kind") == "plain" and (value.get("path") or arguments):
        yield ".kind: plain writes role headings and takes neither path nor arguments; remove it or them"


def unread_arguments(template: str, arguments: Iterable[str]) -> Iterator[str]:
    """Which arguments a chat template does not read, each as `.arguments.name: problem; remedy`."""
    try:
        read = meta.find_undeclared_variables(_parsed(template))
    except jinja2.TemplateSyntaxError:  # writing with it will say so
        return
    for name in arguments:
        if name not in read:
            yield f".arguments.{name}: the chat template does not read it{nearest(name, read - _GIVEN)}"


def _parsed(template: str) -> nodes.Template:
    """A template without the tag `generation`, which transformers adds to Jinja and which changes no text."""
    plain = re.sub(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}", "", template)
    return jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _path_problems(path: Path) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8")
        _parsed(text)
        if not text.strip():
            yield f".path: {path} is empty; write a chat template into it"
    except (OSError, UnicodeDecodeError) as error:
        yield f".path: {path} cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})"
    except jinja2.TemplateSyntaxError as error:
        yield f".path: {path} is not a Jinja template ({first_line(error)}, line {error.lineno})"
