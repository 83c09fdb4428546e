"""One optimizer step of a recipe on tensors without content: what its tensors take at their fullest moment."""

import math
from collections import Counter
from collections.abc import Iterable
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from prefkd.config import Component, build
from prefkd.errors import PrefkdError
from prefkd.estimate.company import Company
from prefkd.estimate.models import unpacked_bytes
from prefkd.estimate.rows import full_batch
from prefkd.estimate.tracking import MemoryTracker, empty, fakes
from prefkd.models.quantize import tensor_bytes
from prefkd.ranks import Ranks
from prefkd.training.combination import Objective
from prefkd.training.pair_loss import PairLoss


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


def state_bytes(component: Component, parameters: Iterable[nn.Parameter], ranks: int) -> int:
    """Bytes of the optimizer's state on a rank, found by a step of the optimizer itself on tensors without content.

    So every optimizer is counted as it is: moments of 32, 8 or 4 bits with their scales, tensors that stay exact
    because they are small, factored moments, or none.

    Raises:
        PrefkdError: The optimizer refuses a parameter, its arguments, or tensors without content.
    """
    # The fused form keeps the same state, and refuses tensors without content.
    component = {name: value for name, value in component.items() if name != "fused"}
    learning = (parameter for parameter in parameters if parameter.requires_grad)
    total = 0
    for (shape, dtype), count in Counter((parameter.shape, parameter.dtype) for parameter in learning).items():
        # FSDP2 splits the rows; the first rank has as many as any.
        own = [-(-size // ranks) if axis == 0 else size for axis, size in enumerate(shape)]
        parameter = nn.Parameter(torch.empty(own, dtype=dtype, device="meta"))
        parameter.grad = torch.empty_like(parameter)
        optimizer = build(component, [parameter])
        try:
            with torch.compiler.set_stance("force_eager"):
                optimizer.step()
        except Exception as error:
            # Most optimizers have made their state before they ask for a value, which such tensors cannot tell.
            if not optimizer.state[parameter]:
                name = component["_component_"]
                raise PrefkdError(f"the state of {name} cannot be counted without weights: {error}") from error
        state = optimizer.state[parameter].values()
        total += count * sum(tensor_bytes(value) for value in state if isinstance(value, Tensor))
    return total


def _settings(config: Any) -> dict[str, Any]:
    """What else `compare` finds in a recipe's Run."""
    found: dict[str, Any] = {}
    if hasattr(config, "loss"):
        one = Ranks(0, 1, torch.device("cpu"))
        found["loss"] = PairLoss(config, one, weighted=hasattr(config, "weights"), looks_ahead=False)
    if hasattr(config, "objective"):
        objective = Objective(config.objective)
        found["objective"] = objective
        found["vocabularies"] = config.vocabularies() if "vocabularies" in objective.needs else None
        found["lr_schedule"] = SimpleNamespace(last_epoch=config.projectors.warmup_steps)  # all of it learns
    return found
