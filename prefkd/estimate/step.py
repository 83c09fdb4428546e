"""One optimizer step of a recipe on tensors without content: what its tensors take at their fullest moment."""

import math
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from prefkd.config import bind, build
from prefkd.errors import PrefkdError
from prefkd.estimate.company import Company
from prefkd.estimate.models import unpacked_bytes
from prefkd.estimate.rows import full_batch
from prefkd.estimate.tracking import MemoryTracker, empty, fakes
from prefkd.training.combination import Objective


def microbatches(pairs: int, size: int, ranks: int) -> int:
    """Forward passes of a rank in a step: every rank runs as many as the busiest one."""
    return math.ceil(math.ceil(pairs / size) / ranks)


def pairs_of_pass(config: Any) -> int:
    """Pairs of the largest microbatch."""
    if hasattr(config, "training"):
        return min(config.training.microbatch_size, config.training.batch_size)
    return config.microbatch_size


def track_step(recipe: ModuleType, config: Any, company: Company, ranks: int) -> MemoryTracker:
    """Run the recipe's own `compare`, and backward, for the last microbatch of a step; or the teachers of `score`."""
    mode = fakes()
    models = [base for _, base in company.frozen.bases] + ([company.learner] if company.learner else [])
    with mode:
        for model in models:
            empty(model)
    batch = full_batch(config, pairs_of_pass(config), scores=company.scores, mode=mode)
    weights = [value for model in models for value in (*model.parameters(), *model.buffers())]
    tracker = MemoryTracker(weights, shares={"gradients": 1 / ranks})
    unpacked = max((unpacked_bytes(*base) for base in company.frozen.bases), default=0)

    def teacher(batch: Any) -> Any:
        assert company.teacher is not None
        with tracker.holding(unpacked):
            return company.teacher(batch)

    if company.learner is None:
        with mode, tracker, torch.no_grad():
            teacher(batch)
        return tracker
    run = SimpleNamespace(model=company.learner, student=company.learner, teacher=teacher, **_settings(config))
    passes = microbatches(config.training.batch_size, config.training.microbatch_size, ranks)
    tracker.keep_gradients(company.learner, are_there=passes > 1)
    try:
        with mode, tracker:
            losses, _ = recipe.compare(config, run, batch)
            (losses * batch.counted).sum().backward()
    except PrefkdError:
        raise
    except Exception as error:  # whatever a loss of the user's own makes of tensors without content
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise PrefkdError(f"the step cannot be run on tensors without content, as a plan does: {reason}") from error
    return tracker


def state_bytes(component: dict[str, Any]) -> float:
    """Bytes of the optimizer's state for a parameter, found by a step on a small matrix."""
    side = 64
    parameter = torch.nn.Parameter(torch.zeros(side, side))
    optimizer = build(component, [parameter])
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    tensors = [value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
    return sum(value.numel() * value.element_size() for value in tensors if value.numel() > 1) / side**2


def _settings(config: Any) -> dict[str, Any]:
    """What else `compare` finds in a recipe's Run."""
    found: dict[str, Any] = {}
    if hasattr(config, "loss"):
        found["loss"] = bind(config.loss)
    if hasattr(config, "objective"):
        objective = Objective(config.objective)
        found["objective"] = objective
        found["vocabularies"] = config.vocabularies() if "vocabularies" in objective.needs else None
        found["lr_schedule"] = SimpleNamespace(last_epoch=config.projectors.warmup_steps)  # all of it learns
    return found
