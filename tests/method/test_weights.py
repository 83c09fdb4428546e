"""Weights and transforms: the published numbers, bounds, and what a wrong name says."""

import json
import math
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefkd.method.weights import importance_weights, transform_scores

SCORES = st.lists(st.floats(-5, 5), max_size=20)


def test_published_formula(golden: Path):
    for case in json.loads((golden / "tis_weights.json").read_text())["paper_formula"]:
        ratios = torch.tensor(case["logp_pos_minus_neg"], dtype=torch.float64)
        found = importance_weights(ratios, case["mu"], k=case["k"], low=case["L"], high=case["U"])
        torch.testing.assert_close(found, torch.tensor(case["weights"], dtype=torch.float64), rtol=0, atol=1e-9)


def test_published_parent_weights(golden: Path):
    stored = json.loads((golden / "parent_weights.json").read_text())
    bounds = {"k": stored["k"], "low": stored["L"], "high": stored["U"]}
    for case in stored["examples"]:
        tokens = torch.tensor(case["logp_positive"]).double() - torch.tensor(case["logp_negative"]).double()
        ratios = torch.stack([tokens[first:end].sum() for first, end in case["parent_ranges"]])
        torch.testing.assert_close(ratios.tolist(), case["parent_log_ratio"], rtol=0, atol=1e-5)
        exact = torch.tensor(case["parent_log_ratio"], dtype=torch.float64)
        for sign, key in ((1, "weight_chosen"), (-1, "weight_rejected")):
            found = importance_weights(exact, sign, **bounds)
            torch.testing.assert_close(found.tolist(), case[key], rtol=0, atol=1e-9)


def test_published_transforms(golden: Path):
    for case in json.loads((golden / "tis_weights.json").read_text())["transforms"]:
        scores = [-score for score in case["input"]] if case["negate"] else case["input"]
        seed = {} if case["seed"] is None else {"seed": case["seed"]}
        found = transform_scores(scores, case["method"], **case["params"], **seed)
        assert found.dtype == torch.float64
        torch.testing.assert_close(
            found, torch.tensor(case["output"], dtype=torch.float64), rtol=0, atol=1e-9, msg=str(case)
        )


@pytest.mark.parametrize(
    ("method", "named"),
    [
        ("binary", {"top_percent": 100}),
        ("threshold", {"upper_threshold": 1.0, "lower_threshold": -1.0}),
        ("threshold_and_scale", {"min_val": -1.5, "max_val": 1.5, "min_scale": 0.7, "max_scale": 1.3}),
        ("rank_based", {"min_scale": 0.7, "max_scale": 1.3}),
    ],
)
def test_defaults_are_the_published_ones(method, named):
    scores = [3.2, -2.7, 0.15, 0.15, -0.04, 1.5]
    assert torch.equal(transform_scores(scores, method), transform_scores(scores, method, **named))


@given(SCORES)
def test_weights_stay_in_their_bounds_and_rank_as_the_paper_wants(ratios):
    ratio = torch.tensor(ratios, dtype=torch.float64)
    chosen, rejected = importance_weights(ratio, 1), importance_weights(ratio, -1)
    torch.testing.assert_close(chosen * rejected, torch.ones_like(ratio))
    assert ((chosen >= math.exp(-0.5) - 1e-12) & (chosen <= math.exp(1.5) + 1e-12)).all()
    order = ratio.argsort()
    assert (chosen[order].diff() >= 0).all()
    assert (rejected[order].diff() <= 0).all()


def test_the_sign_may_be_a_tensor_and_acts_after_the_clamp():
    found = importance_weights(torch.full((2, 1), 9.0), torch.tensor([[1.0], [-1.0]]), k=2.0, low=-1.0, high=1.0)
    torch.testing.assert_close(found, torch.tensor([[2 * math.e], [2 / math.e]]))


def test_weights_are_constants():
    ratios = torch.zeros(3, requires_grad=True)
    assert not importance_weights(ratios, 1).requires_grad
    for method in ("origin", "binary", "threshold", "threshold_and_scale", "random", "rank_based"):
        found = transform_scores(ratios, method)
        assert not found.requires_grad
        assert found.dtype == torch.float32


@given(SCORES, st.permutations(range(20)))
def test_transforms_do_not_depend_on_the_order_of_distinct_scores(scores, order):
    scores = list(dict.fromkeys(scores))
    order = [i for i in order if i < len(scores)]
    for method, params in (("binary", {"top_percent": 50}), ("threshold_and_scale", {}), ("rank_based", {})):
        found = transform_scores(scores, method, **params)
        mixed = transform_scores([scores[i] for i in order], method, **params)
        assert torch.equal(mixed, found[order] if order else found)


def test_random_weights_follow_the_seed():
    scores = torch.zeros(5)
    assert torch.equal(transform_scores(scores, "random", seed=3), transform_scores(scores, "random", seed=3))
    assert not torch.equal(transform_scores(scores, "random", seed=3), transform_scores(scores, "random", seed=4))
    random.seed(3)
    assert torch.equal(transform_scores(scores, "random"), transform_scores(scores, "random", seed=3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: transform_scores([1.0], "rankbased"), "unknown transform 'rankbased'; did you mean 'rank_based'?"),
        (lambda: transform_scores([1.0], "binary", percent=50), "no parameter 'percent'; did you mean 'top_percent'?"),
        (lambda: transform_scores([1.0], "origin", scale=2), "no parameter 'scale'; it takes none"),
        (
            lambda: transform_scores([1.0], "threshold", upper_threshold=-2),
            "lower_threshold is -1.0, but must be below",
        ),
        (lambda: transform_scores([1.0], "threshold_and_scale", max_val=-1.5), "min_val is -1.5, but must be below"),
        (lambda: transform_scores(torch.zeros(2, 2), "origin"), "shape (2, 2)"),
        (lambda: importance_weights([1.0], 1, low=2.0), "low is 2.0, but must be below high, which is 1.5"),
        (lambda: importance_weights([1.0], 0.5), "sign is 0.5"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    assert message in str(caught.value)
