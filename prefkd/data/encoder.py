"""Tokens of a part of a conversation, as they are when the whole conversation is tokenized at once.

What stands before a text decides about its first tokens: SentencePiece begins a text with a blank, byte-level
vocabularies join a blank with the word behind it, and some special tokens swallow the blanks around them. So a part is
never tokenized by itself, but behind what stands before it: from the last special token on, since a tokenizer treats
the text between two special tokens as a text of its own.
"""

import copy
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from tokenizers import AddedToken

# Stands before special-token text in a message, and twice behind it, since a template may cut a message between the
# two. Unicode keeps this character for private uses such as this.
GUARD = "\ufdd0"
# Characters before a text that decide about its tokens, where there is no special token.
NEAR = 64

# Token ids, and int64 (tokens, 2): the characters (start, end) of each.
Tokens = tuple[list[int], np.ndarray]
# Where a line begins that has something in it.
_LINE = re.compile(r"\n(?=\S)")


class Cue(NamedTuple):
    """The end of a prompt.

    Attributes:
        special: Its last special token, or nothing if that is far away.
        text: Text after this token. Without one, the last line, since no tokenizer joins the end of a line with the
            text of the next; of a long line the last characters.
    """

    special: str
    text: str


class Line(NamedTuple):
    """A text between two special tokens, either of which may be missing. Special-token text in it is text."""

    before: str
    text: str
    after: str


class Encoder:
    """Tokenises with special tokens where a template wrote them, and with special-token text of messages as text.

    Args:
        tokenizer: A fast tokenizer.

    Attributes:
        special: Matches the text of a special token.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self._added = {token.content: token for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._added |= {text: AddedToken(text) for text in tokenizer.all_special_tokens if text not in self._added}
        self.special = any_of(self._added)
        self._first_characters = sorted({text[0] for text in self._added})
        self._marked = re.compile(
            f"{GUARD}(?P<text>{self.special.pattern}){GUARD}{GUARD}|{GUARD}+|(?P<token>{self.special.pattern})"
        )

    def guard(self, text: str) -> str:
        """Mark special-token text of a message, which is to stay text."""
        return self.special.sub(rf"{GUARD}\g<0>{GUARD}{GUARD}", text) if self.holds_special(text) else text

    def holds_special(self, text: str) -> bool:
        """Whether there is special-token text in a text. Most texts do not even have the character it begins with."""
        return any(first in text for first in self._first_characters) and self.special.search(text) is not None

    def encode_guarded(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts in which special-token text of messages is guarded."""
        # Without offsets, which nobody reads here, it takes three quarters of the time.
        encodings = self._backend().encode_batch_fast(
            ["" if GUARD in text else text for text in texts], add_special_tokens=False
        )
        rows = [encoding.ids for encoding in encodings]
        for i, text in enumerate(texts):
            if GUARD in text:
                rows[i] = self._encode_with_masks(text)
        return rows

    def encode_lines(self, lines: Sequence[Line]) -> list[Tokens]:
        """Tokens of the texts and of the special tokens around them; characters count from the start of the text."""
        if not lines:
            return []
        backend = self._backend()
        processor, backend.post_processor = backend.post_processor, None  # which may take blanks out of offsets
        try:
            encodings = backend.encode_batch(["".join(line) for line in lines], add_special_tokens=False)
        finally:
            backend.post_processor = processor
        ids, shifts = [encoding.ids for encoding in encodings], [len(line.before) for line in lines]
        for i, line in enumerate(lines):
            if self.holds_special(line.text):
                before, after = (text and self._masks[_flags(self._added[text])] for text in (line.before, line.after))
                encodings[i] = self._reader.encode(f"{before}{line.text}{after}", add_special_tokens=False)
                ids[i] = self._unmask(encodings[i].ids, [text for text in (line.before, line.after) if text])
                shifts[i] = len(before)
        lengths = np.array([len(row) for row in ids])
        # One text after another: as lists, the offsets of all would keep the garbage collector busy.
        offsets = chain.from_iterable(chain.from_iterable(encoding.offsets for encoding in encodings))
        spans = np.fromiter(offsets, np.int64, 2 * lengths.sum()) - np.repeat(shifts, 2 * lengths)
        return list(zip(ids, np.split(spans.reshape(-1, 2), lengths.cumsum()[:-1]), strict=True))

    def cue(self, prompt: str) -> Cue:
        """What the text behind a prompt is tokenized behind. Special-token text of messages is guarded."""
        found, special = None, ""
        if GUARD in prompt:
            for match in self._marked.finditer(prompt):
                found, special = (match, match["token"]) if match["token"] else (found, special)
            text = self._marked.sub(lambda match: match["text"] or "", prompt[found.end() if found else 0 :])
        else:
            near = prompt[-4 * NEAR :]
            for found in self.special.finditer(near):
                special = found[0]
            text = near[found.end() if found else 0 :]
        if found and len(text) <= NEAR:
            return Cue(special, text)
        text = text[-NEAR:]
        *_, line = (0, *(match.end() for match in _LINE.finditer(text)))
        return Cue("", text[line:])

    def _backend(self) -> Any:
        """The tokenizer that reads texts as they are, whatever it was used for last."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = False
        return backend

    @cached_property
    def _masks(self) -> dict[tuple[bool, ...], str]:
        """What stands for a special token: a text for each way in which special tokens treat what is around them."""
        flags = sorted({_flags(token) for token in self._added.values()})
        return {flag: f"{GUARD}{chr(0xE000 + i)}{GUARD}" for i, flag in enumerate(flags)}

    @cached_property
    def _reader(self) -> Any:
        """The tokenizer with masks as its only special tokens: all other special-token text is text to it."""
        reader = copy.deepcopy(self.tokenizer.backend_tokenizer)
        reader.no_padding()
        reader.no_truncation()
        reader.post_processor = None
        reader.encode_special_tokens = True
        for (lstrip, rstrip, single_word, normalized), mask in self._masks.items():
            flags = {"lstrip": lstrip, "rstrip": rstrip, "single_word": single_word, "normalized": normalized}
            reader.add_tokens([AddedToken(mask, special=False, **flags)])
        return reader

    def _encode_with_masks(self, text: str) -> list[int]:
        specials: list[str] = []

        def written(match: re.Match[str]) -> str:
            if match["token"]:
                specials.append(match["token"])
                return self._masks[_flags(self._added[match["token"]])]
            return match["text"] or ""

        masked = self._marked.sub(written, text)
        return self._unmask(self._reader.encode(masked, add_special_tokens=False).ids, specials)

    def _unmask(self, ids: Sequence[int], specials: Sequence[str]) -> list[int]:
        """Put special tokens to the places of their masks."""
        masks = {self._reader.token_to_id(mask) for mask in self._masks.values()}
        places = [i for i, token in enumerate(ids) if token in masks]
        row = list(ids)
        for place, token in zip(places, self.tokenizer.convert_tokens_to_ids(list(specials)), strict=True):
            row[place] = token
        return row


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches any of some texts, the longest that begins at a place."""
    longest_first = sorted(texts, key=lambda text: (-len(text), text))
    firsts = "".join(sorted({text[0] for text in longest_first}))
    # Some vocabularies have thousands of special tokens: what none of them begins with is passed over at once.
    return re.compile(f"(?=[{re.escape(firsts)}])(?:{'|'.join(map(re.escape, longest_first))})" if firsts else "(?!)")


def _flags(token: AddedToken) -> tuple[bool, ...]:
    return token.lstrip, token.rstrip, token.single_word, token.normalized
