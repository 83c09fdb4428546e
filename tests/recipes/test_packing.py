"""Packed rows, budgets of tokens and batches made ahead change nothing of what any recipe learns."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.processes import run_processes
from tests.recipes import single_model, two_models

# More than the longest pair of any recipe, and so little that steps are several microbatches.
PACKED = ("training.attention=varlen", "training.microbatch_tokens=320")
RUNS = {
    "sft": (),
    "dpo": (),
    "dpo unshared": ("model.share_prompt=false", "loss.beta=0.3"),
    "dpo centred": ("lora={rank: 4}", "centre=true"),
    "dpo_distill": ("teacher.share_prompt=false",),
    "tis_dpo_distill": ("training.activation_checkpointing=full",),
    "dskd_distill": (),
}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("worlds")
    for name in ("one", "two"):
        (folder / name).mkdir()
    return {"one": single_model.make_world(folder / "one"), "two": two_models.make_world(folder / "two")}


def start(name: str, worlds: dict[str, Path], out: Path, *overrides: str, code: int = 0) -> list[dict]:
    recipe = name.split()[0]
    helper, world = (two_models, "two") if recipe.endswith("distill") else (single_model, "one")
    settings = ("training.batch_size=6", "training.microbatch_size=6", "training.max_steps=3", *RUNS[name])
    return helper.run(recipe, worlds[world], out, *settings, *overrides, code=code)


def assert_same(one: tuple[Path, list[dict]], other: tuple[Path, list[dict]], tolerance: float) -> None:
    """Losses, gradients and weights; where a margin is 0, as at the start of DPO, rounding decides about accuracy."""
    for left, right in zip(one[1], other[1], strict=True):
        for name in left.keys() & {"loss", "gradient_norm", "tokens", "held_out/loss", "written/loss"}:
            assert left[name] == pytest.approx(right[name], rel=tolerance), name
    left, right = (load_file(next(out.glob("*/*.safetensors"))) for out, _ in (one, other))
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("name", RUNS)
def test_packed_rows_within_a_budget_are_the_same_run(worlds, tmp_path, name):
    one, other = tmp_path / "one", tmp_path / "other"
    assert_same((one, start(name, worlds, one)), (other, start(name, worlds, other, *PACKED)), 2e-5)


def test_two_processes_share_packed_rows(worlds, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    alone = start("tis_dpo_distill", worlds, one)
    split, _ = run_processes(lambda: start("tis_dpo_distill", worlds, other, *PACKED, "teacher.placement=shard"))
    assert_same((one, alone), (other, split), 1e-4)


@pytest.mark.parametrize("name", ["sft", "dpo", "dpo_distill"])
def test_a_budget_below_the_longest_row(worlds, tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr("prefkd.models.load.load_causal_lm", None)  # no model is loaded
    start(name, worlds, tmp_path / "out", "training.microbatch_tokens=20", code=2)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: training.microbatch_tokens: the longest row has ")
    assert line.endswith(" tokens, more than 20; raise it, or lower max_length")


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("training.microbatch_tokens=0", "training.microbatch_tokens: 0 is too small; use 1 or more"),
        ("training.attention=flash", "training.attention: 'flash' is not one of auto, mask, varlen"),
        ("training.compile=maybe", "training.compile: 'maybe' is not true or false or one of auto"),
    ],
)
def test_wrong_settings(worlds, tmp_path, capsys, override, error):
    start("dpo", worlds, tmp_path / "out", override, code=2)
    assert error in capsys.readouterr().err


def test_compiling_without_a_compiler(worlds, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/g++")
    start("dpo", worlds, tmp_path / "out", "training.compile=true", code=2)
    expected = "training.compile: there is no C++ compiler here (/nowhere/g++); install one, or use auto or false"
    assert expected in capsys.readouterr().err


def test_a_model_that_must_do_without_a_mask_and_cannot(worlds, tmp_path, capsys):
    two_models.make_model(tmp_path / "capped", "gemma2", "byte_level", attn_logit_softcapping=1.0)
    start("dpo", worlds, tmp_path / "out", "training.attention=varlen", f"model.path={tmp_path}/capped", code=2)
    assert "model: attention: varlen cannot be used: gemma2 " in capsys.readouterr().err
