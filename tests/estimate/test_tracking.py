"""Bytes of tensors that do not exist."""

import torch
from torch import nn

from prefkd.estimate.tracking import MemoryTracker, fakes

KIB = 2**10
SIZE = 64 * KIB  # of a float32 matrix (128, 128)


def test_tensors_count_while_they_live():
    mode = fakes()
    with mode:
        known = torch.zeros(128, 128)
    tracker = MemoryTracker([known])
    with mode, tracker:
        one = known + 1
        two = one.view(-1)[:5]  # the same memory
        known.mul_(2)
        assert tracker.live["activations"] == SIZE
        three = known * one
        assert tracker.live["activations"] == 2 * SIZE
        del one, three
        assert tracker.live["activations"] == SIZE
        del two
    assert tracker.live["activations"] == 0 and tracker.total == 2 * SIZE


def _step(*, are_there: bool, shares: dict[str, float]) -> MemoryTracker:
    """One backward pass of a layer whose weight has `SIZE` bytes."""
    mode = fakes()
    with mode:
        model, inputs = nn.Linear(128, 128, bias=False), torch.zeros(128, 128)
    tracker = MemoryTracker([*model.parameters(), inputs], shares)
    tracker.keep_gradients(model, are_there=are_there)
    with mode, tracker:
        model(inputs).square().sum().backward()
    return tracker


def test_gradients_are_counted_apart_and_shared():
    for are_there in (False, True):
        tracker = _step(are_there=are_there, shares={})
        assert tracker.most["gradients"] == SIZE
        assert tracker.peak["gradients"] == SIZE * are_there
    assert _step(are_there=True, shares={"gradients": 0.25}).most["gradients"] == SIZE / 4


def test_copies_of_weights_are_counted_apart():
    mode = fakes()
    with mode:
        model, inputs = nn.Linear(128, 128, bias=False), torch.zeros(1, 128)
    tracker = MemoryTracker(model.parameters())
    with mode, tracker, torch.autocast("cpu", torch.bfloat16):
        kept = model(inputs)
    assert kept.dtype == torch.bfloat16 and tracker.most["casts"] == SIZE / 2


def test_questions_about_values_have_answers():
    mode = fakes()
    with mode, MemoryTracker([]):
        values = torch.zeros(3, 4)
        assert not (values < 0).any()
        assert values[values > 1].shape == (12,)
        assert (values > 1).nonzero().shape == (12, 2)
