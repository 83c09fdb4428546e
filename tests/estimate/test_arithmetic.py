"""The formulas of a plan compared with what torch and torchao count."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from prefkd.config import build
from prefkd.errors import PrefkdError
from prefkd.estimate.memory import (
    GIB,
    Card,
    find_card,
    quantized_bytes,
    score_cache_bytes,
    smallest_card,
    unpacking_bytes,
)
from prefkd.estimate.models import group_bytes, teacher_bytes
from prefkd.estimate.step import state_bytes
from prefkd.estimate.tracking import MemoryTracker
from prefkd.models.flops import forward_flops, keys_attended, layer_flops, reading, training_flops
from prefkd.models.load import TeacherConfig, load_causal_lm
from prefkd.models.logprob_model import LogprobModel
from prefkd.models.quantize import is_quantized, quantize, stored_bytes, tensor_bytes
from tests.tiny import make_model


def outline(config: TeacherConfig) -> LogprobModel:
    return LogprobModel(load_causal_lm(config, dtype=config.torch_dtype, device=torch.device("meta"))).freeze()


def test_six_operations_for_each_weight_and_token(tmp_path):
    make_model(tmp_path / "model", "llama", "byte_level")
    lm = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    read = reading(lm, tokens=2 * 40, attended=2 * 2 * 40 * 40, targets=0)  # without a mask all is computed
    with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH):
        hidden = lm.base_model(torch.zeros(2, 40, dtype=torch.long)).last_hidden_state
        forward = counted.get_total_flops()
        hidden.sum().backward()
    assert forward_flops(read) == pytest.approx(forward, rel=0.03)
    training = training_flops(read, trained=read.weights, recomputed=False)
    assert training == pytest.approx(counted.get_total_flops(), rel=0.03)
    assert training == 3 * forward_flops(read)
    assert training_flops(read, trained=read.weights, recomputed=True) == 4 * forward_flops(read)
    assert training_flops(read, trained=0, recomputed=False) == training - layer_flops(read)
    assert forward_flops(replace(read, targets=5)) == forward_flops(read) + 2 * 5 * read.head


def test_keys_are_counted_as_a_mask_lets_them_through(tmp_path):
    """Two layers, one of which sees a window of three."""
    kinds = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 3}
    make_model(tmp_path / "model", "gemma3_text", "byte_level", **kinds)
    lm = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    causal = torch.ones(5, 5).tril()
    expected = causal.sum() + (causal - causal.tril(-3)).sum()
    assert keys_attended(lm, torch.arange(5)) == expected


def test_a_teacher_is_split_as_its_placement_says(tmp_path):
    make_model(tmp_path / "model", "llama", "byte_level")
    config = TeacherConfig(str(tmp_path / "model"), dtype="float32")
    base = outline(config)
    whole = teacher_bytes(config, base, 1, None)
    root, layer = group_bytes(base)

    def size(ranks: int, gpu_bytes: float | None = None, **settings) -> float:
        return teacher_bytes(replace(config, **settings), base, ranks, gpu_bytes)

    gathered = root + 2 * layer
    assert size(4, placement="shard") == whole / 4 + gathered
    assert size(4, placement="shard", cpu_offload=True) == gathered
    assert size(1, placement="shard") == size(4, placement="replicate") == whole
    assert (
        size(4) == size(4, gpu_bytes=5 * whole) == size(4, gpu_bytes=whole, quantization="none", placement="replicate")
    )
    assert size(4, gpu_bytes=3 * whole) == size(4, placement="shard")  # it would fill more than a quarter


@pytest.mark.parametrize("kind", ["none", "int8", "nf4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_quantized_weights_take_what_they_take_in_torchao(tmp_path, kind, dtype):
    sizes = {"hidden_size": 128, "intermediate_size": 512, "head_dim": 32}
    make_model(tmp_path / "model", "llama", "byte_level", **sizes)
    lm = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=getattr(torch, dtype)).requires_grad_(False)
    if kind != "none":
        quantize(lm, kind)
    config = TeacherConfig(str(tmp_path / "model"), dtype=dtype, quantization=kind)
    assert teacher_bytes(config, outline(config), 1, None) == pytest.approx(stored_bytes(lm), rel=0.01)


def test_int4_is_padded_to_whole_tiles():
    """Its kernel needs a GPU to make one: 1,024 inputs, 8 outputs, as torchao's int4_tile_packed_to_4d_tensor.py."""
    whole = quantized_bytes(2048, 1024, "int4", 2)
    assert whole == 2048 * 1024 * (1 / 2 + 4 / 128)
    assert quantized_bytes(2048, 896, "int4", 2) == quantized_bytes(2041, 1024, "int4", 2) == whole
    assert quantized_bytes(8960, 1536, "int4", 2) == quantized_bytes(8960, 2048, "int4", 2)


def test_cards():
    assert find_card("h100").gib == 79.2
    assert find_card("16") == Card("a GPU", 16.0)
    card = smallest_card(30 * GIB)
    assert card is not None and card.name == "A100-40"
    assert smallest_card(1000 * GIB) is None
    with pytest.raises(PrefkdError, match="did you mean H100"):
        find_card("H10")
    with pytest.raises(PrefkdError, match="is not the memory of a GPU"):
        find_card("0")


def test_a_score_cache_is_as_large_as_the_recipe_measured():
    assert score_cache_bytes(1000, 3) == pytest.approx(17_700)


OPTIMIZERS = {
    "torch.optim.AdamW": {"fused": True},
    "torch.optim.Adam": {"amsgrad": True},
    "torch.optim.SGD": {"lr": 0.1},
    "torch.optim.RMSprop": {"momentum": 0.9},
    "torch.optim.Adafactor": {},
    "torch.optim.ASGD": {},
    "torchao.optim.AdamW8bit": {},
    "torchao.optim.AdamW4bit": {},
    "torchao.optim.AdamWFp8": {},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_an_optimizer_is_what_it_keeps(name):
    """Matrices with whole blocks, one with a part of a block, and what is too small for blocks."""
    component = {"_component_": name, **OPTIMIZERS[name]}
    shapes = [(64, 96), (64, 96), (65, 64), (16, 250), (300,), (7,)]
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    optimizer = build(component, parameters)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    with torch.compiler.set_stance("force_eager"):  # as exact, and without minutes of compiling
        optimizer.step()
    state = [value for kept in optimizer.state.values() for value in kept.values() if isinstance(value, torch.Tensor)]
    frozen = torch.nn.Parameter(torch.zeros(512, 512), requires_grad=False)
    assert state_bytes(component, [*parameters, frozen], ranks=1) == sum(map(tensor_bytes, state))


def test_the_state_of_eight_and_four_bits_is_small_but_for_small_tensors():
    weights, ranks = [torch.nn.Parameter(torch.empty(4096, 2048, device="meta"))], 4
    count = weights[0].numel()

    def per_weight(name: str) -> float:
        return state_bytes({"_component_": f"torchao.optim.{name}"}, weights, ranks) / (count / ranks)

    assert per_weight("AdamW8bit") == pytest.approx(2 * (1 + 4 / 256), rel=0.01)
    assert per_weight("AdamW4bit") == pytest.approx(2 * (1 / 2 + 4 / 128), rel=0.01)
    assert per_weight("AdamWFp8") == pytest.approx(2 * (1 + 4 / 256), rel=0.01)
    norms = [torch.nn.Parameter(torch.empty(2048, device="meta"))]
    assert state_bytes({"_component_": "torchao.optim.AdamW8bit"}, norms, 1) == 2 * 4 * 2048 + 4
    # Half of the tensor is too small for blocks.
    half = [torch.nn.Parameter(torch.empty(4096, device="meta"))]
    assert state_bytes({"_component_": "torchao.optim.AdamW8bit"}, half, 2) == 2 * 4 * 2048 + 4


def test_an_optimizer_that_cannot_be_counted_is_named():
    with pytest.raises(PrefkdError, match=r"torch.optim.Muon refuses its arguments"):
        state_bytes({"_component_": "torch.optim.Muon"}, [torch.nn.Parameter(torch.empty(8, device="meta"))], 1)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_there_is_of_an_unpacked_weight_is_what_torch_makes(kind, dtype):
    layer = torch.nn.Sequential(torch.nn.Linear(1024, 2048, bias=False, dtype=dtype)).requires_grad_(False)
    quantize(layer, kind, under_adapters=True)
    states = torch.randn(1, 1024, dtype=dtype, requires_grad=True)
    trackers = [MemoryTracker(_parts(layer[0].weight)) for _ in range(2)]
    with trackers[0]:
        output = layer(states)
    with trackers[1]:
        output.sum().backward()
    peaks = [tracker.total for tracker in trackers]
    weights, size = layer[0].weight.numel(), dtype.itemsize
    assert unpacking_bytes(weights, kind, size, learns=False) == pytest.approx(peaks[0], rel=0.02)
    assert unpacking_bytes(weights, kind, size, learns=True) == pytest.approx(max(peaks), rel=0.02)


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    if not is_quantized(tensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _parts(getattr(tensor, name))]
