"""Rounding weights to fewer bits without losing what small steps have changed."""

import torch
from torch import Tensor

# Values that are rounded at a time, so that a large table needs little memory besides its own.
CHUNK = 2**22


def round_stochastically(values: Tensor, *, seed: int) -> Tensor:
    """Round to bfloat16 so that the expected result is the value: up with the probability of the distance below.

    A bfloat16 is the upper half of a float32, so that the lower half of the bits, plus 16 random bits, carries into the
    upper half exactly as often as it should (Gupta et al., arXiv 1502.02551; bit arithmetic as in arXiv 2010.06192).
    Nearest rounding takes back every change that is smaller than half a unit; here the changes survive on average.
    What bfloat16 can hold stays as it is, infinities and NaN included, and no finite value becomes infinite.

    Args:
        values: Any shape, converted to float32 on the CPU.
        seed: Equal seeds give equal roundings of equal values.

    Returns:
        bfloat16 of the same shape, on the CPU.
    """
    values = values.detach().cpu()
    rounded = torch.empty(values.shape, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(seed)
    for part, out in zip(values.reshape(-1).split(CHUNK), rounded.view(-1).split(CHUNK), strict=True):
        exact = part.float().contiguous()
        bits = exact.view(torch.int32)
        noise = torch.randint(2**16, bits.shape, dtype=torch.int32, generator=generator)
        up = ((bits + noise) & ~0xFFFF).view(torch.float32)
        down = (bits & ~0xFFFF).view(torch.float32)
        finite = torch.where(up.isfinite(), up, down)  # the largest values have nowhere to go
        out.copy_(torch.where(exact.isfinite(), finite, exact))
    return rounded
