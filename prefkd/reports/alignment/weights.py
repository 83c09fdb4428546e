"""The weights that a folder of scores gives the parents of an inspection."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from datasets import Dataset, concatenate_datasets

from prefkd.data.rows import ANSWERS
from prefkd.data.scores import SPLITS, Scores
from prefkd.errors import PrefkdError
from prefkd.reports.weights.answers import WeightedAnswers, weigh_answers
from prefkd.reports.weights.colours import ColourScale, colour_scale, weight_lines
from prefkd.reports.weights.numbers import weight_numbers
from prefkd.weighting import WeightConfig

# As recipe score reports on them: those of the paper.
WEIGHTS = WeightConfig(contrast="scores")


@dataclass(frozen=True)
class PairWeights:
    """The weights of one pair.

    Attributes:
        weights, log_ratios: For each answer (P,), of its parents of text.
        scale: From weights to colours.
        config: How weights were made of scores.
    """

    weights: dict[str, np.ndarray]
    log_ratios: dict[str, np.ndarray]
    scale: ColourScale
    config: WeightConfig

    @property
    def numbers(self) -> dict[str, float]:
        """Mean weight of each answer, and the standard deviation over both."""
        means = {f"mean_weight_{answer}": float(values.mean()) for answer, values in self.weights.items()}
        return means | {"weight_spread": float(np.concatenate(list(self.weights.values())).std())}

    def levels(self, answer: str) -> np.ndarray:
        """(P,) the colours of an answer's parents."""
        return self.scale.levels(self.weights[answer])

    def details(self, answer: str, parent: int) -> Sequence[str]:
        """What is told of a parent to a reader who points at it."""
        weight, log_ratio = self.weights[answer][parent], self.log_ratios[answer][parent]
        return weight_lines(float(weight), float(log_ratio), answer, False, self.config)


@dataclass(frozen=True)
class Weights:
    """The weights of all pairs that are looked at.

    Attributes:
        places: File and row of each pair -> its place among them.
        answers: The parents of the chosen and of the rejected answers, pair after pair.
        scale: From weights to colours.
        config: How weights were made of scores.
    """

    places: dict[tuple[str, int], int]
    answers: dict[str, WeightedAnswers]
    scale: ColourScale
    config: WeightConfig

    @property
    def numbers(self) -> dict[str, Any]:
        """`prefkd.reports.weights.numbers.weight_numbers`, and how weights were made."""
        config = self.config
        return {"method": config.method, "reduce": config.reduce, **weight_numbers(self.answers, config)}

    def of_pair(self, file: str, row: int) -> PairWeights:
        """Those of one pair."""
        index, weights, log_ratios = self.places[file, row], {}, {}
        for name in ANSWERS:
            side = self.answers[name]
            own = slice(side.starts[index], side.starts[index] + side.counts[index])
            text = side.is_text[own]
            weights[name], log_ratios[name] = side.weights[own][text], side.log_ratio[own][text]
        return PairWeights(weights, log_ratios, self.scale, self.config)


def scored_pairs(pairs: Dataset, scores: Scores) -> Dataset:
    """The pairs that were scored, whichever split they were in.

    Raises:
        PrefkdError: There are none, or no contrast was scored.
    """
    if not scores.has_contrast:
        raise PrefkdError(f"{scores.folder} was written without a contrast, so all weights are 1; score with one")
    known = scores.splits()
    found = [i for i, place in enumerate(zip(pairs["file"], pairs["row"], strict=True)) if place in known]
    if not found:
        raise PrefkdError(
            f"none of the {len(pairs)} pairs are among the {len(known)} in {scores.folder}; name its data"
        )
    return pairs.select(found)


def attach_scores(aligned: Dataset, scores: Scores) -> Dataset:
    """Add the scores to aligned pairs of `scored_pairs`.

    Raises:
        ConfigError: A pair is not what it was when it was scored.
    """
    known = scores.splits()
    splits = [known[place] for place in zip(aligned["file"], aligned["row"], strict=True)]
    parts, order = [], []
    for split in cast(tuple[Literal["train", "held_out"], ...], SPLITS):
        rows = [i for i, name in enumerate(splits) if name == split]
        if rows:
            parts.append(scores.attach(aligned.select(rows), split))
            order += rows
    return concatenate_datasets(parts).select(np.argsort(order))


def read_weights(scored: Dataset, config: WeightConfig = WEIGHTS) -> Weights:
    """The weights of the pairs of an aligned data set with scores."""
    answers = weigh_answers(scored, config)
    places = {place: i for i, place in enumerate(zip(scored["file"], scored["row"], strict=True))}
    return Weights(places, answers, colour_scale(answers, config), config)
