"""The recipe, run through the command line on tiny models: every loss is what it is on paper, full or with LoRA."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor
from transformers import AutoTokenizer

from prefkd.models.logprob_model import LogprobModel
from tests.processes import run_processes
from tests.recipes.single_model import (
    answer_logprobs,
    assert_same_run,
    encode,
    load_model,
    make_world,
    read_rows,
    run,
    saved_weights,
)

IPO = ("loss=prefkd.method.preference.ipo_loss", "average_logprobs=true")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def plain(world, tmp_path_factory) -> tuple[Path, list[dict]]:
    """The run that the others are compared with."""
    out = tmp_path_factory.mktemp("runs") / "plain"
    return out, run("dpo", world, out)


@pytest.fixture(scope="module")
def lora(world, tmp_path_factory) -> tuple[Path, list[dict]]:
    out = tmp_path_factory.mktemp("runs") / "lora"
    return out, run("dpo", world, out, "lora={}")


def log_ratios(lm: torch.nn.Module, world: Path, file: str, *, average: bool = False) -> Tensor:
    """log pi(chosen) - log pi(rejected) of each pair of a file, by other means than prefkd's."""
    found = []
    for row in read_rows(world / file):
        chosen, rejected = (
            answer_logprobs(lm, *encode(world, row["prompt"], row[answer])) for answer in ("chosen", "rejected")
        )
        found.append(chosen.mean() - rejected.mean() if average else chosen.sum() - rejected.sum())
    return torch.stack(found)


@pytest.mark.parametrize("kind", ["plain", "lora"])
def test_it_trains_from_ln_2(kind, request):
    out, metrics = request.getfixturevalue(kind)
    assert [line["step"] for line in metrics] == [0, 1, 2, 3]
    assert all(math.isfinite(value) for line in metrics for value in line.values())
    assert metrics[0]["held_out/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics[1]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics[-1]["held_out/loss"] != metrics[0]["held_out/loss"]
    assert [folder.name for folder in out.iterdir() if folder.is_dir()] == [{"plain": "model"}.get(kind, "adapter")]


def test_the_saved_model_is_the_trained_one(world, plain):
    with torch.no_grad():
        start = log_ratios(load_model(world / "model"), world, "held_out.jsonl")
        after = log_ratios(load_model(plain[0] / "model"), world, "held_out.jsonl")
    assert plain[1][-1]["held_out/loss"] == pytest.approx(-F.logsigmoid(0.1 * (after - start)).mean().item(), rel=1e-4)


def test_the_saved_adapter_is_the_trained_one_and_the_reference_stays_the_base(world, lora):
    base = load_model(world / "model")
    with torch.no_grad():
        start = log_ratios(base, world, "held_out.jsonl")
        after = log_ratios(PeftModel.from_pretrained(base, lora[0] / "adapter"), world, "held_out.jsonl")
    assert (after - start).abs().max() > 0.01
    assert lora[1][-1]["held_out/loss"] == pytest.approx(-F.logsigmoid(0.1 * (after - start)).mean().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("overrides", "loss"),
    [
        ((), lambda h, _: -F.logsigmoid(0.1 * h)),
        (("loss.label_smoothing=0.2",), lambda h, _: -0.8 * F.logsigmoid(0.1 * h) - 0.2 * F.logsigmoid(-0.1 * h)),
        (("loss.reference_free=true",), lambda _, policy: -F.logsigmoid(0.1 * policy)),
        (IPO, lambda h, _: (h - 5) ** 2),
    ],
    ids=["dpo", "cdpo", "reference_free", "ipo"],
)
def test_the_loss_is_that_of_the_paper(world, tmp_path, overrides, loss):
    """Two steps of gradient descent on all pairs, written down once more from whole logits."""
    settings = ("training.batch_size=12", "training.microbatch_size=5", "training.epochs=2", "optimizer.lr=0.01")
    metrics = run("dpo", world, tmp_path / "out", *settings, *overrides)
    model, average = load_model(world / "model"), overrides == IPO
    with torch.no_grad():
        start = log_ratios(model, world, "pairs.jsonl", average=average)
    for step in (1, 2):
        policy = log_ratios(model, world, "pairs.jsonl", average=average)
        expected = loss(policy - start, policy).mean()
        model.zero_grad()
        expected.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9).item()
        assert metrics[step]["loss"] == pytest.approx(expected.item(), rel=1e-4)
        assert metrics[step]["gradient_norm"] == pytest.approx(norm, rel=1e-3)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.01 * parameter.grad


@pytest.mark.parametrize(
    "override",
    ["training.microbatch_size=1", "training.microbatch_size=3", "model.share_prompt=false", "training.chunk_size=1",
     "training.activation_checkpointing=full", "training.activation_checkpointing=selective"],
)  # fmt: skip
def test_how_a_batch_is_computed_changes_nothing(world, plain, lora, tmp_path, override):
    full, adapter = tmp_path / "full", tmp_path / "adapter"
    assert_same_run(plain, (full, run("dpo", world, full, override)), 2e-5)
    assert_same_run(lora, (adapter, run("dpo", world, adapter, "lora={}", override)), 2e-5)


def test_adapters_on_a_base_of_half_precision_train_in_two_processes(world, tmp_path):
    """FSDP2 then holds weights of two types in one group."""
    model = load_model(world / "model").bfloat16()
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(world / "model").save_pretrained(tmp_path / "model")
    settings = (f"model.path={tmp_path}/model", "lora={}", "training.precision=bfloat16", "training.microbatch_size=2")
    one = run("dpo", world, tmp_path / "one", *settings)
    two, _ = run_processes(lambda: run("dpo", world, tmp_path / "two", *settings))
    assert one[0]["held_out/loss"] == two[0]["held_out/loss"] == pytest.approx(math.log(2), abs=1e-6)
    for left, right in zip(one, two, strict=True):
        for name in left.keys() & {"loss", "held_out/loss", "gradient_norm"}:
            assert left[name] == pytest.approx(right[name], rel=0.05)
    assert all(weight.dtype == torch.float32 for weight in saved_weights(tmp_path / "two").values())


def test_reverse_is_swapping_the_answers(world, tmp_path, capsys):
    reversed_run = run("dpo", world, tmp_path / "reversed", "data.reverse=true")
    assert "prefers the better answer" in capsys.readouterr().out
    for name in ("pairs.jsonl", "held_out.jsonl"):
        rows = read_rows(world / name)
        swapped = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in swapped), encoding="utf-8")
    files = (f"data.source={tmp_path}/pairs.jsonl", f"data.held_out_source={tmp_path}/held_out.jsonl")
    assert_same_run(
        (tmp_path / "reversed", reversed_run),
        (tmp_path / "swapped", run("dpo", world, tmp_path / "swapped", *files)),
        0,
    )


@pytest.mark.parametrize("adapter", [(), ("lora={}",)], ids=["full", "lora"])
def test_reference_free_reads_no_reference(world, tmp_path, monkeypatch, adapter):
    calls, forward = [], LogprobModel.forward
    monkeypatch.setattr(LogprobModel, "forward", lambda self, *args: calls.append(self) or forward(self, *args))
    run("dpo", world, tmp_path / "out", "loss.reference_free=true", "training.max_steps=1", *adapter)
    # A look at the model's own logits, one step, and three evaluations of two microbatches.
    assert len(calls) == 1 + 1 + 3 * 2 and len(set(map(id, calls))) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss=prefkd.method.preference.ipo_loss", "average_logprobs: false does not go with ipo_loss"),
        ("lora.rank=0", "lora.rank: 0 is too small"),
        ("lora.target_modules=[q_projj]", "is named q_projj; did you mean q_proj?"),
        ("lora.target_modules=[lm_head]", "lm_head is the output layer"),
    ],
)
def test_mistakes_are_one_line(world, tmp_path, capsys, override, message):
    run("dpo", world, tmp_path / "out", override, code=2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
