"""Pairs -> the same pairs as tokens of one model, for what has no teacher: recipes sft and dpo, and evaluation.

The data set has the columns

    file, row           where the pair comes from
    prompt              token ids
    chosen, rejected    token ids of the answers, with those of the end unless it was cut off
    source, weight, margin  as in `prefkd.data.pairs`, where the pairs have them
    {part}_cut          tokens of prompt, chosen and rejected that truncation took away
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value

from prefkd.data.pairs import DataConfig
from prefkd.data.templates import ModelSide
from prefkd.data.tokenizing import ANSWERS, NO_TOKEN, NOTHING_LEFT, SAME_TOKENS, map_pairs, read_pairs
from prefkd.data.truncation import Limits, cut_prompt, kept_lengths
from prefkd.data.workers import Shared, one_thread_in_workers

# Part of every fingerprint: raise it when the same pairs come to give other tokens.
VERSION = 2

PARTS = ("prompt", *ANSWERS)
COLUMNS = Features(
    {"file": Value("string"), "row": Value("int64")}
    | {part: List(Value("int32")) for part in PARTS}
    | {f"{part}_cut": Value("int32") for part in PARTS}
)


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
        A data set with the columns of this module. A pair is not in it if nothing of an answer is left, or if the
        answers have the same tokens: nothing of it can be preferred. How many there are is logged.

    Raises:
        DataError: The template refuses a pair, or the model has no embedding for one of its tokens, and `on_bad_row`
            is `error`.
    """
    return map_pairs(
        pairs,
        _tokenize_batch,
        columns=COLUMNS,
        sides={"model": side},
        config=config,
        arguments={},
        made_from=("tokens", VERSION, side.fingerprint),
        description="Tokenizing",
        left_out=left_out,
    )


def _tokenize_batch(rows: Mapping[str, list], shared_sides: Shared, limits: Limits) -> dict[str, list]:
    """The columns of some rows, and `problem`: why a row cannot be used, or None."""
    one_thread_in_workers()
    side = shared_sides.value["model"]
    read = read_pairs(rows, {"model": side})
    for n, i in enumerate(read.written):
        there = slice(2 * n, 2 * n + (2 if read.written[i].answers[1] else 1))  # there may be no rival
        answers, offsets = (part[there] for part in read.responses["model"])
        is_cut = "cut" in rows and bool(rows["cut"][i])
        read.rows[i] |= cut_tokens(read.prompts["model"][n], answers, offsets, side, limits, is_cut)
    return {name: [row.get(name) for row in read.rows] for name in (*COLUMNS, "problem")}


def cut_tokens(
    prompt: list[int],
    answers: Sequence[list[int]],
    offsets: Sequence[np.ndarray],
    side: ModelSide,
    limits: Limits,
    is_cut: bool = False,
) -> dict[str, Any]:
    """Cut a pair to its limits and add the end where nothing of an answer is missing.

    Args:
        prompt: Token ids.
        answers: Token ids of the chosen answer, and of the rejected one if there is one, without their end.
        offsets: (tokens, 2) the characters of each token of them. A character of several tokens is kept as a whole.
        side: How the model reads.
        limits: Most tokens of a prompt and an answer.
        is_cut: Whether the answers are not finished as they stand in the data.

    Returns:
        The columns of a row, or `problem` alone. A rejected answer that is not there has no tokens.
    """
    lengths = [len(ids) + len(side.end_ids) for ids in answers]
    kept_prompt, room = kept_lengths(len(prompt), lengths, limits)
    row: dict[str, Any] = {"prompt": cut_prompt(prompt, kept_prompt, limits, side.bos_id), "rejected": []}
    for answer, ids, characters, length in zip(ANSWERS, answers, offsets, lengths, strict=False):
        if not ids:
            return {"problem": NO_TOKEN}
        kept = len(ids) if len(ids) <= room else whole_characters(characters, room)
        if not kept:
            return {"problem": NOTHING_LEFT}
        row[answer] = [*ids, *side.end_ids] if length <= room and not is_cut else ids[:kept]
    if row["chosen"] == row["rejected"]:
        return {"problem": SAME_TOKENS}
    whole = {"prompt": len(prompt), **dict(zip(ANSWERS, [*lengths, 0][:2], strict=True))}
    return row | {f"{part}_cut": length - len(row[part]) for part, length in whole.items()}


def whole_characters(offsets: np.ndarray, most: int) -> int:
    """How many of at most `most` tokens can be kept so that the next one begins at a character of its own.

    Args:
        offsets: (tokens, 2) the characters of each token, more of them than `most`.
    """
    kept = most
    while kept > 0 and offsets[kept][0] < offsets[kept - 1][1]:
        kept -= 1
    return max(kept, 0)
