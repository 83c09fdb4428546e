"""Whether a training learns at all: before it begins, from its settings, and at its end, from its weights."""

import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from prefkd.config import component_problems, import_dotpath
from prefkd.config.fields import name_of, setting
from prefkd.errors import PrefkdError, Problem, first_line
from prefkd.models.lora import LoraConfig
from prefkd.ranks import Ranks
from prefkd.training.checkpoint import resume_problems
from prefkd.training.display import Display
from prefkd.training.learner import learner_problems
from prefkd.training.optimizer import build_optimizer, build_schedule
from prefkd.training.projectors import ProjectorConfig

TRIED_STEPS = 1000
# A share by which a learning rate may miss another and count as the same.
NEARLY = 1e-6


def training_problems(config: Any) -> Iterator[Problem | str]:
    """What stands in the way of a training that its sections alone do not see.

    Args:
        config: A recipe's config with `output_dir`, `training`, `optimizer`, `lr_schedule` and `metric_logger`.
    """
    yield from resume_problems(config)
    yield from learner_problems(config)
    yield from _rounding_problems(config)
    yield from _learning_problems(config)
    logger = config.metric_logger
    if (
        logger
        and not any(component_problems(logger))
        and not hasattr(import_dotpath(logger["_component_"]), "log_dict")
    ):
        name = logger["_component_"]
        yield f"metric_logger: {name} has no log_dict; name a logger of torchtune.training.metric_logging"


def _rounding_problems(config: Any) -> Iterator[str]:
    """Why weights in bfloat16 would not learn."""
    if config.training.weights == "float32":
        return
    key = f"{name_of(config, config.training)}.weights"
    if setting(config, LoraConfig) is not None:
        yield f"{key}: adapters are float32, and small; leave it out"
    elif not config.optimizer.get("bf16_stochastic_round"):
        name = config.optimizer["_component_"]
        yield (
            f"{key}: bfloat16 loses what steps of {name} teach, which rounds to the nearest; use "
            "optimizer=torchao.optim.AdamW8bit optimizer.bf16_stochastic_round=true, or float32"
        )


def _learning_problems(config: Any) -> Iterator[str]:
    """Why an optimizer and its schedule would not train, found by some steps on a weight of their own."""
    if any(component_problems(config.optimizer, ("params",))):
        return
    name, lr = config.optimizer["_component_"], config.optimizer.get("lr")
    if isinstance(lr, (int, float)) and not 0 < lr < math.inf:
        yield f"optimizer.lr: {lr} would stop all learning or spoil the weights; use a positive number, such as 1e-6"
        return
    # Adapters are matrices alone; models and projectors have vectors too, which not every optimizer takes.
    only_matrices = setting(config, LoraConfig) is not None and setting(config, ProjectorConfig) is None
    weight = nn.Parameter(torch.ones(2, 2))
    try:
        optimizer = build_optimizer(config.optimizer, [weight] if only_matrices else [weight, nn.Parameter(weight[0])])
    except PrefkdError as error:
        yield f"optimizer: {error}"
        return
    if not isinstance(optimizer, Optimizer):
        yield f"optimizer: {name} is not an optimizer of torch; name one such as torch.optim.AdamW"
        return
    # Others may compile a kernel for their first step, or ask for a GPU.
    if name.startswith("torch.optim.") and not config.optimizer.get("capturable"):
        problem = _failed_step(optimizer, weight)
        if problem:
            yield f"optimizer: a step of {name} {problem}"
            return
    if any(component_problems(config.lr_schedule, ("optimizer", "num_training_steps"))):
        return
    warmup = config.lr_schedule.get("num_warmup_steps", 0)
    if isinstance(warmup, int) and warmup < 0:
        yield f"lr_schedule.num_warmup_steps: {warmup} is negative; use 0 for none"
    else:
        yield from (f"lr_schedule: {problem}" for problem in _schedule_problems(config.lr_schedule, optimizer))


def _failed_step(optimizer: Optimizer, weight: nn.Parameter) -> str | None:
    """What is wrong with some steps of an optimizer on a weight with a gradient of 1."""
    before = weight.detach().clone()
    try:
        for _ in range(2):  # momentum with full dampening moves at the first step alone
            weight.grad = torch.ones_like(weight)
            optimizer.step()
    except Exception as error:  # an optimizer may refuse its arguments in any way, and as late as here
        return f"fails ({type(error).__name__}: {first_line(error)}); use torch.optim.AdamW or other settings"
    if not weight.isfinite().all():
        return "makes weights that are not finite; use a smaller lr or weight_decay"
    if torch.equal(weight, before):
        return "changes no weight; use a larger lr or other settings"
    if (weight > before).any():
        return "maximizes the loss, which teaches the opposite; remove maximize, or use other settings"
    return None


def _schedule_problems(component: dict[str, Any], optimizer: Optimizer) -> Iterator[str]:
    name = component["_component_"]
    try:
        schedule: Any = build_schedule(component, optimizer, TRIED_STEPS)
    except PrefkdError as error:
        yield str(error)
        return
    if not isinstance(schedule, LRScheduler):
        yield f"{name} is not a schedule of torch; name one such as transformers.get_cosine_schedule_with_warmup"
        return
    rates = []
    with warnings.catch_warnings(action="ignore"):  # the optimizer does not step here
        try:
            for _ in range(TRIED_STEPS):
                rates.append(float(optimizer.param_groups[0]["lr"]))
                schedule.step()
        except Exception as error:
            # One that ends after a number of steps of its own fails in a longer run alone, which build_schedule knows.
            if len(rates) == 1 or isinstance(schedule, LambdaLR):
                yield f"{name} fails at step {len(rates)} ({first_line(error)}); use other settings, or another one"
                return
    if not all(map(math.isfinite, rates)):
        yield f"{name} makes a learning rate that is not a finite number; use other settings"
    elif min(rates) < 0:
        yield f"{name} makes a learning rate of {min(rates):g}, which teaches the opposite; use other settings"
    elif not any(rates):
        yield f"{name} keeps the learning rate at 0, so nothing would be learned; use other settings"


def describe_plan(config: Any, steps: int, unit: str, ranks: Ranks) -> str:
    """The steps of a run in a few words, and its highest learning rate where that is not the one of its optimizer.

    Args:
        config: A recipe's config with `training`, `optimizer` and `lr_schedule`.
        unit: The name of the rows in a batch, in the plural.
    """
    plan = f"{steps} steps of {config.training.batch_size} {unit} on {ranks.processes}"
    optimizer = build_optimizer(config.optimizer, [nn.Parameter(torch.ones(2, 2))])
    group = optimizer.param_groups[0]
    own, highest = float(group["lr"]), 0.0
    with warnings.catch_warnings(action="ignore"):  # the optimizer does not step here
        schedule = build_schedule(config.lr_schedule, optimizer, steps)
        for _ in range(steps):
            highest = max(highest, float(group["lr"]))
            if highest >= own * (1 - NEARLY):
                return plan
            schedule.step()
    return f"{plan}; the learning rate will reach {highest:.3g} at most, not the {own:g} of optimizer.lr"


def learning_rates(optimizer: Optimizer) -> dict[str, float]:
    """The learning rates of the step that comes, to be logged: `lr`, and where projectors have their own, theirs."""
    names = ("lr", "projectors_lr")
    return {name: float(group["lr"]) for name, group in zip(names, optimizer.param_groups, strict=False)}


def weight_sums(optimizer: Optimizer, ranks: Ranks) -> list[Tensor]:
    """The sum over each tensor of each parameter group, float64, by which weights are known again.

    All ranks call it.
    """
    sums = []
    for group in optimizer.param_groups:
        weights = [weight.detach() for weight in group["params"]]
        own = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in weights]
        sums.append(ranks.sum(torch.stack([part.sum(dtype=torch.float64).to(ranks.device) for part in own])))
    return sums


def require_learning(start: list[Tensor], optimizer: Optimizer, ranks: Ranks, display: Display) -> None:
    """See at the end of a training whether it has taught anything, and say it where it has not. All ranks call it.

    Args:
        start: `weight_sums` before the first step.

    Raises:
        PrefkdError: The last step has made weights that are not finite.
    """
    end = weight_sums(optimizer, ranks)
    if not all(sums.isfinite().all() for sums in end):
        raise PrefkdError("the last step made weights that are not finite; lower the learning rate")
    if torch.equal(start[0], end[0]):  # the model's; projectors alone are of no use
        display.say(
            "warning: this run has learned nothing: no weight of the model differs from the start; look at lr and "
            "gradient_norm in metrics.jsonl (in a warm-up the first step has a rate of 0, and projectors learn alone)"
        )
