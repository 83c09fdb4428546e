"""`prefkd plan`: numbers from config.json alone, for each recipe that trains or scores."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from prefkd import catalog
from prefkd.cli.main import main
from prefkd.config import read_yaml
from prefkd.errors import PrefkdError
from prefkd.estimate.memory import CONTEXT, GAPS, GIB, WORKSPACES, Card
from tests.recipes import single_model, two_models
from tests.tiny import make_model

SETTINGS = """
output_dir: {world}/out
data: {{source: {world}/not_there.jsonl, max_length: 64, max_prompt_length: 32}}
{models}
"""
ONE = "model: {{path: {world}/student}}"
TWO = "student: {{path: {world}/student}}\nteacher: {{path: {world}/teacher}}"
TRAINING = "\ntraining: {{batch_size: 4, microbatch_size: 2, precision: float32}}"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Two folders with a config.json and nothing else."""
    folder = tmp_path_factory.mktemp("world")
    for name, kind in (("student", "qwen2"), ("teacher", "llama")):
        make_model(folder / name, kind, "byte_level")
        for path in (folder / name).iterdir():
            if path.name != "config.json":
                path.unlink()
    return folder


@pytest.fixture
def plan(world, tmp_path):
    """Plan a recipe, and return the numbers."""

    def run(recipe: str, *arguments: str, code: int = 0) -> dict:
        models = (ONE if recipe in ("sft", "dpo") else TWO) + ("" if recipe == "score" else TRAINING)
        config, out = tmp_path / "config.yaml", tmp_path / "plan.json"
        config.write_text(SETTINGS.format(world=world, models=models.format(world=world)))
        assert main(["plan", recipe, "--config", str(config), "--json", str(out), *arguments]) == code
        return {} if code else json.loads(out.read_text())

    return run


def card_for(size: float) -> str:
    """The GiB of a card that has just so much room."""
    return str((size * 1.001 + CONTEXT + WORKSPACES) / (1 - GAPS) / GIB)


def parameters(folder: Path) -> int:
    return sum(value.numel() for value in AutoModelForCausalLM.from_config(_config(folder)).parameters())


def _config(folder: Path):
    return AutoConfig.from_pretrained(folder)


@pytest.mark.parametrize("recipe", ["sft", "dpo", "dpo_distill", "tis_dpo_distill", "dskd_distill", "score"])
def test_config_json_is_enough(plan, world, recipe, capsys):
    numbers = plan(recipe)
    counted = {model["name"]: model for model in numbers["models"]}
    if recipe != "score":
        learner = counted["model" if recipe in ("sft", "dpo") else "student"]
        assert learner["trained"] == parameters(world / "student") and learner["frozen"] == 0
        weights = numbers["memory"]["weights"]["most"]
        assert numbers["memory"]["optimizer"]["most"] == pytest.approx(2 * weights, rel=0.2)
        assert numbers["memory"]["gradients"]["most"] == pytest.approx(weights, rel=0.2)
    assert ("teacher" in counted) == ("teacher" in numbers["flops"]) == (recipe not in ("sft", "dpo"))
    assert ("projectors" in counted) == (recipe == "dskd_distill")
    assert (numbers["scores"] is not None) == (recipe not in ("sft", "dpo"))
    assert numbers["peak"] == pytest.approx(sum(need["at_peak"] for need in numbers["memory"].values()))
    assert "fits" in capsys.readouterr().out


def test_kept_distributions_are_planned(plan):
    """For each of 64 targets of 1,000 pairs: ids of 9 bits and log-probs of 2 bytes, and two masses of others."""
    whole, kept = plan("score"), plan("score", "keep={top_k: 32, models: [teacher, positive, negative]}")
    added = 1000 * 64 * (2 * (36 + 64 + 4) + 64 + 4)
    assert kept["scores"][0] - whole["scores"][0] == pytest.approx(added)


def test_a_reference_that_follows_is_a_copy_and_reads(plan):
    found = plan("dpo", "refresh={}", "training.activation_checkpointing=none")
    assert found["memory"]["reference"]["most"] == pytest.approx(found["memory"]["weights"]["most"], rel=0.01)
    assert found["flops"]["model"] == pytest.approx(3 * found["flops"]["reference"], rel=0.2)


def test_what_changes_memory(plan):
    whole = plan("sft", "training.activation_checkpointing=none")
    split = plan("sft", "--nproc-per-node", "2", "training.activation_checkpointing=none")
    for kind in ("weights", "optimizer", "gradients"):
        assert split["memory"][kind]["most"] == pytest.approx(whole["memory"][kind]["most"] / 2, rel=0.2)
    assert "gathered weights" in split["memory"]
    assert plan("sft", "optimizer=torch.optim.SGD")["memory"].get("optimizer") is None
    recomputed = plan("sft", "training.activation_checkpointing=full")
    assert recomputed["memory"]["activations"]["most"] < 0.7 * whole["memory"]["activations"]["most"]
    assert recomputed["flops"]["model"] > whole["flops"]["model"]
    selective = plan("sft", "training.activation_checkpointing=selective")
    kept = [numbers["memory"]["activations"]["most"] for numbers in (whole, selective, recomputed)]
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == 3
    assert selective["flops"] == whole["flops"]
    adapters = plan("sft", "lora.rank=2")
    assert {model["name"] for model in adapters["models"]} == {"model", "adapters"}
    assert adapters["memory"]["optimizer"]["most"] < 0.5 * whole["memory"]["optimizer"]["most"]


def test_activations_are_those_of_the_run_itself(plan, tmp_path):
    """What autograd keeps of a real model of the same shape, in bytes of distinct memory."""
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 6, "head_dim": 32}
    make_model(tmp_path / "larger", "qwen2", "byte_level", **sizes)
    lm = AutoModelForCausalLM.from_pretrained(tmp_path / "larger", attn_implementation="sdpa").train()
    weights = {value.untyped_storage().data_ptr() for value in (*lm.parameters(), *lm.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ids = torch.zeros(2, 64, dtype=torch.long)
        hidden = lm.base_model(ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state
    assert hidden.requires_grad
    planned = plan("sft", f"model.path={tmp_path}/larger", "training.activation_checkpointing=none")["memory"][
        "activations"
    ]["most"]
    assert planned == pytest.approx(sum(storage.nbytes() for storage in kept.values()), rel=0.15)


def test_it_warns_and_says_what_to_change(plan, capsys):
    none = "training.activation_checkpointing=none"
    room = card_for(plan("tis_dpo_distill", none)["loading"])
    capsys.readouterr()
    numbers = plan("tis_dpo_distill", "--gpu", room, none)
    printed = capsys.readouterr().out
    assert numbers["fits"] is False and "warning: does not fit" in printed
    for change in ("teacher.quantization=int8", "activation_checkpointing=full", "microbatch_size=1"):
        assert change in printed
    plan("tis_dpo_distill", "--gpu", "0.0005", none)  # too small for the exact teacher, which is read first
    assert "teacher.quantization" not in capsys.readouterr().out


def test_what_is_quantized_is_read_exactly_first(plan):
    """Whole, next to the student. In configs/test_one_card.py that is more than a step takes."""
    exact = plan("score")
    assert (
        plan("score", "teacher.quantization=int8")["loading"] == exact["loading"] == exact["memory"]["teacher"]["most"]
    )
    found = plan("tis_dpo_distill", "teacher.quantization=int8")
    assert found["loading"] == found["memory"]["weights"]["most"] + exact["loading"]
    split = plan("score", "--nproc-per-node", "2", "teacher.placement=shard", "teacher.quantization=nf4")
    assert split["loading"] == 0  # put together in main memory


def test_auto_keeps_what_there_is_room_for(plan):
    """By the plan's own numbers: on a card that has just so much room."""
    kinds = ("none", "selective", "full")
    peaks = {kind: plan("sft", f"training.activation_checkpointing={kind}")["peak"] for kind in kinds}
    for kind in kinds:
        assert plan("sft", "--gpu", card_for(peaks[kind]))["peak"] == peaks[kind]
    assert plan("sft", "--gpu", "0.00001")["peak"] == plan("sft")["peak"] == peaks["full"]


def test_a_run_on_a_gpu_is_settled_by_its_plan(tmp_path, monkeypatch):
    world = single_model.make_world(tmp_path)
    monkeypatch.setattr("prefkd.estimate.memory.own_card", lambda: Card("a small one", 1e-6))
    single_model.run("sft", world, tmp_path / "out", "training.max_steps=1")
    assert read_yaml(tmp_path / "out" / "config.yaml")["training"]["activation_checkpointing"] == "full"


def test_a_run_reads_its_pairs_once(tmp_path, monkeypatch):
    """Its plan does not count the bytes of a score cache, for which it would read and align some."""

    def fail(*_: object) -> None:
        raise AssertionError("pairs are read for the plan")

    world = two_models.make_world(tmp_path)
    monkeypatch.setattr("prefkd.estimate.memory.own_card", lambda: Card("a small one", 1e-6))
    monkeypatch.setattr("prefkd.estimate.plan.load_pairs", fail)
    two_models.run("tis_dpo_distill", world, tmp_path / "out", "training.max_steps=1")
    assert read_yaml(tmp_path / "out" / "config.yaml")["training"]["activation_checkpointing"] == "full"


def test_a_run_that_cannot_be_planned_begins_all_the_same(tmp_path, monkeypatch, caplog):
    def fail(*_: object, **__: object) -> None:
        raise PrefkdError("no state can be counted")

    world = single_model.make_world(tmp_path)
    monkeypatch.setattr("prefkd.estimate.memory.own_card", lambda: Card("one", 24))
    monkeypatch.setattr("prefkd.estimate.settle.make_plan", fail)
    single_model.run("sft", world, tmp_path / "out", "training.max_steps=1")
    assert "activation_checkpointing: full, since there is no plan" in caplog.text


def test_a_recipe_that_names_no_models_begins_on_a_gpu_as_well(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass, field\nfrom pathlib import Path\n"
        "from prefkd.training.settings import TrainingConfig\n\n"
        "@dataclass\nclass Config:\n    out: Path\n"
        "    training: TrainingConfig = field(default_factory=TrainingConfig)\n\n"
        "def main(config):\n    config.out.write_text(config.training.activation_checkpointing)\n"
    )
    (tmp_path / "mine.yaml").write_text(f"out: {tmp_path}/out\n")
    monkeypatch.setattr("prefkd.estimate.memory.own_card", lambda: Card("one", 24))
    assert main(["run", str(tmp_path / "mine.py"), "--config", str(tmp_path / "mine.yaml")]) == 0
    assert (tmp_path / "out").read_text() == "full"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("optimizer.lrr=1",), "optimizer.lrr"),
        (("--gpu", "H10"), "did you mean H100"),
        (("--nproc-per-node", "0"), "leaves no process"),
        (("model.path=nowhere/at/all",), "model.path: no folder nowhere/at/all"),
        (("training.batch_size=0",), "training.batch_size: 0 is too small"),
    ],
)
def test_mistakes_are_said(plan, capsys, arguments, said):
    plan("sft", *arguments, code=2)
    assert said in capsys.readouterr().err


def test_a_copied_recipe_with_fields_of_other_names(plan, world, tmp_path, capsys):
    """Nothing is guessed from names: the recipe's own `load_models` says which models there are."""
    shipped = plan("tis_dpo_distill")
    source = (catalog.RECIPES / "tis_dpo_distill.py").read_text(encoding="utf-8")
    for old, new in {"student": "pupil", "teacher": "coach"}.items():
        source = re.sub(rf"(?<!\.)\b(config|self|run|models)\.{old}\b", rf"\1.{new}", source)
        source = re.sub(rf"^    {old}: ", f"    {new}: ", source, flags=re.MULTILINE)
    source = source.replace("student=load_learner(", "pupil=load_learner(").replace(
        "teacher=teacher,", "coach=teacher,"
    )
    (tmp_path / "mine.py").write_text(source, encoding="utf-8")
    config, out = tmp_path / "mine.yaml", tmp_path / "mine.json"
    models = TWO.replace("student:", "pupil:").replace("teacher:", "coach:")
    config.write_text(SETTINGS.format(world=world, models=(models + TRAINING).format(world=world)))
    command = ["plan", str(tmp_path / "mine.py"), "--config", str(config), "--json", str(out)]
    assert main([*command, "--gpu", card_for(shipped["loading"])]) == 0
    mine = json.loads(out.read_text())
    assert mine["memory"] == shipped["memory"] and mine["scores"] == shipped["scores"]
    assert {model["name"] for model in mine["models"]} == {"pupil", "teacher"}
    assert mine["flops"] == {"pupil": shipped["flops"]["student"], "teacher": shipped["flops"]["teacher"]}
    assert "coach.quantization=int8" in capsys.readouterr().out


def test_adapters_that_are_not_there_yet(plan, tmp_path):
    plan("score", f"teacher.adapter={tmp_path}/later")


def test_a_recipe_without_a_step(world, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(f"output_dir: {tmp_path}/out\ncheckpoints: {{one: {{path: {world}/student}}}}\n")
    assert main(["plan", "evaluate", "--config", str(config)]) == 2
    assert "neither trains nor scores" in capsys.readouterr().err
