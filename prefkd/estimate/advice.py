"""What to change when a run does not fit."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any, get_args

from prefkd.config.fields import name_of, setting
from prefkd.estimate.memory import GIB, Card
from prefkd.estimate.plan import SPLIT, Plan
from prefkd.models.load import LearnerConfig, TeacherConfig
from prefkd.models.lora import LoraConfig
from prefkd.models.quantize import SHARDED_SIZE
from prefkd.training.settings import TrainingConfig


def make_advice(plan: Plan, config: Any, card: Card) -> Iterator[str]:
    """Changes that save memory, the largest first, each with about what it saves on a rank."""
    found: list[tuple[float, str]] = []
    training, teacher = setting(config, TrainingConfig), setting(config, TeacherConfig)
    needs = {kind: need.at_peak for kind, need in plan.memory.items()}
    split = sum(needs.get(kind, 0) for kind in SPLIT)
    whole = plan.in_step - split
    if training is not None and whole < card.usable and plan.in_step > card.usable:
        ranks = plan.ranks * 2
        while split * plan.ranks / ranks + whole > card.usable:
            ranks *= 2
        saved = split * (1 - plan.ranks / ranks)
        found.append((saved, f"more GPUs, --nproc-per-node {ranks}: weights, gradients and optimizer are split"))
    for lora in (part.name for part in fields(config) if LoraConfig in get_args(part.type)):
        if vars(config)[lora] is None:
            found.append(
                (split * 0.9, f"{lora}={{}}: adapters learn, and need the optimizer's state for themselves alone")
            )
    learner, lora = setting(config, LearnerConfig), setting(config, LoraConfig)
    can_be_read = card.fits(plan.loading)  # exactly, as it is before it is quantized
    if can_be_read and learner is not None and lora is not None and learner.quantization == "none":
        found.append((needs["weights"] * 0.6, f"{name_of(config, learner)}.quantization=nf4"))
    if teacher is not None and needs.get("teacher"):
        name = name_of(config, teacher)
        if plan.ranks > 1 and teacher.placement == "replicate" and teacher.quantization in SHARDED_SIZE:
            found.append((needs["teacher"] * (1 - 1 / plan.ranks), f"{name}.placement=shard"))
        if can_be_read and teacher.quantization == "none":
            found.append((needs["teacher"] / 2, f"{name}.quantization=int8"))
            found.append((needs["teacher"] * 0.7, f"{name}.quantization=nf4, which is less exact"))
    activations = needs.get("activations", 0)
    if training is not None and training.activation_checkpointing != "full":
        found.append((activations * 0.7, "training.activation_checkpointing=full"))
    holder, prefix = (training, "training.") if training is not None else (config, "")
    if holder.microbatch_size > 1 and not holder.microbatch_tokens:
        saved = activations * (1 - 1 / holder.microbatch_size)
        found.append((saved, f"{prefix}microbatch_size=1"))
    for saved, change in sorted(found, reverse=True):
        if saved > 0.01 * plan.peak:
            yield f"{change} (about {saved / GIB:.1f} GiB less)"
