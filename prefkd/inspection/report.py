"""Inspect pairs with two tokenizers: numbers, verdict, page."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from prefkd.data.alignment_report import alignment_report
from prefkd.data.pairs import DataConfig, load_pairs
from prefkd.data.templates import ModelSide
from prefkd.data.tokenizing import align_pairs
from prefkd.errors import PrefkdError
from prefkd.inspection.answers import read_answers
from prefkd.inspection.numbers import inspection_numbers
from prefkd.inspection.page import render_page
from prefkd.inspection.pairs import choose_pairs, show_pair, token_colours
from prefkd.inspection.verdict import Verdict, judge

# Raise it when a name in the JSON file changes its place or its meaning.
VERSION = 1
SEED = 0


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        numbers: Ready for JSON: version; student and teacher (name, template); data; limits; pairs_in_data;
            skipped_rows; verdict (grade, summary, advice); and those of `prefkd.inspection.numbers`.
        verdict: What they mean.
        page: A page that shows them, and some pairs.
    """

    numbers: dict[str, Any]
    verdict: Verdict
    page: str


def inspect_pairs(config: DataConfig, student: ModelSide, teacher: ModelSide, most: int) -> Inspection:
    """Align pairs and judge what came out.

    Args:
        config: Which pairs, and how much of each; the held-out ones are not looked at.
        student, teacher: The two tokenizers with their templates.
        most: Of more pairs than that a random part is taken, which tells as much.

    Raises:
        DataError: The pairs cannot be read.
        PrefkdError: None of them can be aligned.
    """
    sides = {"student": student, "teacher": teacher}
    read = load_pairs(config)
    looked_at = read.train
    if len(looked_at) > most:
        looked_at = looked_at.select(np.sort(np.random.default_rng(SEED).permutation(len(looked_at))[:most]))
    aligned = align_pairs(looked_at, student, teacher, config=config)
    if not len(aligned):
        raise PrefkdError(f"{config.source}: no pair is left after aligning; raise max_length")
    pairs = read_answers(looked_at, aligned, sides)
    numbers: dict[str, Any] = {
        "version": VERSION,
        **{
            name: {"name": side.name, "template": "chat" if side.uses_chat_template else "plain"}
            for name, side in sides.items()
        },
        "data": config.source,
        "limits": {
            "max_length": config.max_length,
            "max_prompt_length": config.max_prompt_length,
            "truncation": config.truncation,
        },
        "pairs_in_data": len(read.train),
        "skipped_rows": [str(row) for row in read.skipped],
        **inspection_numbers(pairs, alignment_report(aligned, looked_at), sides),
    }
    verdict = judge(numbers, config)
    numbers["verdict"] = {"grade": verdict.grade, "summary": verdict.summary, "advice": verdict.advice}
    shown = [show_pair(pair, why, sides, token_colours) for pair, why in choose_pairs(pairs)]
    return Inspection(numbers, verdict, render_page(numbers, verdict, shown))
