"""The interval of a share against its definition, and against what it promises."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefkd.method.shares import wilson_interval


@given(st.integers(1, 5000), st.data())
def test_the_ends_are_shares_that_would_just_be_no_surprise(count, data):
    """Wilson's definition: the observed share is 1.96 standard deviations of a share p away from p."""
    found = data.draw(st.integers(0, 2 * count)) / (2 * count)  # halves are pairs without a difference
    low, high = wilson_interval(found, count)
    assert 0 <= low <= found <= high <= 1
    for end in (low, high):
        distance = abs(found - end)
        assert distance == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / count), abs=1e-6)


def test_known_values():
    # Newcombe 1998, doi 10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E, table I, method 3.
    for found, count, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson_interval(found / count, count) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("share", "count"), [(0.5, 60), (0.46, 240), (0.9, 100)])
def test_it_holds_in_nineteen_of_twenty_samples(share, count):
    drawn = np.random.default_rng(0).binomial(count, share, 4000) / count
    intervals = [wilson_interval(found, count) for found in drawn]
    assert np.mean([low <= share <= high for low, high in intervals]) == pytest.approx(0.95, abs=0.02)
