"""One optimizer step of a recipe on tensors without content: what its tensors take at their fullest moment."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from prefkd.config import Component, build
from prefkd.data.batches import TokenBatch
from prefkd.data.packing import with_tensors
from prefkd.errors import PrefkdError, first_line
from prefkd.estimate.models import unpacked_bytes
from prefkd.estimate.outlines import Outlines
from prefkd.estimate.tracking import MemoryTracker, empty, fakes
from prefkd.models.logprob_model import LogprobModel
from prefkd.models.quantize import tensor_bytes


def microbatches(pairs: int, size: int, ranks: int) -> int:
    """Forward passes of a rank in a step: every rank runs as many as the busiest one."""
    return math.ceil(math.ceil(pairs / size) / ranks)


@dataclass(frozen=True)
class Step:
    """What a step was seen to do.

    Attributes:
        tracker: The memory of its tensors.
        passes: For each model that read something, what it read, pass by pass, with its content.
    """

    tracker: MemoryTracker
    passes: dict[LogprobModel, list[TokenBatch]]


def run_step(recipe: ModuleType, config: Any, outlines: Outlines, ranks: int) -> Step:
    """Run the recipe's own `compare`, and backward, for the last microbatch of a step; or the teachers of `score`."""
    mode, learner, teacher = fakes(), outlines.learner, outlines.teacher
    models = [base for _, base in outlines.frozen] + ([learner] if learner else [])
    passes: dict[LogprobModel, list[TokenBatch]] = {model: [] for model in models}
    # On a GPU FSDP2 casts weights when it gathers them, and sums gradients up in the type in which weights are stored.
    cast = learner.precision if learner is not None and outlines.on_gpu else None
    stored = next((value.dtype for value in learner.parameters() if value.requires_grad), None) if learner else None
    with mode:
        for model in models:
            empty(model, cast if model is learner else None)
            model.register_forward_pre_hook(lambda model, inputs: passes[model].append(views[id(inputs[0])]))  # pyright: ignore
        if teacher is not None:
            teacher.head = with_tensors(teacher.head, lambda value: torch.empty(value.shape, dtype=value.dtype))
    if learner is not None and cast is not None:
        learner.autocasts = False
    batch = with_tensors(outlines.batch, mode.from_tensor)
    views = {id(view): getattr(outlines.batch, name) for name, view in vars(batch).items()}
    weights = [value for model in models for value in (*model.parameters(), *model.buffers())]
    widened = stored.itemsize / cast.itemsize if stored is not None and cast is not None else 1
    whole = learner is not None and config.training.sync_once
    tracker = MemoryTracker(weights, shares={"gradients": widened if whole else widened / ranks})
    unpacked = max((unpacked_bytes(base.quantization, model) for base, model in outlines.frozen), default=0)

    def ask(batch: Any) -> Any:
        assert teacher is not None
        with tracker.holding(unpacked):
            return teacher.read(batch)

    if learner is None:
        with mode, tracker, torch.no_grad():
            ask(batch)
        return Step(tracker, passes)
    learner.train()
    # What `compare` finds in the recipe's Run: its models, a schedule that has left every warm-up behind, and a
    # reference that is read already.
    late = SimpleNamespace(last_epoch=math.inf)
    run = SimpleNamespace(**vars(outlines.models), lr_schedule=late, with_reference=lambda batch: batch)
    if outlines.asked is not None:
        setattr(run, outlines.asked, ask)
    tracker.keep_gradients(learner, are_there=microbatches(outlines.step_pairs, outlines.pairs, ranks) > 1)
    try:
        with mode, tracker, tracker.holding(unpacked_bytes(outlines.quantization, learner, learns=True)):
            losses, _ = recipe.compare(config, run, batch)
            (losses * batch.counted).sum().backward()
    except PrefkdError:
        raise
    except Exception as error:  # whatever a loss of the user's own makes of tensors without content
        reason = first_line(error)
        raise PrefkdError(f"the step cannot be run on meta tensors, as `plan` does: {reason}") from error
    return Step(tracker, passes)


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
