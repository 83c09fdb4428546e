"""What a step takes, counted: by hand for one batch, and in the metrics of runs."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from prefkd.data.collate import collate_pairs
from prefkd.data.steps import Microbatch
from prefkd.models.flops import Pass, training_flops
from prefkd.models.logprob_model import LogprobModel
from prefkd.ranks import Ranks
from prefkd.training import meter as meters
from prefkd.training.meter import Meter, trained_weights
from tests.models.architectures import random_pairs
from tests.recipes import single_model, two_models
from tests.tiny import make_model


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return two_models.make_world(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("share_prompt", [True, False])
def test_a_step_is_counted_as_its_mask_lets_it_through(tmp_path, monkeypatch, share_prompt):
    monkeypatch.setattr(meters, "peak_flops", lambda device: 1e12)
    folder = make_model(tmp_path / "model", "llama", "byte_level")
    model = LogprobModel(AutoModelForCausalLM.from_pretrained(folder))
    rows = random_pairs(100, seed=3)
    batch = collate_pairs(rows, Microbatch([0, 1, 2]), share_prompt=(share_prompt, share_prompt)).student
    config = SimpleNamespace(output_dir=tmp_path, training=SimpleNamespace(profile=False))
    meter = Meter(config, SimpleNamespace(model=model, ranks=Ranks(0, 1, torch.device("cpu"))))  # pyright: ignore
    model(batch)  # before the step
    began = meter.begin()
    model(batch)
    model(batch)
    monkeypatch.setattr(meters.time, "perf_counter", lambda: began + 2.0)
    found = meter.of_step(began)
    tokens = attended = targets = 0
    found_rows: list[Any] = [rows[number] for number in range(3)]
    for row in found_rows:
        prompt, answers = len(row["student_prompt"]), [len(row[f"student_{name}"]) for name in ("chosen", "rejected")]
        tokens += prompt * (1 if share_prompt else 2) + sum(answers)
        whole = sum((prompt + answer) * (prompt + answer + 1) // 2 for answer in answers)
        attended += 2 * (whole - (prompt * (prompt + 1) // 2 if share_prompt else 0))  # two layers
        targets += sum(answers)
    assert found["processed_tokens_per_second"] == pytest.approx(2 * tokens / 2.0)
    trained, head = trained_weights(model), 32 * model.lm.config.vocab_size
    work = training_flops(Pass(trained, tokens, attended, targets, 32, head), trained=trained, recomputed=False)
    assert found["mfu"] == pytest.approx(2 * work / 2.0 / 1e12)
    assert "peak_memory_gib" not in found  # of a GPU alone


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA L4", 121e12),
        ("Tesla T4", 65e12),
        ("NVIDIA L40", None),
        ("NVIDIA A10G", None),
        ("NVIDIA RTX A1000", None),
    ],
)
def test_a_gpu_is_known_by_whole_words_of_its_name(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert meters.peak_flops(torch.device("cuda")) == peak


def test_a_run_says_what_its_models_read(world, tmp_path):
    """The teacher reads each answer thrice here, under its own prompt and under two instructions."""
    metrics = two_models.run("tis_dpo_distill", world, tmp_path / "out", "training.max_steps=2")
    for line in metrics[1:]:
        assert line["processed_tokens_per_second"] > 3 * line["tokens_per_second"]
        assert "mfu" not in line and 0 <= line["waiting_for_data"] < 1


def test_a_trace_is_written(tmp_path):
    world = single_model.make_world(tmp_path)
    settings = ("training.profile=true", "training.epochs=2", "training.evaluate_every=9", "training.max_steps=5")
    single_model.run("sft", world, tmp_path / "out", *settings)
    (trace,) = (tmp_path / "out" / "profile").glob("*.json")
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert "aten::mm" in names and "ProfilerStep#4" in names
