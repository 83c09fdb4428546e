"""Dataclasses of tensors that go to a device together."""

from dataclasses import replace
from typing import Self

import torch
from torch import Tensor


class Movable:
    """A dataclass with tensors in it, and with others of its kind."""

    def to(self, device: torch.device) -> Self:
        """The same with all its tensors on `device`."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, (Tensor, Movable))}
        return replace(self, **moved)  # pyright: ignore[reportArgumentType]
