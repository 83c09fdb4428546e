"""What backward computes again."""

from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from prefkd.training.learner import _what_becomes_of


class AsCompiled(torch.autograd.Function):
    """x W, written into memory that is asked for before, as a compiled layer does it, and squared."""

    @staticmethod
    def forward(ctx, states: Tensor, weight: Tensor) -> Tensor:
        product = torch.full((len(states), weight.shape[1]), torch.nan)
        torch.mm(states, weight, out=product)
        ctx.save_for_backward(states, weight, product)
        return product.square()

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        states, weight, product = ctx.saved_tensors
        gradient = 2 * product * gradients[0]
        return gradient @ weight.T, states.T @ gradient


def test_selective_recomputation_fills_what_compiled_layers_write_into():
    states, weight = torch.randn(3, 4, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    expected = torch.autograd.grad((states @ weight).square().sum(), (states, weight))
    again = partial(create_selective_checkpoint_contexts, _what_becomes_of)
    out = checkpoint(AsCompiled.apply, states, weight, use_reentrant=False, context_fn=again)
    assert isinstance(out, Tensor)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), (states, weight)), expected)
