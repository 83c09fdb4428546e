"""Inspect pairs with two tokenizers: numbers, verdict, page."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from prefkd.data.alignment_report import alignment_report
from prefkd.data.fingerprints import reading_fingerprint
from prefkd.data.layouts import columns_of
from prefkd.data.pairs import DataConfig, load_pairs
from prefkd.data.rows import ANSWERS, SIDES
from prefkd.data.scores import Scores
from prefkd.data.sides import ModelSide
from prefkd.data.tokenizing import align_pairs
from prefkd.errors import PrefkdError
from prefkd.reports.alignment.answers import read_answers
from prefkd.reports.alignment.numbers import inspection_numbers
from prefkd.reports.alignment.pairs import COLOUR_NAMES, choose_pairs, show_pair
from prefkd.reports.alignment.verdict import Verdict, judge, needed_length
from prefkd.reports.alignment.weights import attach_scores, read_weights, scored_pairs
from prefkd.reports.page import render_page

# Raise it when a name in the JSON file changes its place or its meaning.
VERSION = 1
SEED = 0


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        numbers: Ready for JSON: version; student and teacher (name, template); data; limits; pairs_in_data
            (with scores those that were scored); columns (of each format) and first_pair (the text of the tokens that
            each model reads, special tokens included); formats, unread_fields, skipped_rows; verdict (grade, summary,
            advice); those of `prefkd.reports.alignment.numbers`; and with scores pairs_not_scored and weights
            (`prefkd.reports.alignment.weights.Weights.numbers`).
        verdict: Judgement of the numbers.
        page: A page that shows them, and some pairs.
    """

    numbers: dict[str, Any]
    verdict: Verdict
    page: str


def inspect_pairs(
    config: DataConfig, student: ModelSide, teacher: ModelSide, most: int, scores: Scores | None = None
) -> Inspection:
    """Align pairs and judge what came out.

    Args:
        config: Which pairs, and how much of each; the held-out ones are not looked at.
        student, teacher: The two tokenizers with their templates.
        most: From more pairs than this a random part is taken, which tells as much.
        scores: Scores of teachers, to show the weights made of them; pairs without scores are left out.

    Raises:
        DataError: The pairs cannot be read.
        PrefkdError: None of them can be aligned, or the scores are not theirs.
    """
    sides = {"student": student, "teacher": teacher}
    read = load_pairs(config)
    looked_at = read.train
    if scores is not None:
        scores.require(reading_fingerprint(config, student, teacher))
        looked_at = scored_pairs(looked_at, scores)
    available = len(looked_at)
    if len(looked_at) > most:
        looked_at = looked_at.select(np.sort(np.random.default_rng(SEED).permutation(len(looked_at))[:most]))
    instructions = None if scores is None else scores.instructions
    left_out: Counter[str] = Counter()
    aligned = align_pairs(looked_at, student, teacher, config=config, contrast=instructions, left_out=left_out)
    if not len(aligned):
        raise PrefkdError(f"{config.label}: no pair is left after aligning; raise max_length")
    if scores is not None:
        aligned = attach_scores(aligned, scores)
    weights = None if scores is None else read_weights(aligned)
    pairs = read_answers(looked_at, aligned, sides)
    numbers: dict[str, Any] = {
        "version": VERSION,
        **{
            name: {"name": side.name, "template": "chat" if side.uses_chat_template else "plain"}
            for name, side in sides.items()
        },
        "data": config.label,
        "limits": {
            "max_length": config.max_length,
            "max_prompt_length": config.max_prompt_length,
            "truncation": config.truncation,
        },
        "columns": {name: columns_of(name, config.columns) for name in read.formats},
        "first_pair": _first_pair(aligned, sides),
        "pairs_in_data": available,
        **({} if weights is None else {"pairs_not_scored": len(read.train) - available, "weights": weights.numbers}),
        **read.report,
        **inspection_numbers(pairs, alignment_report(aligned, looked_at, left_out), sides),
    }
    verdict = judge(numbers, config)
    numbers["verdict"] = {"grade": verdict.grade, "summary": verdict.summary, "advice": verdict.advice}
    shown = [
        show_pair(pair, why, sides, weights.of_pair(pair.file, pair.row) if weights else None)
        for pair, why in choose_pairs(pairs)
    ]
    page = render_page(
        "alignment.html",
        script="sort.js",
        numbers=numbers,
        verdict=verdict,
        needed_length=needed_length(numbers),
        pairs=shown,
        sides=SIDES,
        answers=ANSWERS,
        legend=list(enumerate(COLOUR_NAMES)),
        weight_legend=weights.scale.legend if weights else None,
    )
    return Inspection(numbers, verdict, page)


def _first_pair(aligned: Dataset, sides: Mapping[str, ModelSide]) -> dict[str, dict[str, str]]:
    """The first pair as each model reads it: the text of its tokens, with markers of roles and ends of answers."""
    row: Any = aligned[0]
    parts = ("prompt", *ANSWERS)
    return {
        name: {part: side.tokenizer.decode(row[f"{name}_{part}"], skip_special_tokens=False) for part in parts}
        for name, side in sides.items()
    }
