"""The model that a run trains: all of its weights, or adapters on a frozen base, which may be quantized (QLoRA)."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from prefkd.config.fields import name_of, setting
from prefkd.errors import PrefkdError
from prefkd.method.dual_space import DualSpaceProjectors
from prefkd.method.dual_space_v2 import ExactProjectors
from prefkd.models.load import LearnerConfig, base_dtype, load_causal_lm, parameter_count
from prefkd.models.logprob_model import LogprobModel
from prefkd.models.lora import LoraConfig, adapter_misfit, add_adapter
from prefkd.models.quantize import misfit, quantize
from prefkd.models.shard import shard
from prefkd.ranks import Ranks
from prefkd.training.settings import Recomputed, TrainingConfig

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_scaled_mm")


def learner_problems(config: Any) -> Iterator[str]:
    """Why the model of a recipe cannot be trained as its config wants, as far as its config.json tells.

    Args:
        config: A recipe's config with a `LearnerConfig`, and perhaps a `LoraConfig`.
    """
    learner, lora = setting(config, LearnerConfig), setting(config, LoraConfig)
    if learner is None:
        return
    name = name_of(config, learner)
    if learner.quantization != "none" and lora is None:
        yield (
            f"{name}.quantization: {learner.quantization} weights cannot be trained, only adapters on them; add "
            "lora={}, or use none"
        )
    elif lora is not None and not any(lora.problems()) and not any(learner.problems()):
        yield from (f"{name_of(config, part)}.{text}" for part, text in _outline_problems(learner, lora))


def load_learner(
    config: LearnerConfig,
    lora: LoraConfig | None,
    training: TrainingConfig,
    ranks: Ranks,
    *,
    projectors: DualSpaceProjectors | ExactProjectors | None = None,
) -> LogprobModel:
    """Load the model that learns, put adapters on it if they are what learns, and split it over the ranks.

    Args:
        lora: The adapters; None = all weights learn.
        projectors: Layers that learn together with the model.

    Raises:
        PrefkdError: It cannot be loaded, or takes no such adapters.
    """
    for _, problem in _outline_problems(config, lora) if lora else ():  # of a Hub id nothing was known before
        raise PrefkdError(f"{config.path}: {problem}")
    # A base stays as it is stored; adapters on it are float32.
    dtype = base_dtype(config, training.compute_dtype) if lora else getattr(torch, training.weights)
    lm = load_causal_lm(config, dtype=dtype, device=ranks.assembly_device)
    if lora:
        add_adapter(lm, lora, seed=training.seed, revision=config.revision)
    recompute(lm, training.activation_checkpointing)
    model = LogprobModel(lm, precision=training.compute_dtype, projectors=projectors, **training.reading)
    prepare = None
    if config.quantization != "none":
        shards = ranks.node_size if training.shard_over == "node" else ranks.world_size
        prepare = partial(quantize, kind=config.quantization, shards=shards, under_adapters=True)
        if not dist.is_initialized() and ranks.device.type != "meta":
            prepare(lm)
    shard(
        model,
        ranks,
        over=training.shard_over,
        cpu_offload=training.cpu_offload,
        sync_once=training.sync_once,
        prepare=prepare,
    )
    return model


def recompute(lm: PreTrainedModel, kind: Recomputed) -> None:
    """Let backward compute again what forward then does not keep; `auto` that nobody has settled is none."""
    if kind in ("none", "auto"):
        return
    how: dict[str, Any] = {"use_reentrant": False}
    if kind == "selective":
        how["context_fn"] = partial(create_selective_checkpoint_contexts, _what_becomes_of)
    lm.gradient_checkpointing_enable(how)


def learning(model: LogprobModel) -> list[nn.Parameter]:
    """The parameters that learn."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def describe_learning(model: LogprobModel, config: LearnerConfig, lora: LoraConfig | None) -> str:
    """What learns, in a few words for the terminal."""
    learns = nn.ParameterList(parameter for parameter in model.lm.parameters() if parameter.requires_grad)
    how = f"LoRA of rank {lora.rank}" if lora else "all weights"
    base = f" on a base in {config.quantization}" if config.quantization != "none" else ""
    return f"{parameter_count(learns)} of {parameter_count(model.lm)} parameters, {how}{base}"


def _outline_problems(config: LearnerConfig, lora: LoraConfig) -> Iterator[tuple[LearnerConfig | LoraConfig, str]]:
    """Why a model takes no such adapters, or its layers no such quantization, and whose setting that is.

    It is found without the model's weights.
    """
    try:
        outline = load_causal_lm(config, dtype=torch.float32, device=torch.device("meta"))
    except PrefkdError:
        return  # loading says it
    if text := adapter_misfit(outline, lora):
        yield lora, text
    if config.quantization != "none" and (text := misfit(outline, config.quantization)):
        yield config, f"quantization: {text}"


def _what_becomes_of(_context: Any, operation: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    """Products and attention are kept, since they take nearly all of a layer's time; the rest is computed again.

    Compiled layers write products into memory of their own, which only computing them again fills again.
    """
    name = operation.overloadpacket.__name__
    kept = operation._overloadname != "out" and (name in PRODUCTS or "attention" in name or "attn" in name)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
