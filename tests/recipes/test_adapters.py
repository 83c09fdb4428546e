"""Adapters in every recipe that trains: on a base as it is stored, or on one in fewer bits (QLoRA)."""

import math
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from prefkd.models.quantize import quantize
from prefkd.training.metrics import MetricsWriter
from tests.processes import run_processes
from tests.recipes import single_model, two_models
from tests.recipes.two_models import read_rows, student_logprob
from tests.tiny import make_model, write_pairs

RECIPES = {"sft": "model", "dpo": "model", "dpo_distill": "student", "tis_dpo_distill": "student"}
RECIPES |= {"dskd_distill": "student"}
LORA = "lora={rank: 4}"


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("worlds")
    for name in ("model", "student"):
        (folder / name).mkdir()
    return {
        "model": single_model.make_world(folder / "model"),
        "student": two_models.make_world(folder / "student"),
    }


def runner(recipe: str, worlds: dict[str, Path]):
    helper = single_model if RECIPES[recipe] == "model" else two_models
    return partial(helper.run, recipe, worlds[RECIPES[recipe]])


@pytest.mark.parametrize("kind", ["none", "int8", "nf4"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_an_adapter_is_trained_written_and_read_back(worlds, tmp_path, capsys, recipe, kind):
    quantized = f"{RECIPES[recipe]}.quantization={kind}"
    metrics = runner(recipe, worlds)(tmp_path / "out", LORA, quantized)
    printed = " ".join(capsys.readouterr().out.split())
    assert "LoRA of rank 4" in printed and (f"on a base in {kind}" in printed) == (kind != "none")
    assert all(math.isfinite(value) for line in metrics for value in line.values())
    assert metrics[-1]["written/loss"] == metrics[-1]["held_out/loss"] != metrics[0]["held_out/loss"]
    assert [folder.name for folder in (tmp_path / "out").iterdir() if folder.is_dir()] == ["adapter"]
    weights = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    assert weights and all(".lora_" in name and value.dtype == torch.float32 for name, value in weights.items())
    assert any(value.any() for name, value in weights.items() if ".lora_B" in name)


@pytest.mark.parametrize("recipe", RECIPES)
def test_dropout_is_for_training_alone(worlds, tmp_path, recipe):
    plain = runner(recipe, worlds)(tmp_path / "plain", LORA)
    metrics = runner(recipe, worlds)(tmp_path / "out", "lora={rank: 4, dropout: 0.5}")
    assert metrics[-1]["loss"] != plain[-1]["loss"]
    assert metrics[-1]["written/loss"] == metrics[-1]["held_out/loss"]  # of the same weights, read twice


def test_an_adapter_tells_the_revision_of_its_base(worlds, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cache, commit = tmp_path / "models--me--mine", "a" * 40
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "v2").write_text(commit)
    shutil.copytree(worlds["model"] / "model", cache / "snapshots" / commit)
    runner("sft", worlds)(tmp_path / "out", "model.path=me/mine", "model.revision=v2", LORA, "training.max_steps=1")
    adapter = tmp_path / "out" / "adapter"
    assert PeftConfig.from_pretrained(adapter).revision == "v2"
    assert 'from_pretrained("me/mine", revision="v2")' in (adapter / "README.md").read_text()


@pytest.mark.parametrize("kind", ["none", "nf4"])
def test_the_students_own_start_is_its_base_without_adapters(worlds, tmp_path, kind):
    """By peft, from whole logits: the loss after training against the base as it was trained on, quantized or not."""
    world, out = worlds["student"], tmp_path / "out"
    settings = ("reference=student", LORA, f"student.quantization={kind}", "training.evaluate_every=3")
    metrics = two_models.run("dpo_distill", world, out, *settings)
    base = AutoModelForCausalLM.from_pretrained(world / "student").requires_grad_(False)
    if kind != "none":
        quantize(base, kind)
    assert metrics[0]["held_out/loss"] == pytest.approx(math.log(2), abs=1e-6)

    def log_ratios(lm: torch.nn.Module) -> torch.Tensor:
        rows = read_rows(world / "held_out.jsonl")
        answers = [
            [student_logprob(world, lm, row["prompt"], row[name]) for name in ("chosen", "rejected")] for row in rows
        ]
        return torch.stack([chosen - rejected for chosen, rejected in answers])

    with torch.no_grad():
        start = log_ratios(base)
        after = log_ratios(PeftModel.from_pretrained(base, str(out / "adapter")))
    assert (after - start).abs().max() > 0.01
    expected = -F.logsigmoid(0.1 * (after - start)).mean().item()
    assert metrics[-1]["held_out/loss"] == pytest.approx(expected, rel=1e-3)


def test_there_is_no_second_model(worlds, tmp_path, monkeypatch):
    loaded = []
    load = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *args, **kw: loaded.append(args) or load(*args, **kw)
    )
    scores = two_models.score(worlds["student"], tmp_path / "scored")
    loaded.clear()
    settings = ("reference=student", LORA, "~teacher.path", f"teacher.scores={scores}", "training.max_steps=1")
    two_models.run("tis_dpo_distill", worlds["student"], tmp_path / "out", "weights.contrast=scores", *settings)
    assert len(loaded) == 1


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantized_base_in_two_processes(worlds, tmp_path, kind):
    """What cannot be split stands whole in each of them. The scales of nf4 are those of other blocks there."""
    start = runner("dpo_distill", worlds)
    settings = (
        LORA,
        f"student.quantization={kind}",
        "training.microbatch_size=2",
        "training.max_steps=1",
        "lr_schedule.num_warmup_steps=0",
    )
    one = start(tmp_path / "one", *settings)
    two, _ = run_processes(lambda: start(tmp_path / "two", *settings))
    tolerance = {"int8": 1e-4, "nf4": 0.03}[kind]
    for left, right in zip(one, two, strict=True):
        for name in left.keys() & {"loss", "held_out/loss", "gradient_norm"}:
            assert left[name] == pytest.approx(right[name], rel=tolerance), name


def test_it_resumes(worlds, tmp_path):
    """A checkpoint holds the adapter alone, and goes on exactly on the same base in four bits."""
    start, settings = runner("dpo_distill", worlds), (LORA, "student.quantization=nf4", "training.checkpoint_every=1")
    whole = start(tmp_path / "whole", *settings)
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetricsWriter, "write", _until(3))
        start(out, *settings, code=130)
    again = start(out, *settings)
    assert [line["loss"] for line in again[1:]] == [line["loss"] for line in whole[1:]]


def _until(step: int):
    """Ctrl-C where the metrics of a step are written."""
    write = MetricsWriter.write

    def stopping(self: MetricsWriter, now: int, metrics) -> None:
        if now == step:
            raise KeyboardInterrupt
        write(self, now, metrics)

    return stopping


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("lora.target_modules=[nope]",), "lora.target_modules: no linear layer of "),
        (("lora.target_modules=[q_projj]",), "is named q_projj; did you mean q_proj?"),
        (("lora.target_modules=[lm_head]",), "takes no adapter; leave it out"),
        (("lora={rank: 400}",), "lora.rank: 400 is more than the layers of "),
        (("student.quantization=nf4",), "student.quantization: nf4 weights cannot be trained, only adapters on them"),
        (("student.quantization=int4", LORA), "student.quantization: 'int4' is not one of none, int8, nf4"),
        (("optimizer=torch.optim.Muon",), "optimizer: torch.optim.Muon refuses its arguments: Muon only supports 2D"),
    ],
)
def test_mistakes_are_one_line_before_any_model_is_loaded(worlds, tmp_path, capsys, monkeypatch, overrides, said):
    """`prefkd validate` and `prefkd run` read the same config in the same way."""
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("a model was loaded"))
    two_models.run("dpo_distill", worlds["student"], tmp_path / "out", *overrides, code=2)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and said in errors[0]


def test_an_optimizer_of_matrices_alone_trains_adapters(worlds, tmp_path):
    settings = (LORA, "optimizer={_component_: torch.optim.Muon, lr: 0.01}", "training.max_steps=2")
    metrics = two_models.run("dpo_distill", worlds["student"], tmp_path / "out", *settings)
    assert metrics[-1]["held_out/loss"] != metrics[0]["held_out/loss"]


def test_a_base_that_blocks_do_not_divide_is_one_line(tmp_path, capsys):
    make_model(tmp_path / "model", "llama", "byte_level", hidden_size=36, intermediate_size=50, head_dim=8)
    write_pairs(tmp_path / "pairs.jsonl", 4)
    write_pairs(tmp_path / "held_out.jsonl", 2)
    single_model.run("sft", tmp_path, tmp_path / "out", LORA, "model.quantization=nf4", code=2)
    assert "model.quantization: " in capsys.readouterr().err
