"""How one model reads a conversation: its chat template or a plain one, its special tokens, its tokens.

A prompt is everything that a model reads before its answer, a response is the text of the answer and nothing else
(`prefkd.data.frames`). Their tokens are those of the whole conversation through `apply_chat_template(tokenize=True)`,
but for three things. No token straddles the border, so that response offsets count from the response's start.
Special-token text in a message stays text. Where a template writes no end, an answer ends with the EOS, and is joined
with nothing that the template writes next.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from prefkd.data.encoder import Cue, Encoder, Line, Tokens
from prefkd.data.frames import Frame, Framing
from prefkd.data.messages import Answer, Message
from prefkd.data.template_settings import TemplateSettings, template_settings, unread_arguments
from prefkd.data.templates import HELLO, PLAIN, PROBE, ChatTemplate, PlainTemplate, Template, Tools
from prefkd.errors import DataError, PrefkdError
from prefkd.files import fingerprint

logger = logging.getLogger(__name__)

# Part of every fingerprint: raise it when the same template and tokenizer come to give other tokens.
VERSION = 6

# Where the end of a prompt would merge with an answer, the answer is tokenized behind one of these instead.
APART = ("\n", "a", ".", "0", "\u4e00")
# So many characters of an answer decide about the last tokens of its prompt.
HEAD = 4


class ModelSide:
    """One model's side of a pair: its template and its tokenizer.

    Args:
        tokenizer: The model's tokenizer, a fast one, since parents need offsets.
        template: `chat` is the tokenizer's own chat template, `plain` writes role headings; `auto` takes the chat
            template if there is one. Or the keys of `prefkd.data.template_settings.TemplateSettings`. A template from
            elsewhere, or one with arguments, takes the place of the tokenizer's own.
        name: Name of the model in messages.
        embeddings: How many tokens the model has an embedding for; None where it reads nothing.
        positions: How many positions a row may have; None where nothing bounds them.

    Attributes:
        bos_id: The token that begins prompts, or None: what the chat template writes; without a chat template, what
            the tokenizer itself puts before a text.
        end: The text that ends an answer: what the template writes behind it, up to the first special or added token.
        end_ids: The tokens of this text, or the tokenizer's EOS if the template writes nothing there.
        eos_id: The token that a model stops at: the last of `end_ids`, or the tokenizer's EOS if the end is mere text.
        stop_text: The end if it is mere text, at which nothing stops by itself, or None.
        uses_chat_template: Whether it is the tokenizer's chat template.
        keeps_thoughts: Whether answers keep their thoughts.

    Raises:
        PrefkdError: The tokenizer or its template cannot be used.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: Literal["auto", "chat", "plain"] | Mapping[str, Any] = "auto",
        name: str | None = None,
        embeddings: int | None = None,
        positions: int | None = None,
    ):
        self.tokenizer: Any = tokenizer
        self.name = name or tokenizer.name_or_path or "the model"
        if not tokenizer.is_fast:
            raise PrefkdError(f"{self.name}: its tokenizer gives no character offsets; use one with a tokenizer.json")
        settings = template_settings(template)
        self._take_over(settings)
        if settings.kind == "chat" and not tokenizer.chat_template:
            raise PrefkdError(f"{self.name}: its tokenizer has no chat template; use template: plain")
        own = tokenizer.chat_template
        self.keeps_thoughts = settings.thoughts == "keep"
        self.uses_chat_template = settings.kind != "plain" and bool(own) and own not in PLAIN
        self.template: Template = ChatTemplate(tokenizer, self.name) if self.uses_chat_template else PlainTemplate()
        self.encoder = Encoder(tokenizer)
        try:
            self.framing = Framing(self.template, self.encoder, self.name)
        except DataError as error:
            raise PrefkdError(str(error)) from error
        self.bos_id = self._find_bos()
        self.end, end_token = self.framing.end, self.framing.end_token
        eos_id = self.tokenizer.convert_tokens_to_ids(end_token) if end_token else self.tokenizer.eos_token_id
        if eos_id is None:
            raise PrefkdError(f"{self.name}: neither its tokenizer nor its template has a token that ends an answer")
        self.eos_id: int = eos_id
        self.stop_text = None if end_token or not self.end else self.end
        self._end_special = end_token if self.encoder.special.fullmatch(end_token) else ""
        self.end_ids = self._find_end_ids()
        if self.uses_chat_template and not end_token:
            end = f"with the text {self.end!r}; stop generation there" if self.end else "with nothing; they get its EOS"
            logger.warning("%s: its chat template ends answers %s", self.name, end)
        self.embeddings = embeddings
        self.positions = positions
        self._require_embeddings()

    def _take_over(self, settings: TemplateSettings) -> None:
        """Put a template from elsewhere, or one with arguments, in the place of the tokenizer's own."""
        if settings.path is not None:
            self.tokenizer.chat_template = Path(settings.path).read_text(encoding="utf-8")
        own = self.tokenizer.chat_template
        if settings.arguments and not isinstance(own, str):
            raise PrefkdError(f"{self.name}: its tokenizer has no single chat template that takes arguments; give path")
        # As a part of the template they hold for whoever uses the trained model. Jinja takes the line breaks off.
        given = "".join(f"{{% set {name} = {value!r} %}}\n" for name, value in settings.arguments.items())
        if given and not own.startswith(given):
            for problem in unread_arguments(own, settings.arguments):
                raise PrefkdError(f"{self.name}: template{problem}")
            self.tokenizer.chat_template = given + own

    def frame(self, messages: Sequence[Message], *, thoughts: bool = False, tools: Tools | None = None) -> Frame:
        """What stands before and after an answer to these messages, as `Framing.frame` has it."""
        return self.framing.frame(messages, thoughts=thoughts, tools=tools)

    def response(self, messages: Sequence[Message], answer: Answer, frame: Frame) -> str:
        """The answer as the template writes it, as `Framing.response` has it."""
        return self.framing.response(messages, answer, frame)

    def encode_prompts(
        self, frames: Sequence[Frame], answers: Sequence[Sequence[str]] | None = None
    ) -> list[list[int]]:
        """Token ids of prompts.

        Args:
            frames: Their frames.
            answers: For each prompt the responses that follow it. A byte-level tokenizer may cut blanks at the end of
                a prompt in another way where text follows. Without this argument nothing follows, as in generation.

        Raises:
            DataError: The tokenizer cuts the end of a prompt in one way before one of its responses, and in another way
                before the other.
        """
        rows = self.encoder.encode_guarded([frame.before for frame in frames])
        if answers is not None:
            heads = [{frame.gap + text[:HEAD] for text in texts} for frame, texts in zip(frames, answers, strict=True)]
            keys = ((frame.cue, head) for frame, some in zip(frames, heads, strict=True) for head in ("", *some))
            tails = self._tails(dict.fromkeys(keys))
            for row, frame, some in zip(rows, frames, heads, strict=True):
                self._let_follow(row, tails[frame.cue, ""], [tails[frame.cue, head] for head in some])
        return rows if self.uses_chat_template or self.bos_id is None else [[self.bos_id, *row] for row in rows]

    def encode_responses(
        self, texts: Sequence[str], frames: Sequence[Frame] | None = None
    ) -> tuple[list[list[int]], list[np.ndarray]]:
        """Token ids of responses without their end, and the characters of each token, int64 (tokens, 2): start, end.

        Special-token text is text: an answer that explains `</s>` does not end at it.

        Args:
            texts: The responses.
            frames: Text around each; without them, the usual text of the template.

        Raises:
            DataError: The tokenizer joins a response with its end, so that no token ends where it does.
        """
        frames = [self.framing.example] * len(texts) if frames is None else frames
        lines = [self._line(frame.cue, frame.gap + text) for frame, text in zip(frames, texts, strict=True)]
        responses = []
        for frame, text, tokens in zip(frames, texts, self.encoder.encode_lines(lines), strict=True):
            found = self._cut_out(tokens, frame.cue, frame.gap, text)
            responses.append(self._encode_apart(frame.gap, text) if found is None else found)
        return [ids for ids, _ in responses], [offsets for _, offsets in responses]

    @cached_property
    def begins_with_blank(self) -> bool:
        """Whether the tokens of an answer begin with a blank that its text does not have."""
        [[ids], _] = self.encode_responses(["a"])
        return "a a" in self.tokenizer.backend_tokenizer.decode([*ids, *ids])

    @cached_property
    def fingerprint(self) -> str:
        """Names tokenizer, template and special tokens; it changes when one of them does."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
        made_of = (backend.to_str(), self.template.source, self.bos_id, self.end_ids, self.keeps_thoughts)
        return fingerprint("side", VERSION, *made_of)

    def _find_bos(self) -> int | None:
        """Whether a prompt begins with the BOS is for the chat template to say, else for the tokenizer."""
        if not self.uses_chat_template:
            bare, whole = (self.tokenizer("a", add_special_tokens=added)["input_ids"] for added in (False, True))
            return whole[0] if whole[0] != bare[0] else None
        bos = self.tokenizer.bos_token
        openings = [self.framing.example.before, self.template.write([Message(role="system", content=PROBE), *HELLO])]
        return self.tokenizer.bos_token_id if bos and any(text.startswith(bos) for text in openings) else None

    def _find_end_ids(self) -> list[int]:
        """The tokens of the end, as they are behind an answer."""
        if not self.end:
            return [self.eos_id]
        cue, gap = self.framing.example.cue, self.framing.example.gap
        for text in (PROBE, "a", "0", "\u4e00"):
            [(ids, offsets)] = self.encoder.encode_lines([self._line(cue, gap + text)])
            start = len(cue.text + gap + text)
            last = self._tokens_before(start, offsets)
            if offsets[last - 1, 1] <= start:
                return ids[last : self._tokens_before(start + len(self.end), offsets)] if self.stop_text else ids[last:]
        raise PrefkdError(f"{self.name}: {self._joined_with_its_end()}")

    def _line(self, cue: Cue, text: str) -> Line:
        """A text behind the end of a prompt, followed by what ends an answer."""
        if self.stop_text:  # what follows may be joined with it
            return Line(cue.special, cue.text + text + self.framing.example.after, "")
        return Line(cue.special, cue.text + text + self.end.removesuffix(self._end_special), self._end_special)

    def _tails(self, keys: Iterable[tuple[Cue, str]]) -> dict[tuple[Cue, str], list[int] | None]:
        """The tokens of ends of prompts where something follows, or None where they merge with it."""
        keys = list(keys)
        encoded = self.encoder.encode_lines([Line(cue.special, cue.text + following, "") for cue, following in keys])
        tails = {}
        for (cue, following), (ids, offsets) in zip(keys, encoded, strict=True):
            first = self._first_token(offsets, cue) if following else len(ids)
            tails[cue, following] = None if first is None else ids[:first]
        return tails

    def _let_follow(self, row: list[int], alone: list[int] | None, followed: Sequence[list[int] | None]) -> None:
        """Give a prompt the last tokens that it has where responses follow; one that merges with it has no say."""
        wanted = {tuple(tail) for tail in followed if tail is not None}
        if wanted <= {tuple(alone or ())}:
            return
        if len(wanted) > 1:
            raise DataError(
                f"the tokenizer of {self.name} cuts the end of the prompt in one way before one answer and in another "
                "way before the other; take the blanks off the start of the answers or use template: plain"
            )
        if not _replace_end(row, alone or [], list(*wanted)):
            raise DataError(
                f"the tokenizer of {self.name} cuts the end of the prompt in another way where an answer follows, and "
                "its last characters do not show how; use template: plain"
            )

    def _first_token(self, offsets: np.ndarray, cue: Cue) -> int | None:
        """The first token of what stands behind a cue, or None where the two merge."""
        start = len(cue.text)
        behind = offsets[:, 0] >= start
        first = int(behind.argmax()) if behind.any() else len(offsets)
        reached = offsets[first - 1, 1] if first else 0
        # A special token that takes blanks on its right is the same token whatever it takes.
        return None if reached > start and not (first == 1 and cue.special) else first

    def unreadable(self, ids: Iterable[int]) -> str | None:
        """Why the model cannot read some token ids: the first that it has no embedding for. None if it can."""
        beyond = next((i for i in ids if self.embeddings is not None and i >= self.embeddings), None)
        if beyond is None:
            return None
        return (
            f"the token {self.tokenizer.convert_ids_to_tokens(beyond)!r} of {self.name} has the id {beyond}, but the "
            f"model has embeddings for {self.embeddings} tokens (vocab_size in its config.json); give it the tokenizer "
            "that it was trained with, or resize its embeddings"
        )

    def _cut_out(self, tokens: Tokens, cue: Cue, gap: str, text: str) -> Tokens | None:
        """The tokens of a text behind a cue and a gap, or None where it merges with the cue."""
        ids, offsets = tokens
        first = self._first_token(offsets, cue)
        if first is None:
            return None
        start = len(cue.text) + len(gap)
        stop = start + len(text)
        last = max(first, self._tokens_before(stop, offsets))
        ends = ids[last : last + len(self.end_ids)] == self.end_ids or not self.end
        if not ends or (last and offsets[last - 1, 1] > stop):
            raise DataError(self._joined_with_its_end())
        # The tokens of the gap stand for no character of the text.
        return ids[first:last], np.maximum(offsets[first:last] - start, 0)

    def _require_embeddings(self) -> None:
        """Make sure that the model can read what its template writes around a question and an answer."""
        prompts = [[Message(role="user", content="Hello")]]
        prompts.append([Message(role="system", content="Help."), *prompts[0]])
        frames = []
        for prompt in prompts:
            with suppress(DataError):  # a template may refuse a system message, as it will in the data
                frames.append(self.frame(prompt))
        ids = [token for row in self.encode_prompts(frames) for token in row]
        problem = self.unreadable([*ids, *self.end_ids])
        if problem:
            raise PrefkdError(problem)

    def _encode_apart(self, gap: str, text: str) -> Tokens:
        """The tokens of a response that would merge with its prompt."""
        for lead in APART:
            cue = Cue("", lead)
            [tokens] = self.encoder.encode_lines([self._line(cue, gap + text)])
            found = self._cut_out(tokens, cue, gap, text)
            if found is not None:
                return found
        raise DataError(f"the tokenizer of {self.name} joins the start of the answer with whatever stands before it")

    def _tokens_before(self, place: int, offsets: np.ndarray) -> int:
        """How many tokens begin before a place, where the special token of the end always begins behind it."""
        before = offsets[: len(offsets) - bool(self._end_special), 0] < place
        return len(before) - int(before[::-1].argmax()) if before.any() else 0

    def _joined_with_its_end(self) -> str:
        return (
            f"the tokenizer of {self.name} joins the last characters of an answer with {self.end!r}, the text that "
            "ends it; add this text to the tokenizer as a special token or use template: plain"
        )


def _replace_end(row: list[int], alone: list[int], followed: list[int]) -> bool:
    """Put the last tokens where something follows in place of those where nothing does; whether this could be done."""
    same = next((i for i, (one, other) in enumerate(zip(alone, followed, strict=False)) if one != other), None)
    same = min(len(alone), len(followed)) if same is None else same
    kept = len(row) - (len(alone) - same)
    found = bool(same) and row[kept - 1 :] == alone[same - 1 :]
    if found:
        row[kept:] = followed[same:]
    return found
