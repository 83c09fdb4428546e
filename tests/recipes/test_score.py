"""Scores on disk: the numbers are the models', whole shards are never computed twice, every mistake is one line."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from prefkd.cli.main import main
from prefkd.models import frozen as frozen_module
from tests.processes import run_processes
from tests.recipes import single_model
from tests.recipes.two_models import make_world, read_rows, score, teacher_logprobs
from tests.tiny import make_model, write_pairs

SHARDS = ["held_out/shard-00000", "train/shard-00000", "train/shard-00001", "train/shard-00002"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Models, pairs, and two adapters on the teacher: DPO and reversed DPO."""
    folder = make_world(tmp_path_factory.mktemp("world"))
    (folder / "model").symlink_to(folder / "teacher")
    for name, reverse in (("dpo", "false"), ("dpo_reversed", "true")):
        single_model.run("dpo", folder, folder / name, "lora={}", f"data.reverse={reverse}", "optimizer.lr=1.0")
    return folder


@pytest.fixture(scope="module")
def scores(world, tmp_path_factory) -> Path:
    """Scores under two instructions."""
    return score(world, tmp_path_factory.mktemp("runs") / "prompts")


def models(world: Path) -> tuple[str, ...]:
    """DPO and reversed DPO as the contrast."""
    named = [
        f"contrast.{name}={{path: {world}/teacher, adapter: {world}/{run}/adapter, dtype: float32}}"
        for name, run in (("positive", "dpo"), ("negative", "dpo_reversed"))
    ]
    return ("contrast.kind=models", *named)


def read(folder: Path) -> dict[tuple[str, int], dict[str, np.ndarray]]:
    rows = [row for file in sorted(folder.rglob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    return {(Path(row["file"]).name, row["row"]): row for row in rows}


def test_what_is_written(scores):
    assert sorted(str(file.relative_to(scores).with_suffix("")) for file in scores.rglob("*.parquet")) == SHARDS
    rows = read(scores)
    assert len(rows) == 17
    parents = sum(len(row[f"{answer}_reference"]) for row in rows.values() for answer in ("chosen", "rejected"))
    table = pq.read_table(scores / "train")
    numbers = sum(table[name].nbytes for name in table.column_names if name.startswith(("chosen_", "rejected_")))
    assert numbers / parents <= 24
    report = json.loads((scores.parent / "weight_report.json").read_text())
    assert report["pairs"] == 12
    assert (scores.parent / "weight_report.html").read_text().startswith("<!doctype html>")


def test_the_numbers_are_those_of_the_models(world, scores):
    """Sums over whole answers, from whole logits, for the three prompts."""
    teacher = AutoModelForCausalLM.from_pretrained(world / "teacher", dtype=torch.float32)
    rows = read(scores)
    for number, row in enumerate(read_rows(world / "pairs.jsonl"), start=1):
        prompts = {
            "reference": row["prompt"],
            "positive": f"{row['prompt']}\n\nGive a helpful, honest and harmless answer.",
            "negative": f"{row['prompt']}\n\nGive an unhelpful, dishonest and harmful answer.",
        }
        for name, prompt in prompts.items():
            with torch.no_grad():
                expected = teacher_logprobs(world, teacher, prompt, row["chosen"].strip()).sum().item()
            found = sum(rows["pairs.jsonl", number][f"chosen_{name}"])
            assert found == pytest.approx(expected, rel=1e-5), (number, name)


def test_inspect_shows_the_weights(world, scores, tmp_path, capsys):
    command = ["inspect", f"{world}/student", f"{world}/teacher", f"{world}/pairs.jsonl", "--scores", str(scores)]
    assert main([*command, "--html", f"{tmp_path}/page.html", "--json", f"{tmp_path}/numbers.json"]) == 0
    assert "weights that the scores make" in capsys.readouterr().out
    found = json.loads((tmp_path / "numbers.json").read_text())
    report = json.loads((scores.parent / "weight_report.json").read_text())
    assert found["pairs"] == 12 and found["pairs_not_scored"] == 0
    for name in ("weight", "log_ratio", "contrast"):
        assert found["weights"][name] == report[name]
    assert 'class="weighted"' in (tmp_path / "page.html").read_text()


def test_two_adapters_share_one_base_in_memory(world, tmp_path, monkeypatch):
    loaded, load = [], frozen_module.load_causal_lm
    monkeypatch.setattr(
        frozen_module, "load_causal_lm", lambda *args, **kwargs: loaded.append(args) or load(*args, **kwargs)
    )
    rows = read(score(world, tmp_path / "out", *models(world)))
    assert len(loaded) == 1
    model = AutoModelForCausalLM.from_pretrained(world / "teacher", dtype=torch.float32)
    for name, run in (("reference", None), ("positive", "dpo"), ("negative", "dpo_reversed")):
        if run:
            model = AutoModelForCausalLM.from_pretrained(world / "teacher", dtype=torch.float32)
            model = teacher_with_adapter(model, world / run / "adapter")
        pair = read_rows(world / "pairs.jsonl")[3]
        with torch.no_grad():
            expected = teacher_logprobs(world, model, pair["prompt"], pair["rejected"].strip()).sum().item()
        assert sum(rows["pairs.jsonl", 4][f"rejected_{name}"]) == pytest.approx(expected, rel=1e-4)
    ratios = np.concatenate(
        [
            np.subtract(row[f"{a}_positive"], row[f"{a}_negative"])
            for row in rows.values()
            for a in ("chosen", "rejected")
        ]
    )
    assert np.abs(ratios).max() > 0.01


def teacher_with_adapter(model: torch.nn.Module, folder: Path) -> torch.nn.Module:
    from peft import PeftModel

    return PeftModel.from_pretrained(model, folder)


def test_whole_shards_are_kept_and_broken_ones_are_computed_again(world, scores, tmp_path, capsys):
    out = score(world, tmp_path / "out")
    for shard in SHARDS:
        assert pq.read_table(out / f"{shard}.parquet").equals(pq.read_table(scores / f"{shard}.parquet"))
    kept, cut, lost = (out / f"{shard}.parquet" for shard in SHARDS[1:])
    before = kept.stat().st_mtime_ns
    cut.write_bytes(cut.read_bytes()[:-200])
    lost.unlink()
    capsys.readouterr()
    score(world, tmp_path / "out")
    assert "2 of 4 shards" in capsys.readouterr().out
    assert kept.stat().st_mtime_ns == before
    assert all(row == read(scores)[place] for place, row in read(out).items())
    score(world, tmp_path / "out")
    assert "0 of 4 shards" in capsys.readouterr().out


@pytest.mark.parametrize("settings", [("microbatch_tokens=500", "attention=varlen"), ("teacher.placement=shard",)])
def test_two_processes_are_one(world, scores, tmp_path, settings):
    """Also where they share tokens out instead of pairs, and read each pair once for all prompts."""
    out, _ = run_processes(lambda: score(world, tmp_path / "out", *settings))
    assert_same_scores(read(scores), read(out))


def test_a_base_with_two_adapters_is_split(world, tmp_path):
    one = score(world, tmp_path / "one", *models(world))
    split = [f"{name}.placement=shard" for name in ("teacher", "contrast.positive", "contrast.negative")]
    two, _ = run_processes(lambda: score(world, tmp_path / "two", *models(world), *split))
    assert_same_scores(read(one), read(two))


def assert_same_scores(one: dict, other: dict) -> None:
    for place, row in one.items():
        for name, value in row.items():
            if isinstance(value, list):
                assert other[place][name] == pytest.approx(value, rel=1e-5, abs=1e-5)


def test_without_contrast_there_is_the_reference_alone(world, scores, tmp_path):
    out = score(world, tmp_path / "out", "contrast.kind=none")
    assert {name for name in pq.read_table(out / "train").column_names if name.startswith("chosen")} == {
        "chosen_reference"
    }
    assert not (tmp_path / "out" / "weight_report.html").exists()
    for place, row in read(out).items():
        assert row["chosen_reference"] == pytest.approx(read(scores)[place]["chosen_reference"], rel=1e-5, abs=1e-5)


def test_other_settings_do_not_go_into_a_folder_of_scores(world, tmp_path, capsys):
    score(world, tmp_path / "out")
    score(world, tmp_path / "out", "data.max_length=60", "data.max_prompt_length=30", code=2)
    message = capsys.readouterr().err
    assert "data.max_length: is 60 here, but was" in message and "name another output_dir" in message
    score(world, tmp_path / "out", "contrast.negative_prompt={prompt} Lie.", code=2)
    message = capsys.readouterr().err
    assert "contrast.negative_prompt" in message and "content" not in message


def test_an_adapter_of_another_base(world, tmp_path, capsys):
    make_model(tmp_path / "other", "llama", "byte_level", seed=5, hidden_size=48)
    positive, negative = models(world)[1:]
    other = negative.replace(f"path: {world}/teacher", f"path: {tmp_path}/other")
    score(world, tmp_path / "out", "contrast.kind=models", positive, other, code=2)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "contrast.negative.adapter" in line and "does not fit" in line


def test_models_of_another_tokenizer(world, tmp_path, capsys):
    student = f"contrast.negative={{path: {world}/student, dtype: float32}}"
    score(world, tmp_path / "out", "contrast.kind=models", models(world)[1], student, code=2)
    assert "has a different tokenizer from the teacher" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("contrast.kind=models",), "contrast.positive: missing; kind: models compares two"),
        (("contrast.positive_prompt=Be good.",), "lacks {prompt}"),
        (("pairs_per_shard=0",), "pairs_per_shard: 0 is too small"),
        (("microbatch_tokens=5",), "microbatch_tokens: the longest row has "),
        (("contrast.kind=none", "contrast.positive={path: x/y}"), "contrast.positive: goes with kind: models only"),
    ],
)
def test_mistakes_are_one_line(world, tmp_path, capsys, overrides, message):
    score(world, tmp_path / "out", *overrides, code=2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_bad_row_is_named(world, tmp_path, capsys):
    write_pairs(tmp_path / "pairs.jsonl", 6)
    with (tmp_path / "pairs.jsonl").open("a") as file:
        file.write('{"prompt": "Hi", "chosen": "", "rejected": "No."}\n')
    score(world, tmp_path / "out", f"data.source={tmp_path}/pairs.jsonl", code=2)
    assert "row 7 of" in capsys.readouterr().err
