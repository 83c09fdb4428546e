"""From tokens back to text: what each parent reads like, and what each of its tokens is.

The text of a parent is what its tokens add to a text before them. Decoding them alone would lose the blank that
SentencePiece decoders strip from the start, so they are decoded behind a letter, which is then taken away.
"""

from collections.abc import Sequence
from functools import cache
from typing import cast

import numpy as np
import pyarrow as pa
from datasets import Dataset

from prefkd.data.rows import parent_column, token_column
from prefkd.data.sides import ModelSide
from prefkd.data.token_map import BYTE_OF
from prefkd.reports.weights.answers import WeightedAnswers

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class PieceReader:
    """Reads the tokens of one side.

    Args:
        side: The student or the teacher.
    """

    def __init__(self, side: ModelSide):
        self.begins_with_blank = side.begins_with_blank
        self._tokenizer = side.tokenizer
        self._letter: list[int] = side.encode_responses(["a"])[0][0]
        self._letter_length = len(self._decode([self._letter])[0])
        self.token = cache(self._token)

    def texts(self, pieces: Sequence[tuple[bool, Sequence[int]]]) -> list[str]:
        """The text of some pieces of answers.

        Args:
            pieces: For each piece, whether it begins an answer, and its token ids.
        """
        decoded = self._decode([[*self._letter, *ids] for _, ids in pieces])
        # At the start of an answer there may be a blank that is not in its text.
        starts = [self._letter_length + (begins and self.begins_with_blank) for begins, _ in pieces]
        return [text[start:] for text, start in zip(decoded, starts, strict=True)]

    def _token(self, token_id: int) -> str:
        """One token for a reader: its text; of a part of a character the bytes."""
        text = self.texts([(False, [token_id])])[0]
        if text and REPLACEMENT not in text:
            return text
        name: str = self._tokenizer.convert_ids_to_tokens(token_id)
        data = bytes(BYTE_OF.get(symbol, 0) for symbol in name)
        return f"<{data.hex().upper()}>" if data.decode(errors="replace") == text else name

    def _decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return self._tokenizer.backend_tokenizer.decode_batch([list(row) for row in rows], skip_special_tokens=False)


def exacter_side(student: ModelSide, teacher: ModelSide) -> str:
    """The side whose tokens give a parent's text: one that adds no blank of its own, if there is one."""
    return "teacher" if student.begins_with_blank and not teacher.begins_with_blank else "student"


def parent_texts(scored: Dataset, answer: str, answers: WeightedAnswers, side: str, reader: PieceReader) -> list[str]:
    """The text of all parents of the chosen or the rejected answers end to end; of the EOS its name.

    Args:
        scored: An aligned data set.
        answer: `chosen` or `rejected`.
        answers: Its answers.
        side: Whose tokens to read: the one of `reader`.
    """
    columns = [token_column(side, answer), parent_column(side, answer)]
    table = cast(pa.Table, scored.select_columns(columns).with_format("arrow")[:])
    ids, parents = (table[column].combine_chunks().flatten().to_numpy() for column in columns)
    lengths = table[columns[0]].combine_chunks().value_lengths().to_numpy()
    tokens_per_parent = np.bincount(parents + answers.starts.repeat(lengths), minlength=len(answers.is_end))
    ends = tokens_per_parent.cumsum()
    starts = np.concatenate(([0], ends[:-1]))
    begins = np.zeros(len(ends), dtype=bool)
    begins[answers.starts] = True
    spans = zip(begins.tolist(), starts.tolist(), ends.tolist(), strict=True)
    tokens = ids.tolist()
    # The same few thousand pieces come again and again: each is decoded once.
    places: dict[tuple[bool, tuple[int, ...]], int] = {}
    index = [places.setdefault((begin, tuple(tokens[start:end])), len(places)) for begin, start, end in spans]
    texts = reader.texts(list(places))
    return [texts[i] for i in index]
