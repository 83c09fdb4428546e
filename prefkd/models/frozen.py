"""Models that are only read: loaded, quantized, and split over the processes where the config wants it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from prefkd.data.batches import TokenBatch
from prefkd.errors import PrefkdError
from prefkd.models.checks import check_model
from prefkd.models.load import TeacherConfig, load_causal_lm
from prefkd.models.logprob_model import LogprobModel, TokenStates
from prefkd.models.lora import adapter_problems, adapters_off, load_adapter, use_adapter
from prefkd.models.quantize import SHARDED_SIZE, expert_bytes, quantization_problems, quantize, stored_bytes
from prefkd.models.shard import shard
from prefkd.ranks import Ranks

# Of a GPU's memory; a model that takes more of it is split by `placement: auto`.
LARGE = 0.25


class FrozenModel:
    """A model that is only read: a base, as it is or with an adapter on it.

    Args:
        base: The base, which several frozen models may share.
        adapter: Name of the adapter in the base.

    Attributes:
        storage: How its weights are stored, and what quantization gained and lost, in a few words.
    """

    def __init__(self, base: LogprobModel, adapter: str | None):
        self.base = base
        self.adapter = adapter
        self.storage = ""

    @property
    def packs(self) -> bool:
        """Whether it attends without a mask, so that it can read several readings of a pair in one row."""
        return self.base.packs

    @torch.no_grad()
    def __call__(self, tokens: TokenBatch) -> Tensor:
        """log pi(y_t | x, y_<t) of each target token, (N,) float32."""
        with self._switched():
            return self.base(tokens)

    @torch.no_grad()
    def states(self, tokens: TokenBatch) -> TokenStates:
        """What it has to say of each target token."""
        with self._switched():
            return self.base(tokens, lambda states: states)

    def check(self, tokens: TokenBatch, name: str) -> None:
        """Compare with the model's own logits, see `prefkd.models.checks.check_model`."""
        with self._switched():
            check_model(self.base, tokens, name)

    def _switched(self) -> AbstractContextManager[None]:
        lm = self.base.lm
        if self.adapter is not None:
            use_adapter(lm, self.adapter)
            return nullcontext()
        return adapters_off(lm) if getattr(lm, "peft_config", None) else nullcontext()


def load_frozen(
    configs: Sequence[TeacherConfig], *, probe: TokenBatch, ranks: Ranks, **reading: Any
) -> list[FrozenModel]:
    """Load models that are only read. Those on the same base share it: it is in memory once, whatever stands on it.

    Where one is split over the ranks, each forward pass of it is a meeting of all of them. On the meta device, where
    `prefkd plan` asks for them, they are outlines: nothing is read, checked or quantized.

    Args:
        probe: A pair of the teacher's tokens, on which each model is checked.
        reading: Settings of `LogprobModel` for each model: `chunk_size`, `attention`, `compile`.

    Raises:
        PrefkdError: One cannot be loaded, is not what it seems, or cannot be quantized as its config wants.
    """
    planned = ranks.device.type == "meta"
    for config in configs if not planned else ():
        for problem in quantization_problems(config.quantization, config.torch_dtype, ranks.device.type):
            raise PrefkdError(f"{config.path}: {problem}")
    bases: dict[str, tuple[TeacherConfig, LogprobModel]] = {}
    models = []
    for config in configs:
        own = replace(config, adapter=None)
        if str(own) not in bases:
            device = ranks.assembly_device if is_split(own, ranks) else ranks.device
            lm = load_causal_lm(own, dtype=own.torch_dtype, device=device)
            bases[str(own)] = own, LogprobModel(lm, precision=own.torch_dtype, **reading)
        base, name = bases[str(own)][1], None
        # An adapter that an earlier stage has yet to write is too small to matter to a plan.
        if config.adapter is not None and not (
            planned and any(adapter_problems(config.adapter, str(config.path), "adapter"))
        ):
            name = f"adapter_{len(models)}"  # not its path: peft allows no dots
            load_adapter(base.lm, config.adapter, name=name)
        models.append(FrozenModel(base.freeze(), name))
    if planned:
        return models
    exact = [_exact_logprobs(config, model, probe, ranks) for config, model in zip(configs, models, strict=True)]
    storage = {id(base): _store(config, base, ranks) for config, base in bases.values()}
    for config, model, logprobs in zip(configs, models, exact, strict=True):
        model.storage = storage[id(model.base)]
        if config.quantization != "none":
            quantized = model(probe)
            if logprobs is not None:
                error = (quantized.cpu() - logprobs.cpu()).abs().mean().item()
                model.storage += f", log-probs off by {error:.2g} nats a token on the first pair"
        model.check(probe, config.adapter or config.path)
    return models


def is_split(config: TeacherConfig, ranks: Ranks) -> bool:
    """Whether a model's weights are split over the ranks."""
    if ranks.world_size == 1 or config.placement != "auto" or ranks.device.type != "cuda":
        return ranks.world_size > 1 and config.placement == "shard"
    outline = load_causal_lm(replace(config, adapter=None), dtype=config.torch_dtype, device=torch.device("meta"))
    gpu_bytes = torch.cuda.get_device_properties(ranks.device).total_memory
    return should_split(config, stored_bytes(outline), gpu_bytes)


def should_split(config: TeacherConfig, exact_bytes: int, gpu_bytes: float) -> bool:
    """What `placement` says of a model of so many bytes before it is quantized, on several GPUs."""
    if config.placement != "auto" or config.quantization not in SHARDED_SIZE:
        return config.placement == "shard"
    return exact_bytes * SHARDED_SIZE[config.quantization] > LARGE * gpu_bytes


def _exact_logprobs(config: TeacherConfig, model: FrozenModel, probe: TokenBatch, ranks: Ranks) -> Tensor | None:
    """What a model says that is going to be quantized; None for one that is going to be split, which lies on the CPU
    of the main rank as yet: a large one would take minutes there, while the others wait."""
    if config.quantization == "none" or is_split(config, ranks):
        return None
    return model(probe.to(ranks.device))


def _store(config: TeacherConfig, base: LogprobModel, ranks: Ranks) -> str:
    """Quantize a base and split it, as its config wants; adapters, which lie on it already, stay exact.

    Returns:
        What became of it, in a few words.
    """
    kind, before, split = config.quantization, stored_bytes(base), is_split(config, ranks)
    if split:
        prepare = partial(quantize, kind=kind, shards=ranks.world_size) if kind != "none" else None
        shard(base, ranks, cpu_offload=config.cpu_offload, prepare=prepare)
    elif kind != "none":
        quantize(base.lm, kind)
    if kind == "none" and not split:
        return config.dtype
    sizes = f"{before / 2**20:,.1f} -> {stored_bytes(base) / 2**20:,.1f} MiB"
    stored = config.dtype if kind == "none" else f"{config.dtype} {kind}"
    if kind != "none" and (experts := expert_bytes(base.lm)):
        stored += f" but for its experts, {experts / 2**20:,.1f} MiB, which torchao leaves as they are"
    return f"{stored}, {f'split over {ranks.world_size} processes, ' if split else ''}{sizes}"
