"""The few pairs that a report shows word by word, coloured by weight."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from prefkd.data.tokenizing import ANSWERS, SIDES
from prefkd.visible import visible, visible_block, visible_line
from prefkd.weight_report.answers import Answers
from prefkd.weight_report.numbers import clamp_bounds
from prefkd.weight_report.pieces import PieceReader
from prefkd.weighting import WeightConfig

WIDEST = 3
TYPICAL = 5
# Two answers of a word each have the widest spread of all, and say the least.
FEWEST_PARENTS = 20
# Keeps the page small enough to open when answers are thousands of words long.
MOST_PARENTS = 1000
# Colours on each side of the neutral one, and the least that they span: no colours for differences of nothing.
LEVELS = 4
SHORTEST_REACH = 0.1


@dataclass(frozen=True)
class ScoredPairs:
    """What pairs are shown from.

    Attributes:
        rows: An aligned data set.
        config: How weights come from its scores.
        answers: The parents of its chosen and of its rejected answers.
        texts: Their texts, end to end.
        readers: Of the student's and of the teacher's tokens.
    """

    rows: Dataset
    config: WeightConfig
    answers: Mapping[str, Answers]
    texts: Mapping[str, Sequence[str]]
    readers: Mapping[str, PieceReader]


@dataclass(frozen=True)
class ChosenPair:
    """A pair to show: its row in the data set, and why it was chosen."""

    index: int
    why: str


@dataclass(frozen=True)
class ColourScale:
    """From weights to colours, `LEVELS` steps on each side of a neutral weight.

    Attributes:
        neutral: The weight of a parent that tells nothing.
        reach: Distance from it to the last colour.
        logarithmic: Whether distances are those of logarithms: twice the weight is as far as half of it.
    """

    neutral: float
    reach: float
    logarithmic: bool

    def levels(self, weights: np.ndarray) -> np.ndarray:
        """Colours from -LEVELS (counts least) to LEVELS (counts most); a weight of 0 is on a logarithm's low end."""
        distances = distances_from(self.neutral, weights, logarithmic=self.logarithmic)
        return np.rint(LEVELS * np.clip(distances / self.reach, -1, 1)).astype(int)

    def weight_at(self, level: int) -> float:
        """The weight in the middle of a colour."""
        distance = level * self.reach / LEVELS
        return self.neutral * math.exp(distance) if self.logarithmic else self.neutral + distance

    @property
    def legend(self) -> list[tuple[int, float]]:
        """All colours, from the one that counts least, each with its weight."""
        return [(level, self.weight_at(level)) for level in range(-LEVELS, LEVELS + 1)]


@dataclass(frozen=True)
class ShownParent:
    """A parent on the page: its text, its colour, and what the reader is told on pointing at it."""

    text: str
    level: int
    is_end: bool
    details: str


@dataclass(frozen=True)
class ShownAnswer:
    """An answer on the page; `hidden` parents at its end are left out."""

    name: str
    mean_log_ratio: float
    mean_weight: float
    parents: list[ShownParent]
    hidden: int


@dataclass(frozen=True)
class ShownPair:
    """A pair on the page. The prompt is what the student reads, of which `prompt_cut` tokens were cut off."""

    file: str
    row: int
    why: str
    prompt: str
    prompt_cut: int
    answers: list[ShownAnswer]


def choose_pairs(answers: Mapping[str, Answers], generator: np.random.Generator) -> list[ChosenPair]:
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
    typical = np.sort(generator.permutation(middle)[:TYPICAL])
    return [ChosenPair(int(i), "among the widest spread of weights") for i in widest] + [
        ChosenPair(int(i), "drawn from the middle half by spread of weights") for i in typical
    ]


def colour_scale(answers: Mapping[str, Answers], config: WeightConfig) -> ColourScale:
    """A scale around k for `exp`, else around 1; as far as all but the last hundredth of the weights go."""
    neutral = float(config.parameters.get("k", 1.0)) if config.method == "exp" else 1.0
    logarithmic = config.method == "exp" and neutral > 0
    weights = np.concatenate([side.weights[side.is_text] for side in answers.values()])
    distances = np.abs(distances_from(neutral, weights, logarithmic=logarithmic))
    return ColourScale(neutral, max(float(np.percentile(distances, 99)), SHORTEST_REACH), logarithmic)


def distances_from(neutral: float, weights: np.ndarray, *, logarithmic: bool) -> np.ndarray:
    """How far weights are from the neutral one; a logarithm of 0 is infinitely far below."""
    with np.errstate(divide="ignore"):
        return np.log(weights / neutral) if logarithmic else weights - neutral


def show_pair(pair: ChosenPair, scored: ScoredPairs, scale: ColourScale) -> ShownPair:
    """Put a pair together for the page."""
    row: dict[str, Any] = scored.rows[pair.index]
    return ShownPair(
        file=row["file"],
        row=row["row"],
        why=pair.why,
        prompt=visible_block(scored.readers["student"].texts([(True, row["student_prompt"])])[0]),
        prompt_cut=row["student_prompt_cut"],
        answers=[_show_answer(answer, pair.index, row, scored, scale) for answer in ANSWERS],
    )


def _show_answer(
    answer: str, index: int, row: Mapping[str, Any], scored: ScoredPairs, scale: ColourScale
) -> ShownAnswer:
    side = scored.answers[answer]
    start, count = int(side.starts[index]), int(side.counts[index])
    kept = slice(start, start + min(count, MOST_PARENTS))
    tokens = {
        name: _tokens_of_parents(row[f"{name}_{answer}"], row[f"{name}_{answer}_parents"], scored.readers[name])
        for name in SIDES
    }
    parents = zip(
        scored.texts[answer][kept],
        side.weights[kept].tolist(),
        side.log_ratio[kept].tolist(),
        side.is_end[kept].tolist(),
        scale.levels(side.weights[kept]).tolist(),
        strict=True,
    )
    return ShownAnswer(
        name=answer,
        mean_log_ratio=float(side.text_means(side.log_ratio)[index]),
        mean_weight=float(side.text_means(side.weights)[index]),
        parents=[
            ShownParent(
                text=visible(text),
                level=level,
                is_end=is_end,
                details="\n".join(
                    [
                        *(f"{name}: {' | '.join(tokens[name][i])}" for name in SIDES),
                        *weight_lines(weight, log_ratio, answer, is_end, scored.config),
                    ]
                ),
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


def weight_lines(weight: float, log_ratio: float, answer: str, is_end: bool, config: WeightConfig) -> list[str]:
    """What is told of the weight of a parent to a reader who points at it."""
    return [_log_ratio_line(log_ratio, answer, is_end, config), f"weight {weight:.3f}"]


def _log_ratio_line(log_ratio: float, answer: str, is_end: bool, config: WeightConfig) -> str:
    line = f"log-ratio {log_ratio:+.3f}"
    bounds = clamp_bounds(config)
    if is_end:
        return f"{line}, not used: the end has eos_weight"
    if bounds is None:
        return line
    low, high, of = bounds
    value = -log_ratio if of == "score" and answer == "rejected" else log_ratio
    if low <= value <= high:
        return line
    return f"{line}, {'' if of == 'log_ratio' else 'as score '}clamped to {min(max(value, low), high):+g}"
