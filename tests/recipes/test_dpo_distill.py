"""The recipe through the command line on tiny models: DPO with a reference that reads other tokens of the same text."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from tests.recipes import two_models
from tests.recipes.two_models import assert_same_run, make_world, read_rows, student_logprob, teacher_logprobs

IPO = ("loss=prefkd.method.preference.ipo_loss", "average_logprobs=true")
run = partial(two_models.run, "dpo_distill")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def plain(world, tmp_path_factory) -> tuple[Path, list[dict]]:
    """The run that the others are compared with."""
    out = tmp_path_factory.mktemp("runs") / "plain"
    return out, run(world, out)


def test_loss_and_gradient_are_those_of_the_paper(world, tmp_path):
    """One step on all pairs, written down once more from whole logits of both models."""
    settings = ("training.batch_size=12", "training.microbatch_size=5", "training.max_steps=1")
    metrics = run(world, tmp_path / "out", *settings)
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(world / name, dtype=torch.float32) for name in ("student", "teacher")
    )
    losses = []
    for row in read_rows(world / "pairs.jsonl"):
        margin = 0.0
        for sign, answer in ((1, row["chosen"].strip()), (-1, row["rejected"].strip())):
            with torch.no_grad():
                anchor = teacher_logprobs(world, teacher, row["prompt"], answer).sum()
            margin = margin + sign * (student_logprob(world, student, row["prompt"], answer) - anchor)
        losses.append(-F.logsigmoid(0.1 * margin))
    torch.stack(losses).mean().backward()
    norm = torch.nn.utils.clip_grad_norm_(student.parameters(), 1e9).item()
    assert metrics[1]["loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)
    assert metrics[1]["gradient_norm"] == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize(
    "override",
    ["training.microbatch_size=1", "student.share_prompt=false", "teacher.share_prompt=false",
     "training.activation_checkpointing=full"],
)  # fmt: skip
def test_how_a_batch_is_computed_changes_nothing(world, plain, tmp_path, override):
    out = tmp_path / "out"
    assert_same_run(plain, (out, run(world, out, override)), 2e-5)


def test_weights_that_are_all_1_make_the_other_recipe_this_one(world, plain, tmp_path):
    out = tmp_path / "out"
    metrics = two_models.run("tis_dpo_distill", world, out, "weights.contrast=uniform")
    shared = [{name: line[name] for name in own} for own, line in zip(plain[1], metrics, strict=True)]
    assert_same_run(plain, (out, shared), 5e-6)


def test_other_losses(world, plain, tmp_path):
    for number, overrides in enumerate([IPO, ("loss.label_smoothing=0.1",), ("data.reverse=true",)]):
        metrics = run(world, tmp_path / str(number), *overrides)
        assert math.isfinite(metrics[-1]["loss"]) and metrics[-1]["loss"] != plain[1][-1]["loss"]


def test_ipo_wants_means(world, tmp_path, capsys):
    run(world, tmp_path / "out", IPO[0], code=2)
    assert "average_logprobs: false does not go with ipo_loss" in capsys.readouterr().err
