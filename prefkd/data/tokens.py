"""Pairs -> the same pairs as tokens of one model, for what has no teacher: recipes sft and dpo, and evaluation.

The columns of the data set are those of `prefkd.data.rows`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from datasets import Dataset

from prefkd.data.mapping import NO_TOKEN, NOTHING_LEFT, SAME_TOKENS, map_pairs
from prefkd.data.pairs import DataConfig
from prefkd.data.rows import ALONE, Reading, token_features
from prefkd.data.sides import ModelSide
from prefkd.data.truncation import Limits, cut_prompt, kept_lengths
from prefkd.data.whole_pairs import read_pairs
from prefkd.data.workers import Shared, one_thread_in_workers
from prefkd.errors import DataError

# Part of every fingerprint: raise it when the same pairs come to give other tokens.
VERSION = 3


def tokenize_pairs(
    pairs: Dataset,
    side: ModelSide,
    *,
    config: DataConfig,
    left_out: Counter[str] | None = None,
) -> Dataset:
    """Tokenise pairs in worker processes. The result is cached under a fingerprint of all it depends on.

    Args:
        pairs: A data set of `prefkd.data.pairs`.
        side: How the model reads.
        config: Lengths, truncation, workers, and what a bad row does.
        left_out: Gets the number of pairs that are left out, by reason.

    Returns:
        The data set of tokens. A pair is not in it if nothing of an answer is left, or if the answers have the same
        tokens: nothing of it can be preferred. How many there are is logged.

    Raises:
        DataError: The template refuses a pair, or the model has no embedding for one of its tokens, and `on_bad_row`
            is `error`.
    """
    return map_pairs(
        pairs,
        _tokenize_batch,
        columns=token_features(),
        sides={ALONE: side},
        config=config,
        arguments={},
        made_from=("tokens", VERSION, side.fingerprint),
        description="Tokenizing",
        left_out=left_out,
    )


def _tokenize_batch(rows: Mapping[str, list], shared_sides: Shared, limits: Limits) -> dict[str, list]:
    """The columns of some rows, and `problem`: why a row cannot be used, or None."""
    one_thread_in_workers()
    side = shared_sides.value[ALONE]
    read = read_pairs(rows, {ALONE: side})

    def cut(place: int, there: slice, is_cut: tuple[bool, bool]) -> Reading:
        answers, offsets = (part[there] for part in read.responses[ALONE])
        return cut_tokens(read.prompts[ALONE][place], answers, offsets, side, limits, is_cut)

    return read.cut(cut, token_features())


def cut_tokens(
    prompt: list[int],
    answers: Sequence[list[int]],
    offsets: Sequence[np.ndarray],
    side: ModelSide,
    limits: Limits,
    is_cut: tuple[bool, bool] = (False, False),
) -> Reading:
    """Cut a pair to its limits and add the end where nothing of an answer is missing.

    Args:
        prompt: Token ids.
        answers: Token ids of the chosen answer, and of the rejected one if there is one, without their end.
        offsets: (tokens, 2) the characters of each token of them. A character of several tokens is kept as a whole.
        side: How the model reads.
        limits: Maximum tokens of a prompt and an answer.
        is_cut: Whether each of them is not finished as it stands in the data.

    Returns:
        The pair; a rejected answer that is not there has no tokens.

    Raises:
        DataError: The prompt or an answer has no token, none of an answer is left, or both answers have the same.
    """
    ends = [[] if unfinished else side.end_ids for unfinished in is_cut]
    lengths = [len(ids) + len(end) for ids, end in zip(answers, ends, strict=False)]  # there may be no rival
    kept_prompt, room = kept_lengths(len(prompt), lengths, limits)
    left = []
    for ids, characters, length, end in zip(answers, offsets, lengths, ends, strict=False):
        if not ids:
            raise DataError(NO_TOKEN)
        kept = len(ids) if len(ids) <= room else whole_characters(characters, room)
        if not kept:
            raise DataError(NOTHING_LEFT)
        left.append([*ids, *end] if length <= room else ids[:kept])
    chosen, rejected = [*left, []][:2]
    if chosen == rejected:
        raise DataError(SAME_TOKENS)
    shown = cut_prompt(prompt, kept_prompt, limits, side.bos_id)
    first, second = [*lengths, 0][:2]
    cut = len(prompt) - len(shown), first - len(chosen), second - len(rejected)
    return Reading(shown, (chosen, rejected), (range(len(chosen)), range(len(rejected))), cut)


def whole_characters(offsets: np.ndarray, most: int) -> int:
    """How many of at most `most` tokens can be kept so that the next one begins at a character of its own.

    Args:
        offsets: (tokens, 2) the characters of each token, more of them than `most`.
    """
    kept = most
    while kept > 0 and offsets[kept][0] < offsets[kept - 1][1]:
        kept -= 1
    return max(kept, 0)
