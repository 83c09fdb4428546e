"""What is in a weight report: distributions, shares and text pieces, as plain numbers ready for JSON."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from prefkd.data.rows import ANSWERS
from prefkd.method.weights import TRANSFORMS, importance_weights
from prefkd.reports.weights.answers import WeightedAnswers
from prefkd.training.contrast_verdict import judge_contrast
from prefkd.weighting import WeightConfig

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
# About so many bars in a histogram.
BARS = 24
# Where both instructions were cut off, or both models are one, the log-ratios differ from 0 by rounding only.
NO_CONTRAST = 1e-6
# Beyond so much on either side the sigmoid of a loss is flat, and a pair teaches nothing.
SATURATION = 10
# The scores know no beta: 0.1 is the default of a student, 0.3 that of a teacher in CTPD, 0.5 is the largest in use.
BETAS = (0.1, 0.3, 0.5)
# A text piece is listed if it occurs so often, and at least once in so many parents: rare pieces have extreme means.
MINIMUM_COUNT = 5
PARENTS_PER_OCCURRENCE = 10_000
PIECES = 15

# Method -> its function, the names of the bounds it clamps to, and what it clamps: d, or the score +d or -d.
_CLAMPS: dict[str, tuple[Callable, str, str, str]] = {
    "exp": (importance_weights, "low", "high", "log_ratio"),
    "threshold": (TRANSFORMS["threshold"], "lower_threshold", "upper_threshold", "score"),
    "threshold_and_scale": (TRANSFORMS["threshold_and_scale"], "min_val", "max_val", "score"),
}


def weight_numbers(answers: Mapping[str, WeightedAnswers], config: WeightConfig) -> dict[str, Any]:
    """All numbers of a report but the text pieces.

    Args:
        answers: The chosen and the rejected answers.
        config: How their weights were made.

    Returns:
        pairs_read: Pairs that the numbers come from.
        log_ratio, weight: For each answer the distribution over parents of text, and a histogram of both answers.
        clamp: The bounds that scores are clamped to and the share of parents of text beyond each; None where the
            method has no bounds.
        end_of_answer: For each answer how many have their EOS, and the distribution of its log-ratio.
        contrast: How well the log-ratios tell chosen from rejected: `contrast_numbers`.
        reference_margin: Saturation at the start, from the cache: `reference_numbers`.
    """
    text = {answer: side.is_text for answer, side in answers.items()}
    numbers: dict[str, Any] = {"pairs_read": len(answers["chosen"].counts)}
    for name, attribute in (("log_ratio", "log_ratio"), ("weight", "weights")):
        values = {answer: getattr(side, attribute)[text[answer]] for answer, side in answers.items()}
        numbers[name] = {answer: distribution(values[answer]) for answer in ANSWERS}
        numbers[name]["histogram"] = histogram(values)
    return numbers | {
        "clamp": clamp_numbers(answers, config),
        "end_of_answer": {
            answer: {"answers": int(side.is_end.sum()), "log_ratio": distribution(side.log_ratio[side.is_end])}
            for answer, side in answers.items()
        },
        "contrast": contrast_numbers(answers),
        "reference_margin": reference_numbers(answers),
    }


def distribution(values: np.ndarray) -> dict[str, Any]:
    """Count, mean, standard deviation and percentiles; None for all but the count where there are no values."""
    names = ("mean", "deviation", "minimum", *(f"percentile_{p}" for p in PERCENTILES), "maximum")
    if not len(values):
        return {"count": 0, **dict.fromkeys(names)}
    low, *middle, high = np.percentile(values, (0, *PERCENTILES, 100))
    numbers = (values.mean(), values.std(), low, *middle, high)
    return {"count": len(values), **{name: rounded(value) for name, value in zip(names, numbers, strict=True)}}


def histogram(values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Counts of values of chosen and rejected answers between common round edges; the end bars hold all beyond."""
    low, high = np.percentile(np.concatenate(list(values.values())), (0.5, 99.5))
    width = round_width((high - low) / BARS)
    first = math.floor(low / width)
    last = max(math.ceil(high / width), first + 1)
    edges = np.arange(first, last + 1) * width
    counts = {name: np.histogram(np.clip(side, edges[0], edges[-1]), edges)[0] for name, side in values.items()}
    return {"edges": [rounded(edge) for edge in edges], **{name: side.tolist() for name, side in counts.items()}}


def round_width(width: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is not below `width`; 0.1 for a width of 0."""
    if width <= 1e-9:
        return 0.1
    power = 10.0 ** math.floor(math.log10(width))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= width * (1 - 1e-9))


def clamp_bounds(config: WeightConfig) -> tuple[float, float, str] | None:
    """The bounds of a weight method and whether they hold for the log-ratio or the score; None if it has none."""
    if config.method not in _CLAMPS:
        return None
    function, low, high, of = _CLAMPS[config.method]
    values = {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
    values |= config.parameters
    return float(values[low]), float(values[high]), of


def clamp_numbers(answers: Mapping[str, WeightedAnswers], config: WeightConfig) -> dict[str, Any] | None:
    """The shares of parents of text whose score lies beyond a bound."""
    bounds = clamp_bounds(config)
    if bounds is None:
        return None
    low, high, of = bounds
    numbers: dict[str, Any] = {"of": of, "low": low, "high": high}
    for answer, side in answers.items():
        values = side.log_ratio[side.is_text]
        if of == "score" and answer == "rejected":
            values = -values  # score s = +d on chosen, -d on rejected
        below, above = (values < low).mean(), (values > high).mean()
        numbers[answer] = {"share_below": rounded(below), "share_above": rounded(above)}
    return numbers


def without_contrast(answers: Mapping[str, WeightedAnswers]) -> np.ndarray:
    """(N,) whether all log-ratios of a pair are 0, so that pi+ and pi- cannot be told apart on it."""
    largest = [np.maximum.reduceat(np.abs(side.sequence_ratio), side.starts) for side in answers.values()]
    return np.maximum(*largest) <= NO_CONTRAST


def contrast_numbers(answers: Mapping[str, WeightedAnswers]) -> dict[str, Any]:
    """Whether pi+ against pi- tells chosen from rejected answers.

    Returns:
        pairs_without_contrast: All of their log-ratios are 0, so that all their weights are alike.
        pairs_compared: The others, from which the rest comes.
        chosen_higher_by_mean: Share whose chosen answer has the higher mean log-ratio over its text.
        chosen_higher_by_sum: Share whose chosen answer has the higher log-ratio as a whole, EOS included. Both
            models of a DPO pair were trained for this.
        standard_error: Standard error of the first share, sqrt(p(1 - p) / n).
        mean_difference: Distribution of the chosen answer's mean minus the rejected one's.
        verdict: Use of the contrast for a training, over all pairs: verdict, share, low, high and pairs of a
            `ContrastVerdict`, and in words summary and advice.
    """
    compared = ~without_contrast(answers)
    count = int(compared.sum())
    chosen, rejected = (answers[answer] for answer in ANSWERS)
    difference = (chosen.text_means(chosen.log_ratio) - rejected.text_means(rejected.log_ratio))[compared]
    as_wholes = (chosen.sums(chosen.sequence_ratio) - rejected.sums(rejected.sequence_ratio))[compared]
    share = float((difference > 0).mean()) if count else None
    verdict = judge_contrast(((as_wholes > 0).sum() + 0.5 * (len(compared) - count)) / len(compared), len(compared))
    return {
        "pairs_without_contrast": len(compared) - count,
        "pairs_compared": count,
        "chosen_higher_by_mean": None if share is None else rounded(share),
        "chosen_higher_by_sum": rounded((as_wholes > 0).mean()) if count else None,
        "standard_error": None if share is None else rounded(math.sqrt(share * (1 - share) / count)),
        "mean_difference": distribution(difference),
        "verdict": {
            "verdict": verdict.verdict,
            **{name: rounded(getattr(verdict, name)) for name in ("share", "low", "high")},
            "pairs": verdict.pairs,
            "summary": verdict.summary,
            "advice": verdict.advice,
        },
    }


def reference_numbers(answers: Mapping[str, WeightedAnswers]) -> dict[str, Any]:
    """The reference's part of the margins that the loss starts from.

    The loss is a sigmoid of beta times the student's margin minus the reference's. The student's is not known here. A
    student that goes along with the reference cancels most of it, so the shares are not a forecast: they say how far
    out the pairs would be if the student gave both answers of a pair the same weighted log-prob.

    Returns:
        weighted: Distribution over pairs of the sum of w l_ref over the chosen parents minus that over the rejected.
        unweighted: Statistics with all weights 1.
        share_beyond_if_student_indifferent: For some beta the share of pairs with |beta * weighted| above `SATURATION`.
    """
    chosen, rejected = (answers[answer] for answer in ANSWERS)
    weighted = chosen.sums(chosen.weights * chosen.reference) - rejected.sums(rejected.weights * rejected.reference)
    return {
        "weighted": distribution(weighted),
        "unweighted": distribution(chosen.sums(chosen.reference) - rejected.sums(rejected.reference)),
        "share_beyond_if_student_indifferent": {
            str(beta): rounded((np.abs(beta * weighted) > SATURATION).mean()) for beta in BETAS
        },
    }


def piece_numbers(texts: Sequence[str], side: WeightedAnswers) -> dict[str, Any]:
    """The text pieces of chosen or of rejected answers with the highest and with the lowest mean weight.

    Args:
        texts: Text of each parent, in the order of `side`.
        side: The answers.

    Returns:
        minimum_count: How often a piece must occur to be listed.
        pieces_counted: How many different pieces do.
        most, least: Lists of text, count, mean_weight and mean_log_ratio, the extreme first. No piece is in both.
    """
    places: dict[str, int] = {}
    kept = np.flatnonzero(side.is_text)
    index = np.array([places.setdefault(texts[i], len(places)) for i in kept.tolist()])
    counts = np.bincount(index)
    weights = np.bincount(index, side.weights[kept]) / counts
    log_ratios = np.bincount(index, side.log_ratio[kept]) / counts
    minimum = max(MINIMUM_COUNT, math.ceil(len(kept) / PARENTS_PER_OCCURRENCE))
    frequent = np.flatnonzero(counts >= minimum)
    ascending = frequent[np.argsort(weights[frequent], kind="stable")]
    half = len(ascending) // 2
    names = list(places)

    def listed(order: np.ndarray) -> list[dict[str, Any]]:
        return [
            {
                "text": names[i],
                "count": int(counts[i]),
                "mean_weight": rounded(weights[i]),
                "mean_log_ratio": rounded(log_ratios[i]),
            }
            for i in order
        ]

    return {
        "minimum_count": minimum,
        "pieces_counted": len(frequent),
        "most": listed(ascending[::-1][: min(PIECES, len(ascending) - half)]),
        "least": listed(ascending[: min(PIECES, half)]),
    }


def rounded(value: Any) -> float:
    """Six significant digits: more than a sample can say, and a stable file."""
    return float(f"{value:.6g}")
