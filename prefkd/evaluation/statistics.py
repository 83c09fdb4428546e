"""How sure a mean is: bootstrap intervals, and differences between models that were asked the same questions.

Shapes: n items (pairs, prompts, questions).
"""

from typing import NamedTuple

import numpy as np

# Of the bootstrap, so that memory stays small: numbers drawn at one time.
DRAWS = 4_000_000


class Interval(NamedTuple):
    """A mean over items and the interval in which it lies with 95 % confidence."""

    mean: float
    low: float
    high: float


def bootstrap_means(values: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """Means of samples drawn from the items with replacement, as often as there are items.

    How often each value occurs in such a sample is multinomial, so that counts are drawn instead of items: the law is
    the same, and values that are mostly equal, such as right and wrong, cost next to nothing.

    Args:
        values: (n,) one number for each item.
        resamples: How many samples, M.
        seed: Seed of the draws.

    Returns:
        (M,) means.

    Source: the nonparametric bootstrap, Efron 1979, doi 10.1214/aos/1176344552.
    """
    distinct, counts = np.unique(values, return_counts=True)
    generator = np.random.default_rng(seed)
    means, at_once = [], max(1, DRAWS // len(distinct))
    for first in range(0, resamples, at_once):
        drawn = generator.multinomial(len(values), counts / len(values), size=min(at_once, resamples - first))
        means.append(drawn @ distinct / len(values))
    return np.concatenate(means)


def bootstrap_interval(values: np.ndarray, *, resamples: int, seed: int) -> Interval:
    """The mean of some items with its 95 % percentile bootstrap interval.

    Args:
        values: (n,) one number for each item, n >= 1.
        resamples: Bootstrap samples.
        seed: Seed of the draws; equal items give an equal interval.
    """
    low, high = np.quantile(bootstrap_means(values, resamples=resamples, seed=seed), [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


def paired_difference(values: np.ndarray, baseline: np.ndarray, *, resamples: int, seed: int) -> Interval:
    """The mean difference to a baseline that was asked the same questions.

    Items are drawn, and with each both its numbers, so that what is hard for both does not widen the interval.

    Args:
        values, baseline: (n,) the numbers of the same items in the same order.
        resamples: Bootstrap samples.
        seed: Seed of the draws.
    """
    return bootstrap_interval(values - baseline, resamples=resamples, seed=seed)


def normal_interval(mean: float, standard_error: float) -> Interval:
    """The 95 % interval of a mean whose standard error alone is known: mean ± 1.96 standard errors."""
    return Interval(mean, mean - 1.96 * standard_error, mean + 1.96 * standard_error)


def preferred(margins: np.ndarray) -> np.ndarray:
    """1 where the margin of the better answer over the worse is positive, 0 where negative, 1/2 where there is none.

    Args:
        margins: (n,) how much more the better answer gets.
    """
    return (np.sign(margins) + 1) / 2
