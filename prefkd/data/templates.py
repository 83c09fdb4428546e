"""How one model reads a conversation: its chat template or a plain one, its special tokens, its tokens.

A prompt is everything that a model reads before its answer, a response is the text of the answer and nothing else:

    <|im_start|>user\\nHello<|im_end|>\\n<|im_start|>assistant\\n   Hi there!   <|im_end|>\\n
    prompt                                                      response    the end: its first token is the EOS

The two are tokenised apart, so that no token straddles the border and response offsets count from the response's start.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import jinja2
from transformers import PreTrainedTokenizerBase

from prefkd.data.formats import Message
from prefkd.data.pairs import fingerprint
from prefkd.errors import DataError, PrefkdError

logger = logging.getLogger(__name__)

# Part of every fingerprint: raise it when the same template and tokenizer come to give other tokens.
VERSION = 2

# An answer that stands in for any other, to see what a template writes around it.
PROBE = "The quick brown fox is the answer."
# Stands on both sides of special-token text in a message. Unicode keeps this character for private uses such as this.
GUARD = "\ufdd0"
# Templates of Llama 3 tell the model which day it is. Taken from the calendar, the same pairs would be other tokens
# tomorrow; so it is always the day that these templates themselves fall back on.
DAY = "26 Jul 2024"


class Template(Protocol):
    """Writes a conversation down.

    Attributes:
        source: What it is made of; equal for equal templates.
    """

    source: str

    def write(self, messages: Sequence[Message], answer: str | None = None) -> str:
        """The messages and their answer, or without an answer everything up to the place where one belongs."""
        ...


class PlainTemplate:
    """Roles as headings on lines of their own, for models without a chat template. An answer begins a line."""

    headings = {"system": "System", "user": "User", "assistant": "Assistant"}  # noqa: RUF012
    source = str(headings)

    def write(self, messages: Sequence[Message], answer: str | None = None) -> str:
        turns = "".join(f"{self.headings[turn['role']]}:\n{turn['content']}\n\n" for turn in messages)
        return f"{turns}{self.headings['assistant']}:\n{answer or ''}"


class ChatTemplate:
    """The chat template of a tokenizer. Where it takes no system message, the first user message takes its text in."""

    def __init__(self, tokenizer: Any, name: str):
        self.tokenizer = tokenizer
        self.name = name
        self.source = str(tokenizer.chat_template)
        self.merges_system = False
        system = [Message(role="system", content=PROBE), Message(role="user", content="Hello")]
        try:
            # With an answer as well: Mistral's template writes a system message only where the user has the last word.
            self.merges_system = not all(PROBE in self.write(system, answer) for answer in (None, "Hi"))
        except DataError:
            self.merges_system = True

    def write(self, messages: Sequence[Message], answer: str | None = None) -> str:
        turns = merge_system(messages) if self.merges_system else list(messages)
        if answer is not None:
            turns.append(Message(role="assistant", content=answer))
        try:
            return self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=answer is None, date_string=DAY
            )
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


@dataclass(frozen=True)
class Frame:
    """What a model's template writes around an answer.

    Attributes:
        before: The prompt. Special-token text of a message stands between two `GUARD`s.
        gap: A blank between prompt and answer that is in neither, because the tokenizer begins every text with one.
        after: The end of the answer and whatever follows it.
    """

    before: str
    gap: str
    after: str


class ModelSide:
    """One model's side of a pair: its template and its tokenizer.

    Args:
        tokenizer: The model's tokenizer, a fast one, since parents need offsets.
        template: `chat` is the tokenizer's own chat template, `plain` writes role headings; `auto` takes the chat
            template if there is one.
        name: What messages call the model.

    Attributes:
        eos_id: The token that ends an answer.
        bos_id: The token that begins every prompt, or None.
        uses_chat_template: Which of the two templates it is.
        begins_with_blank: Whether the tokenizer begins every text with a blank, as SentencePiece does.

    Raises:
        PrefkdError: The tokenizer or its template cannot be used.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: Literal["auto", "chat", "plain"] = "auto",
        name: str | None = None,
    ):
        self.tokenizer: Any = tokenizer
        self.name = name or tokenizer.name_or_path or "the model"
        if not tokenizer.is_fast:
            raise PrefkdError(f"{self.name}: its tokenizer gives no character offsets; use one with a tokenizer.json")
        if template == "chat" and not tokenizer.chat_template:
            raise PrefkdError(f"{self.name}: its tokenizer has no chat template; use template: plain")
        self.uses_chat_template = template != "plain" and bool(tokenizer.chat_template)
        self.template: Template = ChatTemplate(tokenizer, self.name) if self.uses_chat_template else PlainTemplate()
        self.special_tokens = _special_tokens(self.tokenizer)
        self.begins_with_blank = self.tokenizer.tokenize("a")[0].startswith("▁")
        self.bos_id: int | None = self.tokenizer.bos_token_id
        self.eos_id = self._find_eos()

    def frame(self, messages: Sequence[Message]) -> Frame:
        """What stands before and after an answer to these messages.

        Raises:
            DataError: The template refuses the conversation, or asks for an answer in another way than it writes one.
        """
        messages = [Message(role=turn["role"], content=self._guarded(turn["content"])) for turn in messages]
        asked, written = self.template.write(messages), self.template.write(messages, PROBE)
        before, found, after = written.rpartition(PROBE)
        if not found or not before.startswith(asked):
            raise DataError(
                f"the chat template of {self.name} ends a prompt with {asked[-30:]!r}, but writes answers after "
                f"{before[-30:]!r}; use template: plain"
            )
        gap = before.removeprefix(asked)
        return Frame(asked, gap, after) if gap == " " and self.begins_with_blank else Frame(before, "", after)

    def response(self, messages: Sequence[Message], answer: str, frame: Frame) -> str:
        """The answer as the template writes it: many trim it."""
        written, before = self.template.write(messages, answer), frame.before.replace(GUARD, "") + frame.gap
        if not written.startswith(before) or not written.endswith(frame.after):
            raise DataError(f"the chat template of {self.name} writes something of its own for this answer")
        return written[len(before) : len(written) - len(frame.after)]

    def encode_prompts(self, frames: Sequence[Frame]) -> list[list[int]]:
        """Token ids of prompts, beginning with the BOS if the model has one.

        A prompt is tokenised whole, as in chat. Only special-token text of a message is tokenised apart, as text.
        """
        rows = self._encode([frame.before for frame in frames], parse_special=self.uses_chat_template)["input_ids"]
        for i, frame in enumerate(frames):
            if GUARD in frame.before:
                pieces = frame.before.split(GUARD)
                pieces[0::2] = self._encode(pieces[0::2], parse_special=True)["input_ids"]
                pieces[1::2] = self._encode(pieces[1::2], parse_special=False)["input_ids"]
                rows[i] = [token for piece in pieces for token in piece]
        if self.bos_id is None:
            return rows
        return [row if row[:1] == [self.bos_id] else [self.bos_id, *row] for row in rows]

    def encode_responses(self, texts: Sequence[str]) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
        """Token ids of responses without EOS, and the characters (start, end) of each token.

        Special-token text is text: an answer that explains `</s>` does not end at it.
        """
        encoded = self._encode(texts, parse_special=False, offsets=True)
        return encoded["input_ids"], encoded["offset_mapping"]

    @cached_property
    def fingerprint(self) -> str:
        """Names tokenizer, template and special tokens; it changes when one of them does."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
        return fingerprint("side", VERSION, backend.to_str(), self.template.source, self.bos_id, self.eos_id)

    def _find_eos(self) -> int:
        """The first special token that the template writes after an answer, else the tokenizer's EOS."""
        try:
            end = self.special_tokens.search(self.frame([Message(role="user", content="Hello")]).after)
        except DataError as error:
            raise PrefkdError(str(error)) from error
        eos_id = self.tokenizer.convert_tokens_to_ids(end[0]) if end else self.tokenizer.eos_token_id
        if eos_id is None:
            raise PrefkdError(f"{self.name}: neither its tokenizer nor its template has a token that ends an answer")
        return eos_id

    def _guarded(self, text: str) -> str:
        """Mark special-token text. The plain template needs no marks: all special-token text in it is text."""
        text = text.replace(GUARD, "\N{REPLACEMENT CHARACTER}")
        return self.special_tokens.sub(rf"{GUARD}\g<0>{GUARD}", text) if self.uses_chat_template else text

    def _encode(self, texts: Sequence[str], *, parse_special: bool, offsets: bool = False) -> Any:
        if not texts:
            return {"input_ids": [], "offset_mapping": []}
        return self.tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=not parse_special,
            return_offsets_mapping=offsets,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )


def _special_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Matches the text of any special token, the longest that begins at a place."""
    texts = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    longest_first = sorted(texts | set(tokenizer.all_special_tokens), key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def shared_response(messages: Sequence[Message], answer: str, sides: Sequence[tuple[ModelSide, Frame]]) -> str:
    """The text of an answer that all templates write alike: each in turn trims it until none changes it.

    Raises:
        DataError: They never agree.
    """
    text = answer
    for _ in range(4):
        before = text
        for side, frame in sides:
            text = side.response(messages, text, frame)
        if text == before:
            return text
    raise DataError("the chat templates of the two models write this answer in different ways")
