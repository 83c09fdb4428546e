"""Models without weights, made from their config.json: what they consist of, and how large that is."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import inject_adapter_in_model
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from prefkd.errors import PrefkdError, first_line
from prefkd.estimate.flops import Pass
from prefkd.estimate.memory import gathered_bytes, quantized_bytes, sharded_bytes
from prefkd.models.frozen import FrozenModel, should_split
from prefkd.models.load import ModelConfig, TeacherConfig, decoder_layers, load_causal_lm
from prefkd.models.logprob_model import LogprobModel
from prefkd.models.lora import CONFIG as ADAPTER_CONFIG
from prefkd.models.quantize import linear_layers, stored_bytes


@dataclass(frozen=True)
class Frozen:
    """Models that are only read.

    Attributes:
        bases: Those in memory, each once, with its config.
        models: One for each config that was asked for, on these bases.
    """

    bases: list[tuple[TeacherConfig, LogprobModel]]
    models: list[FrozenModel]


def read_architecture(config: ModelConfig, key: str) -> PretrainedConfig:
    """The config.json of a model, from its folder, the cache or the Hub.

    Args:
        key: Where the model stands in the recipe's config.

    Raises:
        PrefkdError: It cannot be had.
    """
    remedy = "a plan needs no more of it than its config.json"
    folder = Path(config.path)
    if not (folder / "config.json").is_file() and (problem := next(config.problems(), None)):
        raise PrefkdError(f"{key}.{problem}; {remedy}")
    try:
        return AutoConfig.from_pretrained(config.path, trust_remote_code=config.trust_remote_code)
    except Exception as error:  # of transformers, of the Hub and of whatever lies in the folder
        reason = f"the config.json of {config.path} cannot be read: {first_line(error)}"
        raise PrefkdError(f"{key}.path: {reason}; {remedy}") from error


def make_skeleton(config: ModelConfig, key: str, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a config.json on the meta device, without weights.

    Raises:
        PrefkdError: There is no such architecture.
    """
    read_architecture(config, key)
    try:
        return load_causal_lm(config, dtype=dtype, device=torch.device("meta"))
    except PrefkdError as error:
        raise PrefkdError(f"{key}.path: {error}") from error


def make_frozen(configs: dict[str, TeacherConfig], *, chunk_size: int) -> Frozen:
    """Models that are only read, those on one base sharing it as in `load_frozen`; without weights.

    Args:
        configs: Where each stands in the recipe's config -> the model.
        chunk_size: Target tokens whose logits exist at one time.
    """
    bases: dict[str, tuple[TeacherConfig, LogprobModel]] = {}
    models = []
    for key, config in configs.items():
        base_config = replace(config, adapter=None)
        if str(base_config) not in bases:
            lm = make_skeleton(base_config, key, config.torch_dtype)
            base = LogprobModel(lm, chunk_size=chunk_size, precision=config.torch_dtype)
            bases[str(base_config)] = base_config, base
        base = bases[str(base_config)][1]
        name = f"adapter_{len(models)}"
        has_adapter = config.adapter is not None and _put_adapter(base.lm, config.adapter, name)
        base.freeze()
        models.append(FrozenModel(base, name if has_adapter else None))
    return Frozen([*bases.values()], models)


def _put_adapter(lm: PreTrainedModel, folder: str, name: str) -> bool:
    """Put an adapter on a base, if an earlier run has written it; one that is to come is too small to matter."""
    if not (Path(folder) / ADAPTER_CONFIG).is_file():
        return False
    adapter = PeftLoraConfig.from_pretrained(folder)
    inject_adapter_in_model(adapter, lm, name)
    return True


def count(module: nn.Module | None, *, trained: bool | None = None) -> int:
    """Parameters, tied ones once: all, or those that learn, or those that do not."""
    values = module.parameters() if module is not None else ()
    return sum(value.numel() for value in values if trained in (None, value.requires_grad))


def teacher_bytes(config: TeacherConfig, base: LogprobModel, ranks: int, gpu_bytes: float | None) -> float:
    """What the weights of a frozen model take on a rank: all of them, or its part and what is gathered for a layer.

    Args:
        gpu_bytes: Memory of the GPU that was named; `placement: auto` splits nothing where it is not known.
    """
    exact = stored_bytes(base)
    size: float = exact
    if config.quantization != "none":
        for _, layer in linear_layers(base.lm):
            weight = layer.weight
            packed = quantized_bytes(*layer.weight.shape, kind=config.quantization, dtype_bytes=weight.element_size())
            size += packed - weight.numel() * weight.element_size()
    if ranks == 1 or not should_split(config, exact, gpu_bytes or math.inf):
        return size
    parts = 0.0 if config.cpu_offload else sharded_bytes(size, ranks)
    return parts + size / exact * gathered_bytes(*group_bytes(base), ranks=ranks)


def unpacked_bytes(config: TeacherConfig, base: LogprobModel) -> int:
    """The largest weight that a quantized model holds in its own type while it works with it."""
    if config.quantization == "none":
        return 0
    return max((_bytes([layer.weight]) for _, layer in linear_layers(base.lm)), default=0)


def group_bytes(model: LogprobModel) -> tuple[int, int]:
    """What FSDP2 gathers at one time: the weights of the root group, and those of the largest layer."""
    layers = [_bytes(layer.parameters()) for layer in decoder_layers(model.lm)]
    return _bytes(model.parameters()) - sum(layers), max(layers, default=0)


def outer_weights(lm: PreTrainedModel, *, trained: bool | None = None) -> int:
    """Parameters of embeddings and head, once where they are tied: all, or those that learn, or those that do not."""
    ends: list[Any] = [lm.get_input_embeddings(), lm.get_output_embeddings()]
    weights = {id(module.weight): module.weight for module in ends}
    return sum(value.numel() for value in weights.values() if trained in (None, value.requires_grad))


def reading(model: LogprobModel, *, tokens: int, row: int, targets: int) -> Pass:
    """What `prefkd.estimate.flops` needs to know of a model and what it reads."""
    lm = model.lm
    text: Any = lm.config.get_text_config()
    heads = text.num_attention_heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
    return Pass(
        weights=count(lm) - outer_weights(lm),
        tokens=tokens,
        row=row,
        targets=targets,
        layers=text.num_hidden_layers,
        width=heads * head_size,
        head=text.vocab_size * text.hidden_size,
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
