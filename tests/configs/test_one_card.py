"""The configs for one card of 24 GB: planned at full size, and run on the same models shrunk."""

import json
import math
from pathlib import Path

import pytest

from prefkd import catalog
from prefkd.cli.main import main
from prefkd.estimate.memory import GIB
from tests.configs.headers import downloads, header, runs
from tests.configs.pairs import PAIRS
from tests.configs.real_models import REAL
from tests.configs.shrunk import make_shrunk
from tests.configs.test_full_size_pairs import SHORT, ultrafeedback

NAME = "mistral_7b_to_qwen2.5_1.5b_24gb"
CONFIGS = {"score": "score", "tis_dpo_distill": "tis_dpo_distill", "tis_dpo_distill_scores": "tis_dpo_distill"}
# What REAL leaves out, since it is shrunk there.
SIZES = {
    "mistralai/Mistral-7B-Instruct-v0.3": {"intermediate_size": 14336, "num_hidden_layers": 32},
    "Qwen/Qwen2.5-1.5B-Instruct": {"intermediate_size": 8960, "num_hidden_layers": 28},
}


def test_the_header_names_the_models_and_what_is_run():
    assert downloads(header(NAME)) == list(PAIRS["mistral_7b_to_qwen2.5_1.5b"])
    assert {run.config for run in runs(header(NAME))} == {f"{NAME}/{config}" for config in CONFIGS}


def test_it_fits_at_full_size(tmp_path, monkeypatch, capsys):
    """Under 22 GiB with pairs that fill `max_length`, and what its header says in GB."""
    monkeypatch.chdir(tmp_path)
    for hub_id, sizes in SIZES.items():
        folder = tmp_path / "models" / hub_id.rpartition("/")[2]
        folder.mkdir(parents=True)
        settings = REAL[hub_id][1] | sizes | {"torch_dtype": "bfloat16"}
        (folder / "config.json").write_text(json.dumps(settings))
    command = ["plan", "tis_dpo_distill", "--config", f"{NAME}/tis_dpo_distill", "--gpu", "RTX-4090"]
    assert main([*command, "--json", "plan.json"]) == 0
    plan = json.loads(Path("plan.json").read_text())
    assert "512 tokens of prompt and two answers of 512" in plan["batch"]
    assert plan["fits"] and plan["peak"] < 22 * GIB
    in_step = sum(need["at_peak"] for need in plan["memory"].values())
    assert f"  tis_dpo_distill         {math.ceil(in_step / 1e9)} GB: teacher 4.1, student 3.2, " in header(NAME)
    assert plan["peak"] == plan["loading"] > in_step and "while models load" in capsys.readouterr().out
    assert f"before, while the models load, {math.ceil(plan['loading'] / 1e9)} GB: the exact teacher" in header(NAME)
    gigabytes = {kind: need["most"] / 1e9 for kind, need in plan["memory"].items()}
    assert gigabytes["teacher"] == pytest.approx(4.1, abs=0.06) and gigabytes["weights"] == pytest.approx(3.2, abs=0.06)


def test_they_run_on_shrunk_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("prefkd.data.sources.load_dataset", ultrafeedback)
    for hub_id in SIZES:
        make_shrunk(hub_id, tmp_path / "models" / hub_id.rpartition("/")[2])
    for config, recipe in CONFIGS.items():
        assert main(["validate", f"{NAME}/{config}"]) == 0
        assert main(["run", recipe, "--config", f"{NAME}/{config}", *(SHORT if recipe != "score" else ())]) == 0
        if recipe == "score":
            continue
        out = Path("runs") / NAME / config
        metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert metrics[-1]["step"] == 2 and metrics[-1]["gradient_norm"] > 0
        assert all(math.isfinite(value) for line in metrics for value in line.values())
        assert (out / "adapter" / "adapter_model.safetensors").is_file()
    assert set(CONFIGS) == {config.partition("/")[2] for config in catalog.configs() if config.startswith(f"{NAME}/")}
