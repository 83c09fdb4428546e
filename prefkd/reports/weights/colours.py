"""From weights to colours, and to the lines that tell a reader of a weight."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from prefkd.reports.weights.answers import WeightedAnswers
from prefkd.reports.weights.numbers import clamp_bounds
from prefkd.weighting import WeightConfig

# Colours on each side of the neutral one, and the least that they span: no colours for differences of nothing.
LEVELS = 4
SHORTEST_REACH = 0.1


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


def colour_scale(answers: Mapping[str, WeightedAnswers], config: WeightConfig) -> ColourScale:
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
