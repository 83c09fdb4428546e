"""What to change when a run does not fit."""

from collections.abc import Iterator
from typing import Any

from prefkd.estimate.memory import GIB, Card
from prefkd.estimate.plan import SPLIT, Plan
from prefkd.models.quantize import SHARDED_SIZE


def make_advice(plan: Plan, config: Any, card: Card) -> Iterator[str]:
    """Changes that save memory, the largest first, each with about what it saves on a rank."""
    found: list[tuple[float, str]] = []
    training = getattr(config, "training", None)
    needs = {kind: need.at_peak for kind, need in plan.memory.items()}
    split = sum(needs.get(kind, 0) for kind in SPLIT)
    whole = plan.peak - split
    if training is not None and whole < card.usable and plan.peak > card.usable:
        ranks = plan.ranks * 2
        while split * plan.ranks / ranks + whole > card.usable:
            ranks *= 2
        saved = split * (1 - plan.ranks / ranks)
        found.append((saved, f"more GPUs, --nproc-per-node {ranks}: weights, gradients and optimizer are split"))
    if training is not None and getattr(config, "lora", False) is None:
        found.append((split * 0.9, "lora={}: adapters learn, and need the optimizer's state for themselves alone"))
    replicated = needs.get("teacher") and plan.ranks > 1 and config.teacher.placement == "replicate"
    if replicated and config.teacher.quantization in SHARDED_SIZE:
        found.append((needs["teacher"] * (1 - 1 / plan.ranks), "teacher.placement=shard"))
    if needs.get("teacher") and config.teacher.quantization == "none":
        found.append((needs["teacher"] / 2, "teacher.quantization=int8"))
    activations = needs.get("activations", 0)
    if training is not None and not training.activation_checkpointing:
        found.append((activations * 0.7, "training.activation_checkpointing=true"))
    holder, prefix = (training, "training.") if training is not None else (config, "")
    if holder.microbatch_size > 1:
        saved = activations * (1 - 1 / holder.microbatch_size)
        found.append((saved, f"{prefix}microbatch_size=1"))
    for saved, change in sorted(found, reverse=True):
        if saved > 0.01 * plan.peak:
            yield f"{change} (about {saved / GIB:.1f} GiB less)"
