"""The few pairs that a report shows word by word, coloured by weight."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from prefkd.data.rows import ANSWERS, SIDES, AlignedRow
from prefkd.reports.page import number
from prefkd.reports.pairs import FEWEST_PARENTS, MOST_PARENTS, ShownAnswer, ShownPair, ShownParent, drawn
from prefkd.reports.visible import visible, visible_block, visible_line
from prefkd.reports.weights.answers import WeightedAnswers
from prefkd.reports.weights.colours import ColourScale, weight_lines
from prefkd.reports.weights.pieces import PieceReader
from prefkd.weighting import WeightConfig

WIDEST = 3
TYPICAL = 5


@dataclass(frozen=True)
class ScoredPairs:
    """What pairs are shown from.

    Attributes:
        rows: An aligned data set.
        config: How weights come from its scores.
        answers: The parents of its chosen and of its rejected answers.
        texts: Their texts, end to end.
        readers: Readers of the student's and of the teacher's tokens.
    """

    rows: Dataset
    config: WeightConfig
    answers: Mapping[str, WeightedAnswers]
    texts: Mapping[str, Sequence[str]]
    readers: Mapping[str, PieceReader]


@dataclass(frozen=True)
class ChosenPair:
    """A pair to show: its row in the data set, and why it was chosen."""

    index: int
    why: str


def choose_pairs(answers: Mapping[str, WeightedAnswers], generator: np.random.Generator) -> list[ChosenPair]:
    """The pairs whose weights differ most from each other, and random ones from the middle half."""
    lengths, sums, squares = (
        np.sum([side.sums(side.weights**power * side.is_text) for side in answers.values()], axis=0)
        for power in range(3)
    )
    spread = np.sqrt(np.maximum(squares / lengths - (sums / lengths) ** 2, 0))
    long_enough = np.flatnonzero(lengths >= FEWEST_PARENTS)
    rows = long_enough if len(long_enough) else np.arange(len(lengths))
    ordered = rows[np.argsort(-spread[rows], kind="stable")]
    widest, rest = ordered[:WIDEST], ordered[WIDEST:]
    middle = rest[len(rest) // 4 : len(rest) - len(rest) // 4]
    return [ChosenPair(int(i), "among the widest spread of weights") for i in widest] + [
        ChosenPair(i, "drawn from the middle half by spread of weights") for i in drawn(middle, TYPICAL, generator)
    ]


def show_pair(pair: ChosenPair, scored: ScoredPairs, scale: ColourScale) -> ShownPair:
    """Put a pair together for the page."""
    row: dict[str, Any] = scored.rows[pair.index]
    aligned = AlignedRow.of(row)
    prompt, cut = aligned.student.prompt, aligned.student.cut[0]
    return ShownPair(
        file=row["file"],
        row=row["row"],
        why=pair.why,
        remark=f"What the student reads{f', {cut:,} tokens cut off' if cut else ''}:",
        prompt=[(None, visible_block(scored.readers["student"].texts([(True, prompt)])[0]))],
        answers=[_show_answer(i, pair.index, aligned, scored, scale) for i in range(len(ANSWERS))],
    )


def _show_answer(place: int, index: int, row: AlignedRow, scored: ScoredPairs, scale: ColourScale) -> ShownAnswer:
    answer = ANSWERS[place]
    side = scored.answers[answer]
    start, count = int(side.starts[index]), int(side.counts[index])
    kept = slice(start, start + min(count, MOST_PARENTS))
    tokens = {
        name: _tokens_of_parents(reading.answers[place], reading.parents[place], scored.readers[name])
        for name, reading in row.sides.items()
    }
    parents = zip(
        scored.texts[answer][kept],
        side.weights[kept].tolist(),
        side.log_ratio[kept].tolist(),
        side.is_end[kept].tolist(),
        scale.levels(side.weights[kept]).tolist(),
        strict=True,
    )
    log_ratio, weight = (number(side.text_means(values)[index], 3) for values in (side.log_ratio, side.weights))
    return ShownAnswer(
        caption=f"{answer}: mean log-ratio {log_ratio}, mean weight {weight}",
        parents=[
            ShownParent(
                text=visible(text),
                level=level,
                details="\n".join(
                    [
                        *(f"{name}: {' | '.join(tokens[name][i])}" for name in SIDES),
                        *weight_lines(weight, log_ratio, answer, is_end, scored.config),
                    ]
                ),
                is_end=is_end,
            )
            for i, (text, weight, log_ratio, is_end, level) in enumerate(parents)
        ],
        hidden=max(0, count - MOST_PARENTS),
    )


def _tokens_of_parents(ids: Sequence[int], parents: Sequence[int], reader: PieceReader) -> list[list[str]]:
    """The tokens of each parent of an answer, as a reader sees them."""
    tokens: list[list[str]] = [[] for _ in range(parents[-1] + 1)]
    for token_id, parent in zip(ids, parents, strict=True):
        tokens[parent].append(visible_line(reader.token(token_id)))
    return tokens
