"""How a model's template writes a conversation down: its chat template, or a plain one with role headings."""

from collections.abc import Sequence
from datetime import datetime
from itertools import count
from typing import Any, Protocol

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from prefkd.data.messages import Answer, Message, answer_text
from prefkd.errors import DataError, PrefkdError, first_line
from prefkd.files import fingerprint

# An answer that stands in for any other, to see what a template writes around it.
PROBE = "The quick brown fox is the answer."
HELLO = [Message(role="user", content="Hello")]
SHORT_ID = 9  # characters that Mistral's templates ask the id of a call to have
# Some templates tell the model which day it is. Taken from the calendar, the same pairs would be other tokens tomorrow;
# so it is always the day that templates of Llama 3 fall back on.
NOW = datetime(2024, 7, 26)
DAY = f"{NOW:%d %b %Y}"
CLOCK = "strftime_now"
# transformers passes no functions on to a template, but a macro hides the function of its name that reads the clock.
# Jinja takes the line break off, so that the template begins at the start of a line.
STOPPED_CLOCK = (
    f"{{% macro {CLOCK}(format) %}}{{% set parts = namespace(text=format) %}}"
    + "".join(
        f"{{% set parts.text = parts.text.replace('%{code}', {NOW.strftime(f'%{code}')!r}) %}}"
        for code in (*"aAbBcCdDeFgGhHIjmMnprRStTuUVwWxXyYzZ%", "-d", "-m", "-H", "-I", "-M", "-S", "-j")
    )
    + "{{ parts.text }}{% endmacro %}\n"
)

Tools = Sequence[dict[str, Any]]


class Template(Protocol):
    """Writes a conversation down.

    Attributes:
        source: Its text and settings; equal for equal templates.
    """

    source: str

    def write(self, messages: Sequence[Message], answer: Answer | None = None, tools: Tools | None = None) -> str:
        """The messages and their answer, or without an answer everything up to the place where one belongs."""
        ...


class PlainTemplate:
    """Roles as headings on lines of their own, for models without a chat template. An answer begins a line."""

    headings = {name: name.capitalize() for name in ("system", "developer", "user", "assistant", "tool")}  # noqa: RUF012
    source = str({"system": "System", "user": "User", "assistant": "Assistant"})
    # The same as a chat template, which a model that was trained on it takes along.
    jinja = (
        "{% for message in messages %}{{ message['role'] | capitalize }}:\n{{ message['content'] }}"
        "{% if loop.last and message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\n\n' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}Assistant:\n{% endif %}"
    )
    jinja_with_bos = "{{ bos_token }}" + jinja

    def write(self, messages: Sequence[Message], answer: Answer | None = None, tools: Tools | None = None) -> str:
        turns = "".join(f"{self.headings[turn['role']]}:\n{turn['content']}\n\n" for turn in messages)
        text = answer["content"] if isinstance(answer, dict) else answer
        return f"{turns}{self.headings['assistant']}:\n{text or ''}"


PLAIN = (PlainTemplate.jinja, PlainTemplate.jinja_with_bos)


def plain_text(messages: Sequence[Message]) -> str:
    """A conversation for a reader who knows no template: under headings, calls of tools as JSON."""
    turns = [Message(role=turn["role"], content=answer_text(turn)) for turn in messages]
    template = PlainTemplate()
    return template.write(turns).removesuffix(f"{template.headings['assistant']}:\n").rstrip()


class ChatTemplate:
    """The chat template of a tokenizer. Where it takes no system message, the first user message takes its text in."""

    def __init__(self, tokenizer: Any, name: str):
        self.tokenizer = tokenizer
        self.name = name
        self.source = str(tokenizer.chat_template)
        try:
            jinja = tokenizer.get_chat_template()
        except ValueError as error:
            raise PrefkdError(f"{name}: {first_line(error)}") from error
        self._jinja = STOPPED_CLOCK + jinja if CLOCK in jinja else jinja
        self._special_tokens = tokenizer.special_tokens_map
        self.merges_system = self.shortens_ids = False
        system = [Message(role="system", content=PROBE), Message(role="user", content="Hello")]
        try:
            # With an answer as well: Mistral's template writes a system message only where the user has the last word.
            self.merges_system = not all(PROBE in self.write(system, answer) for answer in (None, "Hi"))
        except DataError:
            self.merges_system = True
        self.shortens_ids = not self._takes_call("call_1") and self._takes_call("a" * SHORT_ID)

    def _takes_call(self, name: str) -> bool:
        call = {"id": name, "type": "function", "function": {"name": "f", "arguments": {}}}
        called = Message(role="assistant", content="", tool_calls=[call])
        try:
            self.write([*HELLO, called, Message(role="tool", content="1", tool_call_id=name)])
        except DataError:
            return False
        return True

    def write(self, messages: Sequence[Message], answer: Answer | None = None, tools: Tools | None = None) -> str:
        turns: list[Any] = merge_system(messages) if self.merges_system else list(messages)
        if answer is not None:
            turns.append(Message(role="assistant", content=answer) if isinstance(answer, str) else answer)
        if self.shortens_ids:
            turns = with_short_ids(turns)
        try:
            # As `apply_chat_template` does it, which spends as much time on looking for what messages never hold here.
            [[written], _] = render_jinja_template(
                [turns],
                tools=None if tools is None else list(tools),
                chat_template=self._jinja,
                add_generation_prompt=answer is None,
                date_string=DAY,
                **self._special_tokens,
            )
            return written
        except (jinja2.TemplateError, ValueError, TypeError) as error:
            raise DataError(f"the chat template of {self.name} refuses the conversation: {error}") from error


def merge_system(messages: Sequence[Message]) -> list[Message]:
    """Put the text of a leading system message in front of the first user message."""
    if messages[0]["role"] != "system":
        return list(messages)
    system, *turns = messages
    first = next(i for i, turn in enumerate(turns) if turn["role"] == "user")
    turns[first] = Message(role="user", content=f"{system['content']}\n\n{turns[first]['content']}")
    return turns


def with_short_ids(messages: Sequence[Message]) -> list[Message]:
    """Messages whose calls have ids of nine letters and digits, and whose tools name them.

    An id that is otherwise gets a hash in its place. Where there is none, calls are numbered, and tools answer them in
    their order.
    """

    def short(name: str) -> str:
        is_short = len(name) == SHORT_ID and name.isascii() and name.isalnum()
        return name if is_short else fingerprint("call", name)[:SHORT_ID]

    numbers, waiting, found = count(1), list[str](), list[Message]()
    for turn in messages:
        calls = [{**call, "id": short(str(call.get("id") or next(numbers)))} for call in turn.get("tool_calls") or ()]
        waiting += [call["id"] for call in calls]
        if calls:
            turn = Message({**turn, "tool_calls": calls})
        elif turn["role"] == "tool" and (turn.get("tool_call_id") or waiting):
            name = short(turn["tool_call_id"]) if "tool_call_id" in turn else waiting[0]
            waiting = [other for other in waiting if other != name]
            turn = Message({**turn, "tool_call_id": name})
        found.append(turn)
    return found
