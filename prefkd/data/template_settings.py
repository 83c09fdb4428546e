"""Settings of a model's template."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import jinja2

from prefkd.config.hints import shown
from prefkd.errors import PrefkdError, first_line, nearest

Kind = Literal["auto", "chat", "plain"]


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
    path = value.get("path")
    if path is not None and not isinstance(path, str):
        yield f".path: {shown(path)} is not a path; name a file"
    elif path is not None:
        yield from _path_problems(Path(path))
    if value.get("kind") == "plain" and (value.get("path") or arguments):
        yield ".kind: plain writes role headings and takes neither path nor arguments; remove it or them"


def _path_problems(path: Path) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8")
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(text)
        if not text.strip():
            yield f".path: {path} is empty; write a chat template into it"
    except (OSError, UnicodeDecodeError) as error:
        yield f".path: {path} cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})"
    except jinja2.TemplateSyntaxError as error:
        if "generation" not in str(error):  # a tag of transformers
            yield f".path: {path} is not a Jinja template ({first_line(error)}, line {error.lineno})"
