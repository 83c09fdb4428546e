"""The recipe through the command line on tiny models: it trains, and no way of batching changes what it computes."""

import json
import math
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefkd.cli.main import main
from tests.recipes import two_models
from tests.recipes.two_models import assert_same_run, make_world, read_rows, student_logprob, weights


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


run = partial(two_models.run, "tis_dpo_distill")


@pytest.fixture(scope="module")
def plain(world, tmp_path_factory) -> tuple[Path, list[dict]]:
    """The run that the others are compared with."""
    out = tmp_path_factory.mktemp("runs") / "plain"
    return out, run(world, out)


def test_it_trains_and_writes_what_it_says(plain, capsys):
    out, metrics = plain
    assert [line["step"] for line in metrics] == [0, 1, 2, 3]
    assert all(math.isfinite(value) for line in metrics for value in line.values())
    assert metrics[-1]["held_out/loss"] != metrics[0]["held_out/loss"]
    assert not (out / ".student.unfinished").exists()
    report = json.loads((out / "alignment_report.json").read_text())
    assert report["pairs"] == 12 and 0 < report["share_of_text_aligned_one_to_one"] < 1
    student = AutoModelForCausalLM.from_pretrained(out / "student")
    tokenizer = AutoTokenizer.from_pretrained(out / "student")
    answer = student.generate(**tokenizer("Question", return_tensors="pt"), max_new_tokens=4)
    assert answer.shape[1] > 1


def test_the_written_config_runs_again(plain, tmp_path):
    out, metrics = plain
    again = tmp_path / "again"
    assert main(["run", "tis_dpo_distill", "--config", str(out / "config.yaml"), f"output_dir={again}"]) == 0
    lines = [json.loads(line) for line in (again / "metrics.jsonl").read_text().splitlines()]
    assert_same_run(plain, (again, lines), 0)
    assert metrics


@pytest.mark.parametrize(
    "override",
    ["training.microbatch_size=1", "training.microbatch_size=3", "student.share_prompt=false", "training.chunk_size=1",
     "teacher.share_prompt=false", "training.activation_checkpointing=full", "data.workers=2"],
)  # fmt: skip
def test_how_a_batch_is_computed_changes_nothing(world, plain, tmp_path, override):
    out = tmp_path / "out"
    assert_same_run(plain, (out, run(world, out, override)), 2e-5)


def test_a_model_as_its_own_teacher_is_dpo(world, tmp_path):
    """Uniform weights and the student as its own teacher: ln 2 at the start, then exactly DPO's gradients."""
    out = tmp_path / "out"
    own = (f"teacher.path={world}/student", "weights.contrast=uniform", "training.max_steps=1")
    metrics = run(world, out, *own, "training.batch_size=12", "training.microbatch_size=5")
    assert metrics[0]["held_out/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics[1]["loss"] == pytest.approx(math.log(2), abs=1e-6)

    # DPO written down once more, from whole logits, without anything of prefkd.
    model, reference = (AutoModelForCausalLM.from_pretrained(world / "student", dtype=torch.float32) for _ in range(2))
    losses = []
    for row in read_rows(world / "pairs.jsonl"):
        margin = 0.0
        for sign, answer in ((1, row["chosen"]), (-1, row["rejected"])):
            with torch.no_grad():
                anchor = student_logprob(world, reference, row["prompt"], answer)
            margin = margin + sign * (student_logprob(world, model, row["prompt"], answer) - anchor)
        losses.append(-F.logsigmoid(0.1 * margin))
    torch.stack(losses).mean().backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9).item()
    assert metrics[1]["gradient_norm"] == pytest.approx(norm, rel=1e-4)


def test_reference_student_starts_at_ln_2_with_any_weights(world, tmp_path):
    metrics = run(world, tmp_path / "out", "reference=student", "training.max_steps=1")
    assert metrics[0]["held_out/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics[0]["held_out/chosen_weight_deviation"] > 0


@pytest.mark.parametrize(
    "overrides",
    [("weights.method=rank_based",), ("weights.method=binary", "weights.parameters={top_percent: 50}"),
     ("weights.reduce=mean", "weights.eos_weight=0.0"), ("weights.contrast=uniform", "data.reverse=true"),
     ("loss.label_smoothing=0.1",), ("lr_schedule._component_=transformers.get_linear_schedule_with_warmup",)],
)  # fmt: skip
def test_settings_change_the_run(world, plain, tmp_path, overrides):
    metrics = run(world, tmp_path / "out", *overrides)
    assert metrics[-1]["held_out/loss"] != plain[1][-1]["held_out/loss"]


def test_without_held_out_pairs_it_trains_all_the_same(world, tmp_path):
    held_out = ["data.held_out_source=null", "data.held_out_fraction=0"]
    metrics = run(world, tmp_path / "out", *held_out, "training.max_steps=1")
    assert math.isfinite(metrics[1]["loss"]) and not any(name.startswith("held_out") for name in metrics[1])


def test_loggers_of_torchtune(world, tmp_path, capsys):
    logger = "metric_logger._component_=torchtune.training.metric_logging"
    run(world, tmp_path / "disk", f"{logger}.DiskLogger", f"metric_logger.log_dir={tmp_path}", "training.max_steps=1")
    (log,) = tmp_path.glob("*.txt")
    assert "Step 1 | loss:" in log.read_text()
    if find_spec("wandb") is None:
        run(world, tmp_path / "wandb", f"{logger}.WandBLogger", "training.max_steps=1", code=2)
        assert "WandBLogger needs a package that is not installed" in capsys.readouterr().err


def test_curves_for_tensorboard(world, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tensors = pytest.importorskip("tensorboard.util.tensor_util")
    logger = "metric_logger._component_=torchtune.training.metric_logging.TensorBoardLogger"
    where = (f"metric_logger.log_dir={tmp_path}/board", "metric_logger.organize_logs=false")
    metrics = run(world, tmp_path / "out", logger, *where, "training.max_steps=2")
    found = events.EventAccumulator(f"{tmp_path}/board").Reload()
    values = {event.step: tensors.make_ndarray(event.tensor_proto).item() for event in found.Tensors("loss")}
    assert values == {row["step"]: pytest.approx(row["loss"]) for row in metrics[1:]}
    assert [event.step for event in found.Tensors("held_out/loss")] == [0, 2]


def test_curves_for_wandb(world, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    logger = "metric_logger._component_=torchtune.training.metric_logging.WandBLogger"
    run(world, tmp_path / "out", logger, f"metric_logger.log_dir={tmp_path}", "training.max_steps=1")
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_the_contrast_is_judged_before_training(world, tmp_path, capsys):
    """The teacher reads the held-out pairs anyway; its weights are no better than its contrast."""
    metrics = run(world, tmp_path / "out")
    printed = capsys.readouterr().out
    accuracy = metrics[0]["held_out/contrast_accuracy"]
    assert accuracy * 5 * 2 == pytest.approx(round(accuracy * 5 * 2)) and "contrast_accuracy" in metrics[1]
    (line,) = [line for line in printed.splitlines() if line.startswith("contrast ")]
    assert f"in {accuracy:.1%} of 5 pairs" in line and "weights.contrast=uniform" in line
    uniform = run(world, tmp_path / "uniform", "weights.contrast=uniform")
    assert "held_out/contrast_accuracy" not in uniform[0]
    assert not [line for line in capsys.readouterr().out.splitlines() if line.startswith("contrast ")]


def test_mixed_precision_stays_near_full_precision(world, plain, tmp_path):
    metrics = run(world, tmp_path / "out", "training.precision=bfloat16", "teacher.dtype=bfloat16")
    assert metrics[0]["held_out/loss"] == pytest.approx(plain[1][0]["held_out/loss"], rel=0.2)
    assert weights(tmp_path / "out")["model.norm.weight"].dtype == torch.float32  # as the checkpoint came


def test_a_loss_that_is_not_finite_names_step_and_rows(world, tmp_path, capsys):
    run(world, tmp_path / "out", "optimizer.lr=1e30", code=2)
    message = capsys.readouterr().err
    assert "at step 2 on held_out.jsonl:" in message and "learning rate" in message
    assert not (tmp_path / "out" / "student").exists()
