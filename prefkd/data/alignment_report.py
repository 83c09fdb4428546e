"""What aligning did to a data set, in numbers that a user can judge the two tokenizers and the limits by."""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from datasets import Dataset

from prefkd.data.arrow import list_lengths, numbers, tables
from prefkd.data.rows import (
    ANSWERS,
    INSTRUCTIONS,
    SIDES,
    Contents,
    answer_column,
    cut_column,
    read_columns,
    token_column,
)


def alignment_report(aligned: Dataset, pairs: Dataset, left_out: Mapping[str, int]) -> dict[str, Any]:
    """Count what is in an aligned data set.

    Args:
        aligned: Result of `prefkd.data.tokenizing.align_pairs`.
        pairs: The pairs that were aligned.
        left_out: How many pairs it left out, by reason.

    Returns:
        Numbers, or dictionaries of numbers, ready for JSON:

        pairs, dropped_pairs: how many there are, and how many are left out.
        dropped_for: the same by reason.
        parents_per_response: mean and percentiles, EOS parents included.
        tokens_per_parent: for each side the mean over parents of text.
        share_of_text_aligned_one_to_one: characters in parents of one token on each side, of all that are left.
        share_of_responses_truncated: those that lost tokens on any side, and with them the EOS.
        share_of_prompts_truncated, prompt_tokens_dropped, response_tokens_dropped: for each side; EOS included.
        pairs_without_contrast: with a contrast, pairs whose two instructions were cut off, so that all weights are 1.
    """
    report: dict[str, Any] = {
        "pairs": len(aligned),
        "dropped_pairs": len(pairs) - len(aligned),
        "dropped_for": dict(left_out),
    }
    if not len(aligned):
        return report

    def of_both_answers(column: Callable[[str], str]) -> np.ndarray:
        return np.concatenate([numbers(aligned, column(answer)) for answer in ANSWERS])

    def of_answers(name: str) -> np.ndarray:
        return of_both_answers(lambda answer: answer_column(answer, name))

    parents, ends, single, characters = map(of_answers, ("parents", "ends", "single", "characters"))
    columns = {side: read_columns(side, instructed=False)[1] for side in SIDES}
    lengths = list_lengths(aligned, [*chain(*columns.values())])
    tokens = {side: np.concatenate([lengths[name] for name in names]) for side, names in columns.items()}
    response_cut = {side: of_both_answers(partial(cut_column, side)) for side in SIDES}
    prompt_cut = {side: numbers(aligned, cut_column(side, "prompt")) for side in SIDES}
    report |= {
        "parents_per_response": {
            "mean": round(float(parents.mean()), 2),
            **{f"percentile_{p}": int(np.percentile(parents, p)) for p in (5, 50, 95)},
        },
        "tokens_per_parent": {side: _ratio((tokens[side] - ends).sum(), (parents - ends).sum()) for side in SIDES},
        "share_of_text_aligned_one_to_one": _ratio(single.sum(), characters.sum()),
        "share_of_responses_truncated": _ratio((~ends).sum(), len(ends)),
        "share_of_prompts_truncated": {side: _ratio((prompt_cut[side] > 0).sum(), len(aligned)) for side in SIDES},
        "response_tokens_dropped": {side: int(response_cut[side].sum()) for side in SIDES},
        "prompt_tokens_dropped": {side: int(prompt_cut[side].sum()) for side in SIDES},
    }
    if Contents.of(aligned).instructed:
        positive, negative = (token_column(name, "prompt") for name in INSTRUCTIONS)
        report["pairs_without_contrast"] = sum(
            one == other
            for table in tables(aligned, [positive, negative])
            for one, other in zip(table[positive].to_pylist(), table[negative].to_pylist(), strict=True)
        )
    return report


def _ratio(part: Any, whole: Any) -> float:
    return round(float(part) / float(whole), 4)
