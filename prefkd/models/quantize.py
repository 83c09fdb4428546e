"""Quantize the linear layers of a model that is only read, with torchao; embeddings and output layer stay exact."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torchao.dtypes.nf4tensor import NF4Tensor, to_nf4
from torchao.quantization import (
    Float8DynamicActivationFloat8WeightConfig,
    Int4WeightOnlyConfig,
    Int8WeightOnlyConfig,
    PerRow,
    quantize_,
)
from torchao.quantization.quantize_.workflows import Int4PackingFormat
from transformers import PreTrainedModel

from prefkd.errors import PrefkdError, Problem

Quantization = Literal["none", "int8", "float8", "nf4", "int4"]

# Kinds that FSDP2 can split, and the size of a model's weights then, as a share of what it was in bfloat16.
SHARDED_SIZE: dict[Quantization, float] = {"none": 1.0, "nf4": 0.26}
_NF4_BLOCK = 64  # weights with a scale of their own; QLoRA, arXiv 2305.14314
_INT4_GROUP = 128
# What the kernels of the other two need: compute capability, and an example of a GPU that has it.
_GPU = {"float8": ((8, 9), "an L4, L40S or H100"), "int4": ((8, 0), "an A100 or newer")}


def quantization_problems(kind: Quantization, dtype: torch.dtype, device_type: str) -> Iterator[Problem]:
    """Why a model cannot be quantized so on a device, `cpu` or `cuda`."""
    yield from _device_problems(kind, device_type)
    if kind in ("int4", "float8") and dtype != torch.bfloat16:
        yield Problem("quantization", f"{kind} goes with dtype: bfloat16 only; change one of the two")


def _device_problems(kind: Quantization, device_type: str) -> Iterator[Problem]:
    """Why a device, `cpu` or `cuda`, cannot work with weights that are quantized so."""
    instead = "use int8 or nf4, which run everywhere"
    if kind in _GPU:
        capability, example = _GPU[kind]
        if device_type != "cuda":
            yield Problem("quantization", f"{kind} needs a GPU, {example}; {instead}", about="device")
        elif torch.cuda.get_device_capability() < capability:
            own = torch.cuda.get_device_name()
            yield Problem("quantization", f"{kind} needs {example}, and this is {own}; {instead}", about="device")


def misfit(lm: nn.Module, kind: Quantization, *, shards: int = 1) -> str | None:
    """Which layer of a model, or of its outline, has a shape that cannot be quantized or split; None if all can be."""
    for name, layer in linear_layers(lm):
        if reason := _misfit(layer, kind, shards):
            where = lm.name_or_path if isinstance(lm, PreTrainedModel) else "a decoder layer"
            return f"{where} cannot be quantized as {kind}: {name}: {reason}"
    return None


def quantize(lm: nn.Module, kind: Quantization, *, shards: int = 1, under_adapters: bool = False) -> None:
    """Quantize all linear layers but the output layer and LoRA's, in place.

    Args:
        lm: A model, or a part of one.
        shards: Parts into which FSDP2 will split each weight.
        under_adapters: Gradients go through the layers to adapters, and nothing more than the weights is to be kept
            for that.

    Raises:
        PrefkdError: A layer has a shape that cannot be cut into blocks, or its blocks cannot be split.
    """
    if text := misfit(lm, kind, shards=shards):
        raise PrefkdError(text)
    layers = dict(linear_layers(lm))
    if kind == "nf4":
        for layer in layers.values():
            blocks = layer.weight.numel() // _NF4_BLOCK
            # The scales are quantized as well, up to 256 of them together.
            quantized = to_nf4(layer.weight.detach(), _NF4_BLOCK, math.gcd(blocks // shards, 256))
            layer.weight = nn.Parameter(quantized, requires_grad=False)
            layer.__class__ = _ConstantLinear
        return
    with warnings.catch_warnings(action="ignore"):  # of int8's first version, which is the more exact one
        # By default each of them would set the precision of all float32 products of the process to that of TF32.
        configs = {
            "int8": partial(Int8WeightOnlyConfig, set_inductor_config=False),
            # Inputs too, each row with a scale of its own, so that the GPU multiplies in float8.
            "float8": partial(
                Float8DynamicActivationFloat8WeightConfig, granularity=PerRow(), set_inductor_config=False
            ),
            "int4": partial(
                Int4WeightOnlyConfig,
                group_size=_INT4_GROUP,
                int4_packing_format=Int4PackingFormat.TILE_PACKED_TO_4D,
                set_inductor_config=False,
            ),
        }
        quantize_(lm, configs[kind](), filter_fn=lambda _, name: name in layers)
    if under_adapters:
        for layer in layers.values():
            layer.__class__ = _ConstantLinear


def unpacked(weight: Any) -> Tensor:
    """The numbers that a quantized weight stands for, in the type that it had.

    Of nf4 the two in a byte are looked up at once: torchao makes 14 bytes of temporaries for a weight of bfloat16, this
    makes 4, and reads and writes a third as much.
    """
    if not isinstance(weight, NF4Tensor):
        return weight.dequantize()
    scales = weight.dequantize_scalers(weight.quantized_scalers, weight.quantization_factor, weight.scaler_block_size)
    byte = torch.arange(256, device=scales.device)
    pairs = torch.stack([weight.nf4[byte >> 4], weight.nf4[byte & 15]], -1)
    numbers = pairs.index_select(0, weight.quantized_data.flatten().int())  # (weights / 2, 2)
    return numbers.view(-1, weight.block_size).mul_(scales[:, None]).view(weight.shape)


class _ConstantProduct(torch.autograd.Function):
    """x W' of a quantized weight that is constant.

    Left to itself, autograd would keep what int8 is unpacked to, so that the model lay in memory unquantized.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Any) -> Tensor:
        ctx.weight = weight
        return F.linear(states, unpacked(weight).to(states.dtype) if isinstance(weight, NF4Tensor) else weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ unpacked(ctx.weight).to(gradient.dtype), None


class _ConstantLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        output = _ConstantProduct.apply(input, self.weight)
        return output if self.bias is None else output + self.bias


@contextmanager
def in_float32(module: nn.Module) -> Iterator[None]:
    """Inside, each layer computes in float32, whatever its weights are stored as: they are widened while it runs.

    So the model as a whole, for which there may be no room, is never there in float32.
    """
    # All that have weights: FSDP makes narrow ones of wide ones when it gathers them.
    layers = [layer for layer in module.modules() if any(True for _ in layer.parameters(recurse=False))]
    for layer in layers:
        layer.forward = partial(_wide_forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def stored_bytes(module: nn.Module) -> int:
    """Bytes of all weights and buffers as they lie in the memory of this process, tied ones once."""
    return sum(map(tensor_bytes, (*module.parameters(), *module.buffers())))


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor, or of this rank's part of it, with the scales of a quantized one."""
    if isinstance(tensor, DTensor):
        return tensor_bytes(tensor.to_local())
    if is_quantized(tensor):  # it consists of several
        names, _ = tensor.__tensor_flatten__()  # pyright: ignore[reportAttributeAccessIssue]
        return sum(tensor_bytes(getattr(tensor, name)) for name in names)
    return tensor.numel() * tensor.element_size()


def expert_bytes(lm: nn.Module) -> int:
    """Bytes of the experts of a mixture: they lie in tensors of three dimensions, which torchao leaves as they are."""
    return sum(tensor_bytes(value) for value in lm.parameters() if value.dim() == 3)


def is_quantized(tensor: Tensor) -> bool:
    """Whether it is a tensor of torchao: packed numbers, and their scales."""
    return hasattr(tensor, "__tensor_flatten__") and not isinstance(tensor, DTensor)


def linear_layers(lm: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Those layers that are quantized, by name: all linear ones but the output layer and LoRA's."""
    head = lm.get_output_embeddings() if isinstance(lm, PreTrainedModel) else None
    for name, module in lm.named_modules():
        if isinstance(module, nn.Linear) and module is not head and ".lora_" not in name:
            yield name, module


def _wide_forward(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    stored: dict[str, Any] = dict(layer._parameters)
    layer._parameters |= {
        name: nn.Parameter(_widened(value), requires_grad=False)
        for name, value in stored.items()
        if value is not None and _is_narrow(value)
    }
    try:
        return type(layer).forward(layer, *args, **kwargs)
    finally:
        layer._parameters |= stored


def _is_narrow(weight: Tensor) -> bool:
    return weight.is_floating_point() and weight.dtype.itemsize < 4


def _widened(weight: Tensor) -> Tensor:
    if is_quantized(weight):  # what its layer multiplies with, whatever the format
        identity = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        weight = F.linear(identity, weight).T
    return weight.float()


def _misfit(layer: nn.Linear, kind: Quantization, shards: int) -> str:
    """Why a layer cannot be quantized, empty if it can."""
    rows, inputs = layer.weight.shape
    if kind == "nf4" and rows * inputs % _NF4_BLOCK:
        return f"its weights are not a multiple of {_NF4_BLOCK}; use int8"
    if kind == "nf4" and (rows % shards or rows // shards * inputs % _NF4_BLOCK):
        return f"it cannot be split over {shards} processes; use placement: replicate"
    if kind == "int4" and inputs % _INT4_GROUP:
        return f"its inputs are not a multiple of {_INT4_GROUP}; use int8"
    return ""
