"""Intervals and paired differences are those of an exact law, or of a bootstrap written out."""

import math

import numpy as np
import pytest

from prefkd.evaluation.statistics import (
    bootstrap_interval,
    bootstrap_means,
    normal_interval,
    paired_difference,
    preferred,
)

NUMBERS = np.random.default_rng(3).normal(size=60)


def binomial_quantile(trials: int, chance: float, quantile: float) -> int:
    below = 0.0
    for successes in range(trials + 1):
        below += math.comb(trials, successes) * chance**successes * (1 - chance) ** (trials - successes)
        if below >= quantile:
            return successes
    return trials


@pytest.mark.parametrize(("right", "items"), [(30, 40), (3, 50), (100, 200)])
def test_of_right_and_wrong_the_bootstrap_is_binomial(right, items):
    values = np.array([1.0] * right + [0.0] * (items - right))
    found = bootstrap_interval(values, resamples=20_000, seed=0)
    assert found.mean == pytest.approx(right / items)
    for end, quantile in ((found.low, 0.025), (found.high, 0.975)):
        assert abs(end - binomial_quantile(items, right / items, quantile) / items) <= 1.01 / items


def test_of_any_numbers_it_is_drawing_with_replacement():
    generator = np.random.default_rng(1)
    written_out = generator.choice(NUMBERS, size=(20_000, 60)).mean(axis=1)
    found = bootstrap_means(NUMBERS, resamples=20_000, seed=0)
    assert found.shape == (20_000,)
    assert found.std() == pytest.approx(np.std(written_out), rel=0.03)
    assert found.std() == pytest.approx(NUMBERS.std() / math.sqrt(60), rel=0.03)
    for quantile in (0.025, 0.5, 0.975):
        assert np.quantile(found, quantile) == pytest.approx(np.quantile(written_out, quantile), abs=0.03)


def test_the_seed_decides(monkeypatch):
    one = bootstrap_means(NUMBERS, resamples=500, seed=1)
    assert (one == bootstrap_means(NUMBERS, resamples=500, seed=1)).all()
    assert (one != bootstrap_means(NUMBERS, resamples=500, seed=2)).any()
    monkeypatch.setattr("prefkd.evaluation.statistics.DRAWS", 60 * 7)  # in portions, the draws are the same
    np.testing.assert_allclose(one, bootstrap_means(NUMBERS, resamples=500, seed=1))


def test_a_paired_difference_is_narrower_than_two_intervals():
    """Where both are right on the same items, all that is left is where they differ."""
    baseline = np.array([1.0, 0.0] * 100)
    better = baseline.copy()
    better[[1, 3, 5, 7, 9, 11]] = 1.0
    found = paired_difference(better, baseline, resamples=20_000, seed=0)
    assert found.mean == pytest.approx(0.03)
    assert found.low == pytest.approx(binomial_quantile(200, 0.03, 0.025) / 200, abs=0.0051)
    assert found.high == pytest.approx(binomial_quantile(200, 0.03, 0.975) / 200, abs=0.0051)
    assert found.low > 0
    alone = [bootstrap_interval(values, resamples=2000, seed=0) for values in (better, baseline)]
    assert alone[0].low < alone[1].high
    assert paired_difference(baseline, baseline, resamples=200, seed=0) == (0.0, 0.0, 0.0)


def test_one_item_and_equal_items_have_no_width():
    assert bootstrap_interval(np.array([0.7]), resamples=100, seed=0) == pytest.approx((0.7, 0.7, 0.7))
    assert bootstrap_interval(np.ones(9), resamples=100, seed=0) == (1.0, 1.0, 1.0)


def test_normal_interval():
    assert normal_interval(0.5, 0.1) == pytest.approx((0.5, 0.304, 0.696))


def test_ties_are_half():
    assert preferred(np.array([2.0, -0.1, 0.0])).tolist() == [1.0, 0.0, 0.5]
