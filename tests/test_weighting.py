"""Weights as a config asks for them."""

import random
from types import SimpleNamespace
from typing import Any

import torch

from prefkd.weighting import WeightConfig, parent_weights


def weights_of(names: list[str], **parameters: Any) -> torch.Tensor:
    """(2, B, 6) random weights of pairs of five parents and an end."""
    shape = (2, len(names), 6)
    mask = torch.ones(shape, dtype=torch.bool)
    ends = torch.arange(6).expand(shape) == 5
    counts = [5] * len(names)
    batch: Any = SimpleNamespace(parent_mask=mask, eos_mask=ends, text_parents=(counts, counts), names=names)
    scores: Any = SimpleNamespace(positive=torch.zeros(shape), negative=torch.zeros(shape))
    return parent_weights(WeightConfig(method="random", parameters=parameters), scores, batch)


def test_random_weights_belong_to_their_answer():
    """Whatever shares a batch with it, and however often it is read: a look-ahead sees what the step then uses."""
    random.seed(1)
    one = weights_of(["a:1", "a:2"])
    random.seed(2)
    other = weights_of(["a:3", "a:2", "a:1"])
    assert torch.equal(one[:, 0], other[:, 2]) and torch.equal(one[:, 1], other[:, 1])
    answers = one[..., :5].flatten(0, 1)
    assert len({tuple(answer.tolist()) for answer in answers}) == 4
    assert (one[..., 5] == 1.0).all() and 0.7 <= answers.min() < answers.max() <= 1.3


def test_random_weights_follow_the_seed():
    assert torch.equal(weights_of(["a:1"], seed=3), weights_of(["a:1"], seed=3))
    assert not torch.equal(weights_of(["a:1"], seed=3), weights_of(["a:1"], seed=4))
