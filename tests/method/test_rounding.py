"""Stochastic rounding: to a neighbour, unbiased, repeatable, and harmless where there is nothing to round."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from prefkd.method import rounding
from prefkd.method.rounding import round_stochastically

PATTERNS = arrays(np.uint32, st.integers(1, 40), elements=st.integers(0, 2**32 - 1))


@given(PATTERNS, st.integers(0, 2**50))
@settings(max_examples=100, deadline=None)
def test_every_value_goes_to_a_neighbour(patterns, seed):
    values = torch.from_numpy(patterns.view(np.float32).copy())
    rounded = round_stochastically(values, seed=seed)
    assert rounded.dtype == torch.bfloat16
    finite = values.isfinite()
    assert rounded.isfinite().equal(finite) and rounded.isnan().equal(values.isnan())
    assert rounded[values.isinf()].float().equal(values[values.isinf()])
    kept, exact = rounded[finite].float(), values[finite]
    toward_zero = (exact.view(torch.int32) & ~0xFFFF).view(torch.float32)
    away = toward_zero.view(torch.int32) + 0x10000
    neighbours = (kept == toward_zero) | (kept.view(torch.int32) == away)
    assert neighbours.all()
    # What bfloat16 can hold is not changed by a bit.
    assert round_stochastically(kept, seed=seed + 1).view(torch.int16).equal(rounded[finite].view(torch.int16))


@pytest.mark.parametrize("value", [1.001, -0.3, 1e-3, -7.77e-8, 12345.6])
def test_it_is_unbiased(value):
    many = torch.full((40_000,), value)
    rounded = round_stochastically(many, seed=3).double()
    low, high = rounded.min().item(), rounded.max().item()
    assert low < torch.tensor(value).item() < high
    share = (torch.tensor(value).double().item() - low) / (high - low)
    standard_error = (high - low) * (share * (1 - share) / len(many)) ** 0.5
    assert abs(rounded.mean().item() - torch.tensor(value).double().item()) < 5 * standard_error


def test_steps_that_nearest_rounding_takes_back_are_kept():
    weights = torch.randn(200_000, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    trained = weights + 1e-5
    assert (trained.bfloat16().float() - weights).mean() < 0.5e-5
    assert (round_stochastically(trained, seed=0).double() - weights.double()).mean() == pytest.approx(1e-5, rel=0.35)


def test_it_depends_on_the_seed_alone(monkeypatch):
    values = torch.randn(3, 5, 7).transpose(0, 2)
    torch.manual_seed(1)
    one = round_stochastically(values, seed=5)
    torch.manual_seed(2)
    assert one.shape == values.shape and one.equal(round_stochastically(values.clone(), seed=5))
    assert not one.equal(round_stochastically(values, seed=6))
    before = torch.get_rng_state()
    round_stochastically(values, seed=5)
    assert torch.get_rng_state().equal(before)
    monkeypatch.setattr(rounding, "CHUNK", 10)
    assert round_stochastically(values, seed=5).shape == values.shape


def test_empty_and_single_values():
    assert round_stochastically(torch.zeros(0, 4), seed=0).shape == (0, 4)
    assert round_stochastically(torch.tensor(1.0), seed=0).item() == 1.0
