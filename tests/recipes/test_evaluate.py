"""The recipe, run through the command line on tiny models: numbers, intervals, going on, and checkpoints that fail."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

from prefkd.evaluation import preferences
from tests.processes import run_processes
from tests.recipes import single_model
from tests.recipes.evaluations import pick, run_evaluation, table
from tests.recipes.two_models import read_rows, student_logprob
from tests.tiny import make_model, write_pairs

METRICS = ["logprob_accuracy", "logprob_per_token_accuracy", "reward_accuracy"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A model of one kind before and after DPO, full and as an adapter, one of another kind, and pairs."""
    folder = single_model.make_world(tmp_path_factory.mktemp("world"))
    make_model(folder / "other", "qwen2", "metaspace", seed=1)
    (folder / "student").symlink_to(folder / "other")
    rows = read_rows(write_pairs(folder / "pairs.jsonl", 12))
    texts = (json.dumps(row | {"kind": ("short", "long")[number % 2]}) for number, row in enumerate(rows))
    (folder / "pairs.jsonl").write_text("\n".join(texts) + "\n")
    single_model.run("dpo", folder, folder / "dpo", "optimizer.lr=0.3")
    single_model.run("dpo", folder, folder / "lora", "lora={}", "optimizer.lr=1.0")
    return folder


def evaluate(world: Path, out: Path, *overrides: str, **how) -> dict:
    settings = f"""
        checkpoints:
          base: {{path: {world}/model, dtype: float32}}
          dpo: {{path: {world}/dpo/model, dtype: float32}}
          lora: {{path: {world}/model, adapter: {world}/lora/adapter, dtype: float32}}
          other: {{path: {world}/other, dtype: float32}}
        baseline: base
        reference: base
        preferences: {{data: {{pairs: {{source: {world}/pairs.jsonl, by: kind}}}}, microbatch_size: 4}}
        """
    return run_evaluation(settings, out, *overrides, **how)


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory) -> Path:
    """A finished evaluation, which tests may copy."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    evaluate(world, out)
    return out


def logprobs(world: Path, checkpoint: str) -> np.ndarray:
    """(pairs, chosen and rejected, sum and tokens), by transformers alone."""
    if checkpoint == "other":
        lm = single_model.load_model(world / "other")
    else:
        lm = single_model.load_model(world / ("dpo/model" if checkpoint == "dpo" else "model"))
    if checkpoint == "lora":
        lm = PeftModel.from_pretrained(lm, world / "lora/adapter")
    found = []
    for row in read_rows(world / "pairs.jsonl"):
        for answer in (row["chosen"], row["rejected"]):
            with torch.no_grad():
                if checkpoint == "other":
                    found.append((student_logprob(world, lm, row["prompt"], answer).item(), np.nan))
                else:
                    before, after = single_model.encode(world, row["prompt"], answer)
                    found.append((single_model.answer_logprobs(lm, before, after).sum().item(), len(after)))
    return np.array(found).reshape(-1, 2, 2)


def test_the_numbers_are_those_of_the_models(world, finished):
    base = logprobs(world, "base")[:, :, 0]
    for checkpoint in ("base", "dpo", "lora", "other"):
        expected = logprobs(world, checkpoint)
        rows = {row["row"]: row for row in read_rows(finished / f"preferences/pairs/{checkpoint}.jsonl")}
        found = np.array([[rows[i + 1][f"{a}_logprob"] for a in ("chosen", "rejected")] for i in range(len(rows))])
        np.testing.assert_allclose(found, expected[:, :, 0], rtol=1e-5)
        chosen, rejected = expected[:, :, 0].T
        accuracies = {"logprob_accuracy": chosen > rejected}
        if checkpoint != "other":
            means = expected[:, :, 0] / expected[:, :, 1]
            accuracies["logprob_per_token_accuracy"] = means[:, 0] > means[:, 1]
        if checkpoint != "base":
            accuracies["reward_accuracy"] = chosen - base[:, 0] > rejected - base[:, 1]
        for metric, right in accuracies.items():
            row = pick(table(finished), checkpoint=checkpoint, metric=metric, subset="")
            assert row["value"] == pytest.approx(right.mean())
            assert row["low"] <= row["value"] <= row["high"] and row["count"] == len(right)
            for subset in ("short", "long"):
                part = right[np.arange(len(right)) % 2 == (subset == "long")]
                assert pick(table(finished), checkpoint=checkpoint, metric=metric, subset=subset)[
                    "value"
                ] == pytest.approx(part.mean())


def test_rewards_are_measured_from_the_reference(finished):
    rewards = [row["checkpoint"] for row in table(finished)["rows"] if row["metric"] == "reward_accuracy"]
    assert sorted(set(rewards)) == ["dpo", "lora", "other"]


def test_differences_to_the_baseline(finished):
    found = table(finished)
    base, dpo = (pick(found, checkpoint=name, metric="logprob_accuracy", subset="") for name in ("base", "dpo"))
    assert base["difference"] is None
    assert dpo["difference"] == pytest.approx(dpo["value"] - base["value"])
    assert dpo["difference_low"] <= dpo["difference"] <= dpo["difference_high"]


def test_all_forms_of_the_table_say_the_same(finished):
    rows = table(finished)["rows"]
    with (finished / "table.csv").open(encoding="utf-8") as file:
        cells = list(csv.DictReader(file))
    assert [float(cell["value"]) for cell in cells] == [row["value"] for row in rows]
    lines = (finished / "table.md").read_text().splitlines()
    assert len(lines) == len(rows) + 2 and lines[1].startswith("| --- |")
    assert all(f"{row['value'] * 100:.1f} % [" in line for row, line in zip(rows, lines[2:], strict=True))
    assert [row["checkpoint"] for row in rows[:4]] == ["base", "dpo", "lora", "other"]


def test_what_is_finished_is_not_read_again(world, finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "out")
    monkeypatch.setattr("prefkd.evaluation.checkpoints.load_causal_lm", lambda *args, **kwargs: pytest.fail("loaded"))
    assert evaluate(world, tmp_path / "out")["rows"] == table(finished)["rows"]


def test_an_interrupted_run_goes_on(world, finished, tmp_path, monkeypatch):
    add, calls = preferences.Records.add, []

    def killed_at_the_fifth(records, rows):
        calls.append(records.path.stem)
        if len(calls) == 5:
            raise KeyboardInterrupt
        add(records, rows)

    monkeypatch.setattr(preferences.Records, "add", killed_at_the_fifth)
    evaluate(world, tmp_path / "out", code=130)
    torn = tmp_path / "out/preferences/pairs/dpo.jsonl"
    torn.write_text(torn.read_text() + '{"key": "pai')
    monkeypatch.setattr(
        preferences.Records, "add", lambda records, rows: calls.append(records.path.stem) or add(records, rows)
    )
    assert evaluate(world, tmp_path / "out")["rows"] == table(finished)["rows"]
    assert calls.count("base") == 3 and calls.count("dpo") == 4  # of three microbatches each, one was interrupted
    for name in ("base", "dpo"):
        file = f"preferences/pairs/{name}.jsonl"
        assert (tmp_path / "out" / file).read_bytes() == (finished / file).read_bytes()


def test_a_changed_model_or_setting_is_read_again(world, finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "out")
    shutil.copytree(world / "dpo/model", tmp_path / "model")
    evaluate(world, tmp_path / "out", f"checkpoints.dpo.path={tmp_path}/model")
    before = (tmp_path / "out/preferences/pairs/dpo.jsonl").stat().st_mtime_ns
    make_model(tmp_path / "model", "llama", "byte_level", seed=9)
    changed = evaluate(world, tmp_path / "out", f"checkpoints.dpo.path={tmp_path}/model")
    assert (tmp_path / "out/preferences/pairs/dpo.jsonl").stat().st_mtime_ns > before
    assert changed["rows"] != table(finished)["rows"]
    kept = (tmp_path / "out/preferences/pairs/base.jsonl").read_bytes()
    assert kept == (finished / "preferences/pairs/base.jsonl").read_bytes()


def test_a_quantized_checkpoint_is_read_as_such(world, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "out")
    assert evaluate(world, tmp_path / "out", "checkpoints.other.quantization=int8")["failures"] == []
    for name, same in (("base", True), ("other", False)):
        one, two = (out / f"preferences/pairs/{name}.jsonl" for out in (finished, tmp_path / "out"))
        assert (one.read_text() == two.read_text()) is same


def test_without_its_adapter_a_checkpoint_is_read_again(world, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "out")
    found = evaluate(world, tmp_path / "out", "~checkpoints.lora.adapter")
    for name in ("logprob_accuracy", "logprob_per_token_accuracy"):
        base, lora = (pick(found, checkpoint=one, metric=name, subset="")["value"] for one in ("base", "lora"))
        assert base == lora
    files = [tmp_path / f"out/preferences/pairs/{name}.jsonl" for name in ("base", "lora")]
    assert files[0].read_text() == files[1].read_text()


def test_without_the_models_the_table_can_be_made_again(world, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "out")
    gone = world / "dpo"
    gone.rename(world / "moved")
    try:
        assert evaluate(world, tmp_path / "out", "resamples=500")["failures"] == []
    finally:
        (world / "moved").rename(gone)


def test_a_failing_checkpoint_does_not_lose_the_others(world, finished, tmp_path, capsys):
    shutil.copytree(world / "other", tmp_path / "broken")
    weights = tmp_path / "broken/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:900])
    out = tmp_path / "out"
    found = evaluate(world, out, "checkpoints.dpo.path=nowhere", f"checkpoints.other.path={tmp_path}/broken", code=2)
    printed = capsys.readouterr()
    assert "error: 2 parts failed (dpo, other)" in printed.err and "Traceback" not in printed.err
    assert [(failure["checkpoint"], failure["task"]) for failure in found["failures"]] == [
        ("dpo", "pairs"),
        ("other", "pairs"),
    ]
    assert "no folder nowhere" in found["failures"][0]["reason"]
    assert "cannot load the model" in found["failures"][1]["reason"]
    for name in ("base", "lora"):
        rows = [row for row in table(finished)["rows"] if row["checkpoint"] == name]
        assert [row for row in found["rows"] if row["checkpoint"] == name] == rows
    assert "failed: dpo, pairs: path: no folder nowhere" in (out / "table.md").read_text()
    assert ",no folder" not in (out / "table.csv").read_text() and "nowhere" in (out / "table.csv").read_text()


def test_two_processes_are_one(world, finished, tmp_path):
    found, _ = run_processes(lambda: evaluate(world, tmp_path / "out", "preferences.microbatch_tokens=500"))
    assert found["rows"] == table(finished)["rows"]


def test_the_held_out_part_is_that_of_training(world, tmp_path):
    held_out = "{source: %s/pairs.jsonl, part: held_out, held_out_fraction: 0.3, seed: 4}" % world  # noqa: UP031
    evaluate(world, tmp_path / "out", f"preferences.data={{mine: {held_out}}}", "~checkpoints.other")
    from prefkd.data.pairs import DataConfig, load_pairs

    pairs = load_pairs(DataConfig(f"{world}/pairs.jsonl", held_out_fraction=0.3, seed=4)).held_out
    rows = read_rows(tmp_path / "out/preferences/mine/base.jsonl")
    assert sorted(row["row"] for row in rows) == sorted(pairs["row"])


def test_truncation_is_told(world, tmp_path):
    found = evaluate(
        world,
        tmp_path / "out",
        "preferences.data.pairs.max_length=60",
        "preferences.data.pairs.max_prompt_length=40",
    )
    assert any("pairs are truncated to 60 tokens" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("baseline=bse",), "baseline: bse is not a checkpoint; did you mean base?"),
        (("checkpoints.base.pth=x",), "checkpoints.base.pth: unknown key; did you mean path?"),
        (("checkpoints.base.placement=shard",), "checkpoints.base.placement: shard is for teachers"),
        (("checkpoints.base=x",), "checkpoints.base: 'x' is not a section of keys and values"),
        (("checkpoints.new={}",), "checkpoints.new.path: missing; give the folder or the Hub id of a model"),
        (("checkpoints.base.template=poem",), "checkpoints.base.template: 'poem' is not one of auto, chat, plain"),
        (("checkpoints.base.tokenizer=x/y",), "checkpoints.base.tokenizer: goes with server only"),
        (("checkpoints={a b: {path: x/y}}",), "checkpoints.a b: is the name of files as well"),
        (
            ("preferences.data.pairs.source=nowhere.jsonl",),
            "preferences.data.pairs.source: nowhere.jsonl does not exist",
        ),
        (
            ("preferences.data.pairs.held_out_limit=3",),
            "preferences.data.pairs.held_out_limit: goes with part: held_out",
        ),
        (("preferences.data.pairs.by=knd",), "there is no field knd; did you mean kind?"),
        (("preferences.data={}",), "preferences.data: names no pairs"),
        (("~preferences",), "preferences: there is nothing to evaluate"),
        (("resamples=3",), "resamples: 3 is too small"),
    ],
)
def test_mistakes_are_one_line(world, tmp_path, capsys, overrides, message):
    evaluate(world, tmp_path / "out", *overrides, code=2)
    printed = capsys.readouterr().err
    assert message in printed and "Traceback" not in printed
    assert not (tmp_path / "out").exists()
