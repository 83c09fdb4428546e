"""Write the report: the numbers as JSON, and a page that shows them with a few pairs."""

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from prefkd.data.rows import ANSWERS
from prefkd.data.sides import ModelSide
from prefkd.reports.page import render_page
from prefkd.reports.weights.answers import weigh_answers
from prefkd.reports.weights.colours import colour_scale
from prefkd.reports.weights.numbers import SATURATION, piece_numbers, weight_numbers
from prefkd.reports.weights.pairs import ScoredPairs, choose_pairs, show_pair
from prefkd.reports.weights.pieces import PieceReader, exacter_side, parent_texts
from prefkd.weighting import WeightConfig

# Raise it when a name in the JSON file changes its place or its meaning.
VERSION = 1
# A larger data set is judged by a random part of it, which is as telling and fits in memory.
MOST_PAIRS = 10_000
# Of that part, and of the typical pairs on the page: the same scores give the same report.
SEED = 0


def write_weight_report(
    folder: Path, scored: Dataset, weights: WeightConfig, *, student: ModelSide, teacher: ModelSide
) -> dict[str, Any]:
    """Write weight_report.json and weight_report.html.

    Args:
        folder: Where to; it exists.
        scored: An aligned data set (`prefkd.data.tokenizing`) with, for each answer, the columns {answer}_reference,
            {answer}_positive and {answer}_negative: the log-prob of each parent. At least one row.
        weights: How training would make weights of the scores.
        student, teacher: The sides that the data set was aligned with.

    Returns:
        What is in the JSON file: version, pairs (all there are), weights (how they were made), the numbers of
        `prefkd.reports.weights.numbers.weight_numbers`, pieces (`piece_numbers` for each answer) and shown_pairs.

    Raises:
        PrefkdError: A score is not finite.
    """
    generator = np.random.default_rng(SEED)
    looked_at = scored
    if len(scored) > MOST_PAIRS:
        looked_at = scored.select(sorted(generator.permutation(len(scored))[:MOST_PAIRS].tolist()))
    answers = weigh_answers(looked_at, weights)
    readers = {"student": PieceReader(student), "teacher": PieceReader(teacher)}
    side = exacter_side(student, teacher)
    texts = {answer: parent_texts(looked_at, answer, answers[answer], side, readers[side]) for answer in ANSWERS}
    scale = colour_scale(answers, weights)
    pairs = ScoredPairs(looked_at, weights, answers, texts, readers)
    shown = [show_pair(pair, pairs, scale) for pair in choose_pairs(answers, generator)]
    numbers = {
        "version": VERSION,
        "pairs": len(scored),
        "weights": {
            "method": weights.method,
            "parameters": dict(weights.parameters),
            "reduce": weights.reduce,
            "eos_weight": weights.eos_weight,
        },
        **weight_numbers(answers, weights),
        "pieces": {answer: piece_numbers(texts[answer], answers[answer]) for answer in ANSWERS},
        "shown_pairs": [{"file": pair.file, "row": pair.row, "why": pair.why} for pair in shown],
    }
    written = json.dumps(numbers, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "weight_report.json").write_text(written + "\n", encoding="utf-8")
    page = render_page(
        "weights.html",
        numbers=numbers,
        charts={
            name: {answer: chart_bars(numbers[name]["histogram"], answer) for answer in ANSWERS}
            for name in ("log_ratio", "weight")
        },
        pairs=shown,
        weight_legend=scale.legend,
        answers=ANSWERS,
        saturation=SATURATION,
        student=student.name,
        teacher=teacher.name,
    )
    (folder / "weight_report.html").write_text(page, encoding="utf-8")
    return numbers


def chart_bars(histogram: Mapping[str, Any], answer: str) -> list[dict[str, float]]:
    """The bars of one answer's histogram: place and width of all together 100, heights up to 100; 1 % for any count."""
    edges, counts = histogram["edges"], histogram[answer]
    span, highest = edges[-1] - edges[0], max(*counts, 1)
    return [
        {
            "left": 100 * (low - edges[0]) / span,
            "width": 100 * (high - low) / span,
            "height": max(100 * count / highest, 1) if count else 0,
            "low": low,
            "high": high,
            "count": count,
        }
        for (low, high), count in zip(pairwise(edges), counts, strict=True)
    ]
