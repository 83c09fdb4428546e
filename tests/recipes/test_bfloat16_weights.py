"""Weights that learn in bfloat16, for cards without room for float32 ones: small steps are kept on average."""

import pytest
import torch
from safetensors.torch import load_file

from tests.recipes import single_model

ADAM = "optimizer={_component_: torchao.optim.AdamW8bit, lr: 1e-3, bf16_stochastic_round: true}"
HALF = ("training.precision=bfloat16", "training.weights=bfloat16", "lr_schedule.num_warmup_steps=0")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return single_model.make_world(tmp_path_factory.mktemp("world"))


def test_steps_smaller_than_a_unit_change_some_weights(world, tmp_path):
    with torch.compiler.set_stance("force_eager"):  # as exact, and without minutes of compiling
        metrics = single_model.run("sft", world, tmp_path / "out", ADAM, *HALF, "optimizer.lr=1e-4")
    assert metrics[-1]["held_out/loss"] < metrics[0]["held_out/loss"]
    assert metrics[-1]["written/loss"] == metrics[-1]["held_out/loss"]  # nothing is left to round
    start, end = (load_file(folder / "model.safetensors") for folder in (world / "model", tmp_path / "out" / "model"))
    name = "model.layers.0.mlp.up_proj.weight"
    # A unit of bfloat16 at 0.3 is 2e-3, and three steps of 1e-4 are a seventh of it.
    changed = (start[name].bfloat16() != end[name].bfloat16()).float().mean().item()
    assert 0.05 < changed < 0.5


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (HALF, "training.weights: bfloat16 loses what steps of torch.optim.SGD teach, which rounds to the nearest"),
        ((*HALF, "optimizer=torch.optim.AdamW"), "training.weights: bfloat16 loses what steps of torch.optim.AdamW"),
        ((ADAM, *HALF, "training.precision=float32"), "training.weights: bfloat16 goes with precision: bfloat16"),
        ((ADAM, *HALF, "lora={}"), "training.weights: adapters are float32, and small; leave it out"),
    ],
)
def test_what_would_lose_them_is_one_line(world, tmp_path, capsys, overrides, said):
    single_model.run("sft", world, tmp_path / "out", *overrides, code=2)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and said in errors[0]
