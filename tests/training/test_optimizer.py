"""Gradient clipping: each parameter group apart, as a formula and through torch."""

import pytest
import torch
from torch import nn

from prefkd.training.optimizer import clip_gradients


def test_each_group_is_clipped_apart_and_the_norm_is_that_of_all():
    large, small = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    large.grad, small.grad = torch.tensor([3.0, 4.0]), torch.tensor([0.5])
    optimizer = torch.optim.SGD([{"params": [large]}, {"params": [small], "lr": 1e-3}], lr=0.1)
    assert clip_gradients(optimizer, 1.0) == pytest.approx((25 + 0.25) ** 0.5)
    torch.testing.assert_close(large.grad, torch.tensor([0.6, 0.8]))
    assert small.grad.item() == 0.5
