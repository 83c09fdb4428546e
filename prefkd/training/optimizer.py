"""Optimizer, learning-rate schedule and gradient clipping."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from prefkd.config import Component, build, import_dotpath
from prefkd.config.components import parameters_of
from prefkd.errors import PrefkdError


def build_optimizer(component: Component, parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]]) -> Optimizer:
    """The configured optimizer; Adam and AdamW in their fused form, unless the config chooses otherwise."""
    # The fused form of SGD cannot step sharded weights.
    is_adam = import_dotpath(component["_component_"]) in (torch.optim.Adam, torch.optim.AdamW)
    fused = {"fused": True} if is_adam and not {"fused", "foreach"} & component.keys() else {}
    return build(component, list(parameters), **fused)


def build_schedule(component: Component, optimizer: Optimizer, num_training_steps: int) -> LRScheduler:
    """The configured schedule. A constant one does not ask for the number of steps, the others get it."""
    accepted = parameters_of(import_dotpath(component["_component_"]))
    length = {"num_training_steps": num_training_steps} if "num_training_steps" in accepted else {}
    schedule = build(component, optimizer, **length)
    own_length = getattr(schedule, "total_steps", None)  # of OneCycleLR, which refuses to step any further
    if isinstance(own_length, int) and own_length < num_training_steps:
        raise PrefkdError(
            f"lr_schedule: {component['_component_']} ends after {own_length} steps, and the run has "
            f"{num_training_steps}; set its total_steps, or training.max_steps"
        )
    return schedule


def clip_gradients(optimizer: Optimizer, max_norm: float) -> Tensor:
    """Scale gradients so that the L2 norm of each parameter group is at most `max_norm`; returns that of all before.

    Each group apart, since the gradients of a preference far from what is wanted would leave projectors almost none.
    """
    norms = [torch.nn.utils.clip_grad_norm_(group["params"], max_norm) for group in optimizer.param_groups]
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    # Of a group without gradients, the model's while projectors warm up, torch makes a norm of 0 in main memory.
    device = optimizer.param_groups[0]["params"][0].device
    return torch.linalg.vector_norm(torch.stack([norm.to(device, torch.float64) for norm in whole]))
