"""What became of the pairs of a run on their way to the models: numbers for a file, and a line for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from prefkd.data.arrow import list_lengths, numbers
from prefkd.data.pairs import PairSplits
from prefkd.data.rows import ANSWERS, Contents, cut_column, read_columns, token_column


def data_report(
    tokens: Dataset,
    pairs: PairSplits,
    left_out: Mapping[str, int],
    *,
    max_length: int,
    answers: Sequence[str] = ANSWERS,
) -> dict[str, Any]:
    """Count what tokenizing left out and cut, next to what reading did.

    Args:
        tokens: The pairs to train on as tokens, `prefkd.data.rows`.
        pairs: The pairs that were read, to train on and held out.
        left_out: How many pairs to train on tokenizing left out, by reason.
        max_length: The limit that they were cut to.
        answers: The answers of a pair that are learned.
    """
    answers_cut, prompts_cut = count_cut(tokens, max_length, answers)
    return {
        "pairs": len(tokens),
        "dropped_pairs": len(pairs.train) - len(tokens),
        "dropped_for": dict(left_out),
        "answers_cut": answers_cut,
        "prompts_cut": prompts_cut,
    } | pairs.report


def data_line(report: Mapping[str, Any], held_out: Dataset, omissions: str) -> str:
    """The same in one line for the terminal, the reading's part of it as `PairSplits.omissions` has it."""
    cut = ""
    if report["answers_cut"] or report["prompts_cut"]:
        cut = f", {report['answers_cut']} answers and {report['prompts_cut']} prompts cut to max_length"
    dropped = f"{report['dropped_pairs']} dropped{cut}, {omissions}"
    return f"{report['pairs']} pairs to train on, {len(held_out)} held out, {dropped}"


def count_cut(tokens: Dataset, max_length: int, answers: Sequence[str] = ANSWERS) -> tuple[int, int]:
    """How many answers and how many prompts lack tokens on any side because they were longer than the limit."""
    contents = Contents.of(tokens)
    cut = {part: np.zeros(len(tokens), dtype=bool) for part in ("prompt", *answers)}
    for side in contents.sides:
        prompts, _ = read_columns(side, instructed=contents.instructed)
        columns = [*prompts, *(token_column(side, answer) for answer in answers)]
        lengths = list_lengths(tokens, columns)
        cut["prompt"] |= numbers(tokens, cut_column(side, "prompt")) > 0
        prompt = np.max([lengths[name] for name in prompts], axis=0)
        for answer in answers:
            # An answer that is unfinished in the data lacks its end too, although there may be room for it.
            whole = lengths[token_column(side, answer)] + numbers(tokens, cut_column(side, answer))
            cut[answer] |= prompt + whole > max_length
    return sum(int(cut[answer].sum()) for answer in answers), int(cut["prompt"].sum())
