"""Quantized teachers: half the memory, nearly the same log-probs, adapters exact on top, and a clear no elsewhere."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torchao.quantization import PerRow
from transformers import AutoModelForCausalLM

from prefkd.errors import PrefkdError
from prefkd.models.load import TeacherConfig
from prefkd.models.quantize import in_float32, quantization_problems, quantize, stored_bytes, unpacked
from tests.recipes import two_models
from tests.recipes.single_model import run as run_single
from tests.tiny import make_model


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """The teacher is broad enough to be compared in size."""
    world = two_models.make_world(tmp_path_factory.mktemp("world"))
    sizes = {"hidden_size": 128, "intermediate_size": 512, "head_dim": 32}
    make_model(world / "teacher", "llama", "byte_level", seed=2, **sizes, initializer_range=0.08)
    return world


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "bytes_per_weight"), [("int8", 1.0), ("nf4", 0.5)])
def test_linear_layers_shrink_and_the_rest_stays(world, kind, bytes_per_weight, dtype):
    lm = AutoModelForCausalLM.from_pretrained(world / "teacher", dtype=dtype).requires_grad_(False)
    head, tokens = lm.lm_head.weight, torch.arange(40)[None]
    before, logits = stored_bytes(lm), lm(tokens).logits.float()
    linear = sum(module.weight.numel() for module in lm.model.layers.modules() if isinstance(module, torch.nn.Linear))
    quantize(lm, kind)
    assert lm.lm_head.weight is head is lm.model.embed_tokens.weight and head.dtype == dtype
    saved = before - stored_bytes(lm)
    assert saved == pytest.approx(linear * (dtype.itemsize - bytes_per_weight), rel=0.1)
    error = (lm(tokens).logits.float() - logits).abs().mean() / logits.abs().mean()
    assert 0 < error < {"int8": 0.06, "nf4": 0.5}[kind]


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_quantising_leaves_the_process_as_it_was(world, kind):
    """A student whose teacher is quantized computes what it computes with an exact one."""

    def settings() -> tuple:
        inductor = {name: str(value) for name, value in torch._inductor.config.shallow_copy_dict().items()}
        return torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32, inductor

    before = settings()
    assert before[0] == "highest"
    quantize(AutoModelForCausalLM.from_pretrained(world / "teacher", dtype=torch.bfloat16), kind)
    assert settings() == before


def test_no_kind_of_torchao_changes_the_process(monkeypatch):
    """Of those that need a GPU, too."""
    asked = []
    monkeypatch.setattr("prefkd.models.quantize.quantize_", lambda lm, config, filter_fn: asked.append(config))
    for kind in ("int8", "float8", "int4"):
        quantize(torch.nn.Sequential(torch.nn.Linear(256, 256)), kind)
    assert [config.set_inductor_config for config in asked] == [False] * 3
    assert isinstance(asked[1].granularity[0], PerRow)  # scaled_mm over rows, for inputs and weights


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_quantised_model_in_float32(world, kind, dtype):
    """The quantized weights themselves, widened: the same log-probs but for rounding, and nothing stays behind."""
    lm = AutoModelForCausalLM.from_pretrained(world / "teacher", dtype=dtype).requires_grad_(False)
    quantize(lm, kind)
    tokens = torch.arange(40)[None]
    logits, stored = lm(tokens).logits.float(), {name: id(value) for name, value in lm.named_parameters()}
    with in_float32(lm):
        wide = lm(tokens).logits
    assert wide.dtype == torch.float32
    assert (wide - logits).abs().mean() / logits.abs().mean() < (1e-5 if dtype == torch.float32 else 0.02)
    assert {name: id(value) for name, value in lm.named_parameters()} == stored
    assert torch.equal(lm(tokens).logits.float(), logits)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_distillation_from_a_quantised_teacher(world, tmp_path, capsys, kind, dtype):
    exact = two_models.run("tis_dpo_distill", world, tmp_path / "exact", f"teacher.dtype={dtype}")
    capsys.readouterr()
    quantized = two_models.run(
        "tis_dpo_distill", world, tmp_path / "out", f"teacher.quantization={kind}", f"teacher.dtype={dtype}"
    )
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{dtype} {kind}," in printed and "nats a token on the first pair" in printed
    error = float(printed.split("log-probs off by ")[1].split()[0])
    assert 0 < error < {"int8": 0.1, "nf4": 1.0}[kind]
    # beta = 0.1 times the error of a difference of two answers of some tens of tokens.
    assert quantized[0]["held_out/loss"] == pytest.approx(exact[0]["held_out/loss"], abs=0.1 * 60 * error)
    assert quantized[0]["held_out/loss"] != exact[0]["held_out/loss"]


def test_scores_remember_the_quantization(world, tmp_path):
    scores = two_models.score(world, tmp_path / "out", "teacher.quantization=int8")
    assert json.loads((scores / "fingerprint.json").read_text())["teacher.quantization"] == "int8"


def test_an_adapter_on_a_quantised_base(world, tmp_path, capsys):
    single = tmp_path / "single"
    single.mkdir()
    (single / "model").symlink_to(world / "teacher")
    for name in ("pairs.jsonl", "held_out.jsonl"):
        (single / name).symlink_to(world / name)
    run_single("dpo", single, tmp_path / "dpo", "lora={}")
    adapter = f"teacher.adapter={tmp_path}/dpo/adapter"
    exact = two_models.run("dpo_distill", world, tmp_path / "exact", adapter)
    out = two_models.run("dpo_distill", world, tmp_path / "out", adapter, "teacher.quantization=int8")
    base = two_models.run("dpo_distill", world, tmp_path / "base", "teacher.quantization=int8")
    near, far = (abs(run[0]["held_out/loss"] - out[0]["held_out/loss"]) for run in (exact, base))
    assert near < far


@pytest.mark.parametrize("kind", ["float8", "int4"])
def test_what_needs_a_gpu_is_refused_before_anything_loads(world, tmp_path, capsys, kind):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    two_models.run("dpo_distill", world, tmp_path / "out", f"teacher.quantization={kind}", code=2)
    assert f"error: teacher.quantization: {kind} needs a GPU" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_old_gpu_and_a_type_that_does_not_fit(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    (problem,) = quantization_problems("float8", torch.bfloat16, "cuda")
    assert "Tesla T4" in problem.text and problem.about == "device"
    assert len([*quantization_problems("int4", torch.float32, "cuda")]) == 2
    assert not [*TeacherConfig("owner/name", quantization="int8").problems()]


def test_a_shape_that_does_not_fit(tmp_path):
    make_model(tmp_path, "llama", "byte_level", hidden_size=36, head_dim=10, intermediate_size=50)
    lm = AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(PrefkdError, match=r"cannot be quantized as nf4: model.layers.0.self_attn.q_proj"):
        quantize(lm, "nf4")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(48, 64), (128, 40), (96, 512)])
def test_nf4_is_unpacked_to_the_last_bit_as_torchao_does(shape, dtype):
    layer = torch.nn.Sequential(torch.nn.Linear(*shape[::-1], dtype=dtype)).requires_grad_(False)
    quantize(layer, "nf4")
    weight = layer[0].weight
    assert torch.equal(unpacked(weight), weight.get_original_weight())
    states = torch.randn(3, 5, shape[1], dtype=dtype)
    assert torch.equal(layer(states), F.linear(states, weight.get_original_weight()) + layer[0].bias)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_gradients_go_through_a_quantized_layer_and_nothing_is_kept_for_them(kind):
    layer = torch.nn.Sequential(torch.nn.Linear(64, 128)).requires_grad_(False)
    quantize(layer, kind, under_adapters=True)
    states, kept = torch.randn(3, 64, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        output = layer(states)
    assert not kept
    gradient = torch.randn_like(output)
    output.backward(gradient)
    torch.testing.assert_close(states.grad, gradient @ unpacked(layer[0].weight))


def test_experts_stay_exact_and_are_counted(tmp_path, capsys):
    """torchao knows linear layers alone, and the experts of a mixture are one tensor of three dimensions."""
    world = two_models.make_world(tmp_path)
    sizes = {"num_local_experts": 4, "num_experts_per_tok": 2}
    make_model(world / "teacher", "mixtral", "byte_level", **sizes)
    two_models.score(world, world / "out", "teacher.quantization=int8")
    printed = " ".join(capsys.readouterr().out.split())
    experts = 2 * 4 * 3 * 32 * 48 * 4 / 2**20  # layers, experts, matrices, float32
    assert f"but for its experts, {experts:,.1f} MiB, which torchao leaves as they are" in printed
