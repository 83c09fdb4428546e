"""The recipe, run through the command line on tiny models: its loss is transformers' own in every way of batching."""

import json
import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from tests.recipes.single_model import (
    assert_same_run,
    encode,
    load_model,
    make_world,
    read_rows,
    run,
    saved_weights,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    world = make_world(tmp_path_factory.mktemp("world"))
    for name in ("pairs.jsonl", "held_out.jsonl"):
        rows = [row | {"w": i % 3} for i, row in enumerate(read_rows(world / name))]
        (world / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return world


@pytest.fixture(scope="module")
def plain(world, tmp_path_factory) -> tuple[Path, list[dict]]:
    """The run that the others are compared with."""
    out = tmp_path_factory.mktemp("runs") / "plain"
    return out, run("sft", world, out)


@pytest.fixture(scope="module")
def lora(world, tmp_path_factory) -> tuple[Path, list[dict]]:
    out = tmp_path_factory.mktemp("runs") / "lora"
    return out, run("sft", world, out, "lora={}")


def transformers_loss(
    lm: torch.nn.Module, world: Path, file: str, answer: str = "chosen", *, weighted: bool = False
) -> torch.Tensor:
    """Mean over all target tokens of a file, by the model's own loss of one row at a time."""
    losses, counts = [], []
    for row in read_rows(world / file):
        before, after = encode(world, row["prompt"], row[answer])
        labels = torch.tensor([[-100] * len(before) + after])
        losses.append(lm(input_ids=torch.tensor([before + after]), labels=labels).loss)
        counts.append(len(after) * (row["w"] if weighted else 1))
    return sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)


def test_it_trains_and_writes_what_it_says(world, plain):
    out, metrics = plain
    assert [line["step"] for line in metrics] == [0, 1, 2, 3]
    assert metrics[-1]["held_out/loss"] < metrics[0]["held_out/loss"]
    assert metrics[-1]["held_out/perplexity"] == pytest.approx(math.exp(metrics[-1]["held_out/loss"]))
    after = transformers_loss(load_model(out / "model"), world, "held_out.jsonl").item()
    assert metrics[-1]["held_out/loss"] == pytest.approx(after, rel=1e-5)


@pytest.mark.parametrize(("recipe", "count"), [("sft", 12), ("dpo", 24)])
def test_answers_that_are_cut_are_said(world, tmp_path, capsys, recipe, count):
    lengths = ["data.max_length=40", "data.max_prompt_length=34", "training.max_steps=1"]
    run(recipe, world, tmp_path / "out", *lengths)
    printed = " ".join(capsys.readouterr().out.split())
    assert f"0 dropped, {count} answers and 4 prompts cut to max_length, 0 bad rows skipped" in printed
    report = json.loads((tmp_path / "out" / "data_report.json").read_text())
    assert (report["pairs"], report["answers_cut"], report["formats"]) == (12, count, {"standard": 17})


def test_it_says_which_answers_are_learned(world, tmp_path, capsys):
    for number, (settings, said) in enumerate(
        [
            ([], "answers chosen"),
            (["data.reverse=true"], "answers REVERSED: rejected"),
            (["data.reverse=true", "target=rejected"], "answers REVERSED: chosen"),
        ]
    ):
        run("sft", world, tmp_path / f"out{number}", "training.max_steps=1", *settings)
        assert f"{said} data 12 pairs" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("answer", "weighted"), [("chosen", False), ("rejected", True)])
def test_the_loss_is_that_of_transformers(world, tmp_path, capsys, answer, weighted):
    settings = ["training.batch_size=12", "training.microbatch_size=5", f"target={answer}"]
    settings += ["data.weight=w", "data.margin=w"] if weighted else []
    metrics = run("sft", world, tmp_path / "out", *settings)
    assert ("not used: nothing is compared" in capsys.readouterr().out) == weighted  # the margins
    model = load_model(world / "model")
    held_out = transformers_loss(model, world, "held_out.jsonl", answer, weighted=weighted).item()
    assert metrics[0]["held_out/loss"] == pytest.approx(held_out, rel=1e-5)
    loss = transformers_loss(model, world, "pairs.jsonl", answer, weighted=weighted)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9).item()
    assert metrics[1]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert metrics[1]["gradient_norm"] == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize(
    "override",
    ["training.microbatch_size=1", "training.microbatch_size=3", "training.chunk_size=1",
     "training.activation_checkpointing=full"],
)  # fmt: skip
def test_how_a_batch_is_computed_changes_nothing(world, plain, lora, tmp_path, override):
    full, adapter = tmp_path / "full", tmp_path / "adapter"
    assert_same_run(plain, (full, run("sft", world, full, override)), 2e-5)
    assert_same_run(lora, (adapter, run("sft", world, adapter, "lora={}", override)), 2e-5)


def test_an_adapter_starts_at_its_base_and_is_what_was_trained(world, plain, lora):
    out, metrics = lora
    assert metrics[0]["held_out/loss"] == plain[1][0]["held_out/loss"]
    assert not (out / "model").exists()
    assert all(weight.dtype == torch.float32 for weight in saved_weights(out).values())
    trained = PeftModel.from_pretrained(load_model(world / "model"), out / "adapter")
    after = transformers_loss(trained, world, "held_out.jsonl").item()
    assert metrics[-1]["held_out/loss"] == pytest.approx(after, rel=1e-5)
    assert after < metrics[0]["held_out/loss"]
