"""The answers of an aligned data set as text, with the characters and the tokens of each parent."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from datasets import Dataset

from prefkd.data.frames import Frame
from prefkd.data.messages import Message, unpack_calls
from prefkd.data.rows import ANSWERS, SIDES, AlignedAnswer, AlignedRow
from prefkd.data.shared_answers import write_answers
from prefkd.data.sides import ModelSide
from prefkd.data.token_map import BYTE_OF
from prefkd.method.parent_tokens import find_parents_batch
from prefkd.reports.pairs import TokenText
from prefkd.reports.visible import visible_line

# Columns of parents: the first token of a side and the one behind its last.
_TOKENS = {"student": slice(2, 4), "teacher": slice(4, 6)}
_NUMBERED_BYTE = re.compile("<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class Answer:
    """One answer, aligned.

    Attributes:
        name: `chosen` or `rejected`.
        written: How long the answer is in the data; templates may trim it.
        text: The answer as both templates write it.
        ids, offsets: For each side the tokens of the whole text, and their characters (start, end).
        parents: (P, 6) parents that truncation leaves, with the columns of `prefkd.method.parent_tokens`.
        ends: Whether the end of the answer follows them, because nothing was cut off.
    """

    name: str
    written: int
    text: str
    ids: Mapping[str, Sequence[int]]
    offsets: Mapping[str, np.ndarray]
    parents: np.ndarray
    ends: bool

    @property
    def kept(self) -> int:
        """Characters that truncation leaves."""
        return int(self.parents[-1, 1])

    @property
    def single(self) -> np.ndarray:
        """(P,) whether a parent is one token on each side."""
        return (self.lengths == 1).all(1)

    @property
    def lengths(self) -> np.ndarray:
        """(P, 2) tokens of each parent: of the student, of the teacher."""
        return self.parents[:, [3, 5]] - self.parents[:, [2, 4]]

    @property
    def characters(self) -> np.ndarray:
        """(P,) characters of each parent."""
        return self.parents[:, 1] - self.parents[:, 0]

    def parent_text(self, parent: int) -> str:
        """The text of a parent."""
        start, end = self.parents[parent, :2].tolist()
        return self.text[start:end]

    def parent_ids(self, parent: int, side: str) -> Sequence[int]:
        """The tokens of a parent on one side."""
        first, end = self.parents[parent, _TOKENS[side]].tolist()
        return self.ids[side][first:end]


@dataclass(frozen=True)
class InspectedPair:
    """A pair of the aligned data set.

    Attributes:
        file, row: Where it comes from.
        prompt: The conversation.
        answers: Chosen and rejected, or an answer without a rival.
        aligned: Its tokens.
    """

    file: str
    row: int
    prompt: Sequence[Message]
    answers: tuple[Answer, ...]
    aligned: AlignedRow


def read_answers(pairs: Dataset, aligned: Dataset, sides: Mapping[str, ModelSide]) -> list[InspectedPair]:
    """Put the text back to the tokens of an aligned data set.

    Args:
        pairs: Input of `align_pairs`.
        aligned: Its result.
        sides: `student` and `teacher`, as it was given them.
    """
    places = {place: i for i, place in enumerate(zip(pairs["file"], pairs["row"], strict=True))}
    kept: list[dict[str, Any]] = aligned.to_list()
    rows = pairs.select([places[row["file"], row["row"]] for row in kept]).to_list()
    texts: list[str] = []
    named: list[list[str]] = []
    frames: dict[str, list[Frame]] = {name: [] for name in sides}
    for row in rows:
        packed = row.get("calls")
        prompt, found, tools = unpack_calls(row["prompt"], {name: row[name] for name in ANSWERS}, packed)
        named.append([name for name in ANSWERS if found[name]])  # there may be no rival, which is the last one
        around, answers, _ = write_answers(prompt, [found[name] for name in named[-1]], sides, tools)
        texts += answers
        for name, frame in around.items():
            frames[name] += [frame] * len(answers)
    encoded = {name: side.encode_responses(texts, frames[name]) for name, side in sides.items()}
    parents = find_parents_batch(encoded["student"][1], encoded["teacher"][1], texts)

    def answer(n: int, name: str, row: Mapping[str, Any], aligned: AlignedAnswer) -> Answer:
        return Answer(
            name=name,
            written=len(row[name]),
            text=texts[n],
            ids={side: encoded[side][0][n] for side in SIDES},
            offsets={side: encoded[side][1][n] for side in SIDES},
            parents=parents[n][: aligned.parents - aligned.ends],
            ends=aligned.ends,
        )

    number = count()
    return [
        InspectedPair(
            file=row["file"],
            row=row["row"],
            prompt=row["prompt"],
            answers=tuple(
                answer(next(number), name, row, own) for name, own in zip(names, tokens.answers, strict=False)
            ),
            aligned=tokens,
        )
        for row, tokens, names in zip(rows, map(AlignedRow.of, kept), named, strict=True)
    ]


def token_texts(answer: Answer, parent: int, side: str, tokenizer: Any) -> list[TokenText]:
    """The tokens of a parent as a reader sees them, in one line each."""
    first, end = answer.parents[parent, _TOKENS[side]].tolist()
    spans, ids = answer.offsets[side].tolist(), answer.ids[side]

    def shown(i: int) -> TokenText:
        start, stop = spans[i]
        after_others = i == 0 or spans[i - 1][1] <= start
        before_others = i + 1 == len(spans) or spans[i + 1][0] >= stop
        text, name = answer.text[start:stop], tokenizer.convert_ids_to_tokens(ids[i])
        # The blank that SentencePiece puts before a text shares the first character, which is still a token of its own.
        if text and ((after_others and before_others) or name == text):
            return TokenText(visible_line(text), True)
        return TokenText(_token_name(name), False)

    return [shown(i) for i in range(first, end)]


def _token_name(name: str) -> str:
    """The bytes of a token that is a part of a character, else its name in the vocabulary."""
    numbered = _NUMBERED_BYTE.fullmatch(name)
    if numbered:
        return numbered[1]
    if all(symbol in BYTE_OF for symbol in name):
        data = bytes(BYTE_OF[symbol] for symbol in name)
        try:
            data.decode()
        except UnicodeDecodeError:
            return data.hex(" ").upper()
    return visible_line(name)
