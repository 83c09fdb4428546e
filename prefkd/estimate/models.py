"""Models without weights, made from their config.json: what they consist of, and how large that is."""

import math
from pathlib import Path

from torch import nn
from transformers import AutoConfig, PretrainedConfig

from prefkd.errors import PrefkdError, first_line
from prefkd.estimate.memory import gathered_bytes, quantized_bytes, sharded_bytes, unpacking_bytes
from prefkd.models.frozen import should_split
from prefkd.models.load import ModelConfig, TeacherConfig, decoder_layers
from prefkd.models.logprob_model import LogprobModel
from prefkd.models.quantize import SHARDED_SIZE, Quantization, linear_layers, stored_bytes


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
        return AutoConfig.from_pretrained(config.path, **config.hub)
    except Exception as error:  # of transformers, of the Hub and of whatever lies in the folder
        reason = f"the config.json of {config.path} cannot be read: {first_line(error)}"
        raise PrefkdError(f"{key}.path: {reason}; {remedy}") from error


def count(module: nn.Module | None, *, trained: bool | None = None) -> int:
    """Parameters, tied ones once: all, or those that learn, or those that do not."""
    values = module.parameters() if module is not None else ()
    return sum(value.numel() for value in values if trained in (None, value.requires_grad))


def packed_bytes(model: LogprobModel, kind: Quantization) -> tuple[float, float]:
    """The bytes of a model whose linear layers are quantized, and how many of these are the linear layers."""
    exact = packed = 0.0
    for _, layer in linear_layers(model.lm) if kind != "none" else ():
        each = layer.weight.element_size()
        exact += layer.weight.numel() * each
        packed += quantized_bytes(*layer.weight.shape, kind=kind, dtype_bytes=each)
    return stored_bytes(model) - exact + packed, packed


def learner_bytes(kind: Quantization, model: LogprobModel, ranks: int) -> float:
    """What the weights of the model that learns take on a rank. Those in int8 cannot be split."""
    size, packed = packed_bytes(model, kind)
    whole = 0.0 if kind in SHARDED_SIZE else packed
    return whole + sharded_bytes(size - whole, ranks)


def teacher_bytes(config: TeacherConfig, base: LogprobModel, ranks: int, gpu_bytes: float | None) -> float:
    """What the weights of a frozen model take on a rank: all of them, or its part and what is gathered for a layer.

    Args:
        gpu_bytes: Memory of the GPU that was named; `placement: auto` splits nothing where it is not known.
    """
    exact, (size, _) = stored_bytes(base), packed_bytes(base, config.quantization)
    if is_whole(config, base, ranks, gpu_bytes):
        return size
    parts = 0.0 if config.cpu_offload else sharded_bytes(size, ranks)
    return parts + size / exact * gathered_bytes(*group_bytes(base))


def is_whole(config: TeacherConfig, base: LogprobModel, ranks: int, gpu_bytes: float | None) -> bool:
    """Whether each rank has all of a frozen model; `gpu_bytes` is as in `teacher_bytes`."""
    return ranks == 1 or not should_split(config, stored_bytes(base), gpu_bytes or math.inf)


def unpacked_bytes(kind: Quantization, base: LogprobModel, *, learns: bool = False) -> int:
    """The most that there is of an unpacked weight while a quantized model works."""
    if kind == "none":
        return 0
    weights = [layer.weight for _, layer in linear_layers(base.lm)]
    sizes = (unpacking_bytes(weight.numel(), kind, weight.element_size(), learns=learns) for weight in weights)
    return max(sizes, default=0)


def group_bytes(model: LogprobModel, kind: Quantization = "none", ranks: int = 2) -> tuple[float, float]:
    """What FSDP2 gathers at one time: the weights of the root group, and those of the largest layer.

    They are in the type in which the model computes. Quantized ones travel as they are stored, or are not split.
    """
    size, groups = model.precision.itemsize, decoder_layers(model.lm)
    quantized = [layer for _, layer in linear_layers(model.lm)] if kind != "none" else []

    def gathered(module: nn.Module) -> float:
        parts = set(module.modules())
        there = [layer for layer in quantized if layer in parts]
        packed = sum(quantized_bytes(*layer.weight.shape, kind=kind, dtype_bytes=size) for layer in there)
        exact = count(module) - sum(layer.weight.numel() for layer in there)
        return exact * size + (packed if ranks > 1 and kind in SHARDED_SIZE else 0)

    layers = [gathered(layer) for layer in groups]
    return gathered(model) - sum(layers), max(layers, default=0)
