"""Parent tokens: the finest pieces of a text that two tokenizers agree on (CTPD, arXiv 2601.11865, "aligned spans").

A tokenization is a list of character offsets ``(start, end)``, as fast tokenizers return them; a token is *solid* if
``end > start``. Behind solid token i lies a **clean cut** when no later solid token touches a character that an earlier
one touches:

    reached_i = max of end_j over solid j <= i,    next_i = min of start_j over solid j > i,    reached_i <= next_i

A parent is the text between two neighbouring positions that are clean cuts of both sides, with its tokens on each side.
Counting where tokens start would not do: the bytes of one emoji are several tokens with one and the same span.
"""

from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np

# A tokenization: pairs (start, end), or an integer array or tensor of shape (tokens, 2).
Offsets = Any

COLUMNS = ("char start", "char end", "student first", "student end", "teacher first", "teacher end")


def find_parents(
    student_offsets: Offsets, teacher_offsets: Offsets, length: int, text: str | None = None
) -> np.ndarray:
    """Align two tokenizations of one text.

    Args:
        student_offsets: Character offsets of the student's tokens, without special tokens.
        teacher_offsets: Offsets of the teacher's tokens, likewise.
        length: Characters (Python code points) in the text.
        text: The text. It decides where characters belong that no token covers: trailing blanks go to the next token
            (trimmed offsets: they were part of it), everything else to the previous one (combining marks that a
            normalisation swallowed, bytes that the vocabulary lacks). Without it they all go to the next token.

    Returns:
        int64 (P, 6) with the columns of `COLUMNS`, ends exclusive. Spans tile the text, token ranges tile the tokens
        of each side, none is empty. Tokens of width zero go with the next solid token, at the end with the last one.
        There is no parent (P = 0) if a side has no solid token, as for an empty text: nothing on that side stands for
        the text.

    Raises:
        ValueError: An offset reaches beyond the text, or `length` is not the text's.
    """
    if text is not None and len(text) != length:
        raise ValueError(f"length is {length}, but the text has {len(text)} characters")
    students, teachers = len(student_offsets), len(teacher_offsets)
    # The steps of a batch, with plain numbers where a batch needs arrays: a single short text is mostly overhead.
    line = _in_a_row([student_offsets, teacher_offsets])
    line[2 * students :] += length + 1
    owner, bounds = np.array([0, 1]).repeat([students, teachers]), np.array([0, length + 1, 2 * length + 2])
    parents = _between_common_cuts(_clean_cuts(line, owner, bounds, None if text is None else [text]))
    parents[:, 5] -= students
    return _with_starts(parents, slice(1))


def find_parents_batch(
    student_offsets: Sequence[Offsets], teacher_offsets: Sequence[Offsets], texts: Sequence[str]
) -> list[np.ndarray]:
    """Align many texts at once: `find_parents` of each, for a fraction of the time.

    Args:
        student_offsets: Offsets of the student's tokens, text by text.
        teacher_offsets: Offsets of the teacher's tokens, likewise.
        texts: The texts.

    Returns:
        For each text what `find_parents` returns (views of one array).

    Raises:
        ValueError: The three differ in length, or an offset reaches beyond its text.
    """
    if not len(student_offsets) == len(teacher_offsets) == len(texts):
        raise ValueError(
            f"{len(texts)} texts, but {len(student_offsets)} student and {len(teacher_offsets)} teacher tokenizations"
        )
    tokens = np.array([len(offsets) for offsets in chain(student_offsets, teacher_offsets)], dtype=np.int64)
    lengths = np.array([len(text) for text in texts] * 2, dtype=np.int64)
    bounds = np.concatenate(([0], (lengths + 1).cumsum()))  # each text owns length + 1 places on the line
    token_bounds = np.concatenate(([0], tokens.cumsum()))
    line = _in_a_row([*student_offsets, *teacher_offsets])
    line += bounds[:-1].repeat(2 * tokens)
    parents = _between_common_cuts(_clean_cuts(line, np.arange(len(tokens)).repeat(tokens), bounds, texts))
    firsts = parents[:, 1].searchsorted(bounds[: len(texts) + 1])  # the first parent of each text
    counts = firsts[1:] - firsts[:-1]
    parents[:, 1] -= bounds[: len(texts)].repeat(counts)
    parents[:, 3] -= token_bounds[: len(texts)].repeat(counts)
    parents[:, 5] -= token_bounds[len(texts) : -1].repeat(counts)
    parents = _with_starts(parents, firsts[:-1][counts > 0])
    return [parents[first:end] for first, end in pairwise(firsts.tolist())]


def keep_complete(parents: np.ndarray, student_tokens: int, teacher_tokens: int) -> np.ndarray:
    """The leading parents that are complete on both sides after truncation.

    Aligning truncated tokens instead would pair different text, because the two sides end at different characters.

    Args:
        parents: (P, 6) from `find_parents` on the whole tokenizations.
        student_tokens: Leading student tokens that are kept.
        teacher_tokens: Leading teacher tokens that are kept.

    Returns:
        The first rows of `parents`.
    """
    complete = (parents[:, 3] <= student_tokens) & (parents[:, 5] <= teacher_tokens)
    return parents[: np.count_nonzero(complete)]


def _in_a_row(tokenizations: list[Offsets]) -> np.ndarray:
    """The offsets of many tokenizations end to end: start, end, start, end, ..."""
    if all(isinstance(offsets, np.ndarray) for offsets in tokenizations):
        return np.concatenate([np.empty(0, np.int64), *(offsets.reshape(-1) for offsets in tokenizations)])
    return np.fromiter(chain.from_iterable(chain.from_iterable(tokenizations)), dtype=np.int64)


def _clean_cuts(line: np.ndarray, owner: np.ndarray, bounds: np.ndarray, texts: Sequence[str] | None) -> np.ndarray:
    """The clean cuts of texts that lie one behind the other: each student text, then each teacher text.

    A text of n characters owns n + 1 places on this line, one per position in it, so no token touches another text.

    Args:
        line: Offsets in places of the line: start, end, start, end, ...
        owner: Which of these texts each token belongs to, ascending.
        bounds: (2 x texts + 1) first place of each text, and the end of the line.
        texts: The texts, or None.

    Returns:
        (2, places of one side): at a clean cut the number of tokens before it, elsewhere 0. The end of a text is a cut
        if one of its tokens is solid; otherwise the text has none.

    Raises:
        ValueError: A token reaches beyond its text.
    """
    starts, ends = line[0::2], line[1::2]
    solid = (ends > starts).nonzero()[0]
    last_tokens = owner.searchsorted(np.arange(len(bounds) - 1), side="right")
    starts, ends, owner = starts[solid], ends[solid], owner[solid]
    if (ends >= bounds[owner + 1]).any():
        raise ValueError("the offsets of a token reach beyond the end of its text")
    reached = np.maximum.accumulate(ends)[:-1]
    following = np.minimum.accumulate(starts[::-1])[::-1][1:]
    cuts = np.zeros((2, bounds[-1] // 2), dtype=np.int64)
    places = cuts.reshape(-1)
    touching = (reached == following).nonzero()[0]
    places[reached[touching]] = solid[touching] + 1
    for i in ((reached < following) & (owner[:-1] == owner[1:])).nonzero()[0].tolist():
        start, end = int(reached[i]), int(following[i])
        if texts is not None:  # trailing blanks go to the next token, everything else to the previous one
            first = int(bounds[owner[i]])
            start += len(texts[int(owner[i]) % len(texts)][start - first : end - first].rstrip())
        places[start] = solid[i] + 1
    written = np.bincount(owner).nonzero()[0]  # the texts that a solid token stands for
    places[bounds[written + 1] - 1] = last_tokens[written]
    return cuts


def _between_common_cuts(cuts: np.ndarray) -> np.ndarray:
    """(P, 6) parents with only their ends set, on the line and in its numbering of tokens."""
    common = np.logical_and(cuts[0], cuts[1]).nonzero()[0]
    parents = np.empty((len(common), len(COLUMNS)), dtype=np.int64)
    parents[:, 1] = common
    parents[:, 3] = cuts[0, common]
    parents[:, 5] = cuts[1, common]
    return parents


def _with_starts(parents: np.ndarray, firsts: np.ndarray | slice) -> np.ndarray:
    """Each parent starts where the previous one ends; `firsts` are the rows that begin a text."""
    parents[1:, 0::2] = parents[:-1, 1::2]
    parents[firsts, 0::2] = 0
    return parents
