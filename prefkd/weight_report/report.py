"""Write the report: the numbers as JSON, and a page that shows them with a few pairs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from prefkd.data.templates import ModelSide
from prefkd.data.tokenizing import ANSWERS
from prefkd.weight_report.answers import read_answers
from prefkd.weight_report.numbers import piece_numbers, weight_numbers
from prefkd.weight_report.page import render_page
from prefkd.weight_report.pairs import ScoredPairs, choose_pairs, colour_scale, show_pair
from prefkd.weight_report.pieces import PieceReader, exacter_side, parent_texts
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
        `prefkd.weight_report.numbers.weight_numbers`, pieces (`piece_numbers` for each answer) and shown_pairs.

    Raises:
        PrefkdError: A score is not finite.
    """
    generator = np.random.default_rng(SEED)
    looked_at = scored
    if len(scored) > MOST_PAIRS:
        looked_at = scored.select(sorted(generator.permutation(len(scored))[:MOST_PAIRS].tolist()))
    answers = read_answers(looked_at, weights)
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
    page = render_page(numbers, shown, scale, student.name, teacher.name)
    (folder / "weight_report.html").write_text(page, encoding="utf-8")
    return numbers
