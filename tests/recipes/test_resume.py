"""A run that was ended goes on as if it had not been: the same losses and weights, bit by bit, through the CLI."""

import errno
import importlib
import json
import os
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from prefkd.training import snapshots
from tests.faults.random_kills import compare
from tests.processes import run_processes
from tests.recipes import single_model, two_models
from tests.recipes.single_model import run
from tests.tiny import SPEEDS, make_model

# Dropout draws from the random state, momentum and the schedule are states of their own.
SETTINGS = (
    "training.epochs=2",
    "training.checkpoint_every=2",
    "optimizer={_component_: torch.optim.AdamW, lr: 0.01}",
    "lr_schedule={_component_: transformers.get_cosine_schedule_with_warmup, num_warmup_steps: 2}",
)
LORA = (*SETTINGS, "lora={dropout: 0.2}")


def killer(step: int, name: str) -> str:
    return f"metric_logger={{_component_: tests.faults.killing.Killer, step: {step}, name: {name}}}"


def without_speed(metrics: list[dict]) -> list[dict]:
    return [{name: value for name, value in line.items() if name not in SPEEDS} for line in metrics]


def weights(out: Path) -> dict[str, torch.Tensor]:
    found = two_models.weights(out) if (out / "student").is_dir() else single_model.saved_weights(out)
    projectors = out / "projectors.safetensors"
    return found | (load_file(projectors) if projectors.exists() else {})


def assert_bitwise(one: tuple[Path, list[dict]], other: tuple[Path, list[dict]]) -> None:
    assert without_speed(one[1]) == without_speed(other[1])
    left, right = weights(one[0]), weights(other[0])
    assert all(torch.equal(left[name], right[name]) for name in left.keys() | right.keys())


def names(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return single_model.make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def pair_world(tmp_path_factory) -> Path:
    return two_models.make_world(tmp_path_factory.mktemp("pair_world"))


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory) -> tuple[Path, list[dict]]:
    """A run of dpo with adapters that nobody has touched."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, run("dpo", world, out, *LORA)


@pytest.fixture
def stopped(world, tmp_path) -> Path:
    """The same run, stopped after step 5 of 6: there are checkpoints of steps 4 and 5."""
    with pytest.raises(SystemExit):
        run("dpo", world, tmp_path / "out", *LORA, killer(5, "SIGTERM"))
    assert names(tmp_path / "out") == ["run.json", "step_00000004", "step_00000005"]
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("recipe", "overrides", "name", "code"),
    [
        ("sft", (), "SIGINT", 130),
        ("dpo", ("optimizer={_component_: torch.optim.SGD, lr: 0.1}",), "SIGTERM", 143),
        ("dpo_distill", (), "SIGUSR1", 138),
        ("tis_dpo_distill", ("reference=student",), "SIGTERM", 143),
        # Stopped while only the projectors learn: the schedule says for how long.
        ("dskd_distill", ("projectors.warmup_steps=4",), "SIGINT", 130),
    ],
)
def test_a_stopped_run_goes_on_exactly(world, pair_world, tmp_path, capsys, recipe, overrides, name, code):
    start: Any = two_models.run if "distill" in recipe else run
    place = pair_world if "distill" in recipe else world
    settings = (*SETTINGS, *overrides)
    whole = start(recipe, place, tmp_path / "whole", *settings)
    assert not (tmp_path / "whole" / "checkpoints").exists()
    with pytest.raises(SystemExit) as end:
        start(recipe, place, tmp_path / "out", *settings, killer(3, name))
    assert end.value.code == code
    assert f"stopped by {name} after step 3; the same command resumes from there" in capsys.readouterr().out
    resumed = start(recipe, place, tmp_path / "out", *settings)
    assert "resuming after step 3" in capsys.readouterr().out
    assert_bitwise((tmp_path / "whole", whole), (tmp_path / "out", resumed))
    assert not (tmp_path / "out" / "checkpoints").exists()


@pytest.mark.parametrize("name", ["AdamW8bit", "AdamW4bit"])
def test_a_run_whose_moments_have_few_bits_goes_on_exactly(tmp_path, name):
    """Its checkpoints are written during the next steps, which change the moments in place."""
    world = single_model.make_world(tmp_path)
    make_model(world / "model", "llama", "byte_level", hidden_size=64, intermediate_size=64, head_dim=16)
    optimizer = f"optimizer={{_component_: torchao.optim.{name}, lr: 0.01}}"
    settings = (*SETTINGS, optimizer, "training.checkpoint_every=1", "training.async_checkpoints=true")
    with torch.compiler.set_stance("force_eager"):
        whole = run("dpo", world, tmp_path / "whole", *settings)
        with pytest.raises(SystemExit):
            run("dpo", world, tmp_path / "out", *settings, killer(4, "SIGTERM"))
        shutil.rmtree(tmp_path / "out" / "checkpoints" / "step_00000004")  # the last is not written during a step
        resumed = run("dpo", world, tmp_path / "out", *settings)
    assert_bitwise((tmp_path / "whole", whole), (tmp_path / "out", resumed))


@pytest.mark.parametrize("kind", ["OptimState8bit", "OptimState4bit", "OptimStateFp8"])
def test_a_copy_of_a_moment_with_few_bits_shares_no_memory(kind):
    modules = {"OptimState8bit": "subclass_8bit", "OptimState4bit": "subclass_4bit", "OptimStateFp8": "subclass_fp8"}
    moment = getattr(importlib.import_module(f"torchao.optim.{modules[kind]}"), kind).zeros((64, 64))
    moment.copy_(torch.randn(64, 64))
    copied = snapshots._copied({"moment": moment})["moment"]
    before = copied.dequantize()
    moment.copy_(torch.zeros(64, 64))
    assert type(copied) is type(moment) and before.any() and torch.equal(copied.dequantize(), before)


def test_what_changes_memory_and_files_only_may_change_on_the_way(world, whole, stopped):
    resumed = run("dpo", world, stopped, *LORA, "training.keep_checkpoints=1", "training.checkpoint_every=1")
    assert_bitwise(whole, (stopped, resumed))


def test_a_run_that_was_stopped_after_its_last_step_is_exported_and_described(world, whole, tmp_path, monkeypatch):
    with pytest.raises(SystemExit):
        run("dpo", world, tmp_path / "out", *LORA, killer(6, "SIGTERM"))
    with monkeypatch.context() as patched:  # the model is saved, the page is not
        patched.setattr("prefkd.training.finish.changed_answers", Mock(side_effect=KeyboardInterrupt))
        run("dpo", world, tmp_path / "out", *LORA, code=130)
    assert not (tmp_path / "out" / "report.html").exists()
    assert_bitwise(whole, (tmp_path / "out", run("dpo", world, tmp_path / "out", *LORA)))
    assert (tmp_path / "out" / "report.html").is_file() and not (tmp_path / "out" / "checkpoints").exists()


def test_a_run_without_a_checkpoint_begins_again(world, whole, stopped):
    for checkpoint in (stopped / "checkpoints").glob("step_*"):
        checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.unfinished"))
    with (stopped / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 6, "lo')
    assert_bitwise(whole, (stopped, run("dpo", world, stopped, *LORA)))


def flip(checkpoint: Path) -> None:
    file = next(checkpoint.glob("*.distcp"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


BREAKS = {
    "flipped bit": flip,
    "missing shard": lambda checkpoint: next(checkpoint.glob("*.distcp")).unlink(),
    "cut short": lambda checkpoint: os.truncate(checkpoint / "checkpoint.json", 20),
    "no record": lambda checkpoint: (checkpoint / "checkpoint.json").unlink(),
}


@pytest.mark.parametrize("how", BREAKS)
def test_a_broken_checkpoint_is_passed_over(world, whole, stopped, capsys, how):
    BREAKS[how](stopped / "checkpoints" / "step_00000005")
    resumed = run("dpo", world, stopped, *LORA)
    printed = capsys.readouterr().out
    assert "step_00000005 is broken" in printed and "resuming after step 4" in printed
    assert_bitwise(whole, (stopped, resumed))


def test_no_whole_checkpoint_is_an_error(world, stopped, capsys):
    for checkpoint in (stopped / "checkpoints").glob("step_*"):
        flip(checkpoint)
    run("dpo", world, stopped, *LORA, code=2)
    assert "error: no checkpoint in" in capsys.readouterr().err


def test_a_full_disk_leaves_the_checkpoint_before(world, whole, tmp_path, capsys, monkeypatch):
    """It fills up while the tensors of the third checkpoint are written."""
    sync, calls = os.fsync, []

    def full(handle: int) -> None:
        path = os.readlink(f"/proc/self/fd/{handle}")
        calls.append(path)
        if ".step_00000006.unfinished" in path:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    run("dpo", world, tmp_path / "out", *LORA, "training.keep_checkpoints=1", code=2)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert line.endswith(
        "step_00000006 cannot be written: no space left on device; fix that, and the same command resumes from "
        "step_00000004"
    )
    assert names(tmp_path / "out") == ["run.json", "step_00000004"]
    monkeypatch.undo()
    assert_bitwise(whole, (tmp_path / "out", run("dpo", world, tmp_path / "out", *LORA)))


def test_another_folder_goes_on_from_a_named_checkpoint(world, whole, stopped, tmp_path):
    checkpoint = stopped / "checkpoints" / "step_00000004"
    metrics = run("dpo", world, tmp_path / "other", *LORA, f"training.resume={checkpoint}")
    assert [line["step"] for line in metrics] == [5, 6]
    assert_bitwise((whole[0], whole[1][5:]), (tmp_path / "other", metrics))
    back = run("dpo", world, stopped, *LORA, f"training.resume={checkpoint}")
    assert_bitwise(whole, (stopped, back))


def test_what_is_refused(world, stopped, tmp_path, capsys):
    def error(out: Path, *overrides: str) -> str:
        run("dpo", world, out, *LORA, *overrides, code=2)
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        return line.removeprefix("error: ")

    before = (stopped / "metrics.jsonl").read_text()
    assert error(stopped, "loss.beta=0.2") == (
        f"output_dir: {stopped} holds an unfinished run with other settings (loss.beta 0.1 -> 0.2); resume with those, "
        "or name another folder"
    )
    assert error(stopped, "training.resume=none") == (
        f"output_dir: {stopped} holds an unfinished run; set training.resume to auto, or name another folder"
    )
    assert error(tmp_path / "new", "training.resume=nowhere") == (
        "training.resume: nowhere is not a checkpoint; name a folder checkpoints/step_..., or use auto or none"
    )
    checkpoint = stopped / "checkpoints" / "step_00000004"
    assert "was made with other settings (lora.rank 16 -> 8)" in error(
        tmp_path / "new", f"training.resume={checkpoint}", "lora.rank=8"
    )
    pairs = world / "pairs.jsonl"
    shutil.copy(pairs, tmp_path / "kept")
    try:
        pairs.write_text("\n".join(pairs.read_text().splitlines()[::-1]) + "\n")
        assert "was made with other train.content; restore that, or name another output_dir" in error(stopped)
    finally:
        shutil.copy(tmp_path / "kept", pairs)
    assert (stopped / "metrics.jsonl").read_text() == before
    run("dpo", world, stopped, *LORA)
    assert error(stopped) == f"output_dir: {stopped} holds an earlier run; name another folder or remove that one"


def write_base(world: Path, version: int) -> None:
    make_model(world / "model", "llama", "byte_level", seed=version)


def write_teacher(world: Path, version: int) -> None:
    make_model(world / "teacher", "llama", "byte_level", seed=version)


def write_adapter(world: Path, version: int) -> None:
    torch.manual_seed(version)
    settings = PeftLoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(world / "teacher"), settings).save_pretrained(world / "adapter")


def write_scores(world: Path, version: int) -> None:
    write_teacher(world, version)
    shutil.rmtree(world / "scored", ignore_errors=True)
    two_models.score(world, world / "scored")


def write_worth(world: Path, version: int) -> None:
    for name in ("pairs.jsonl", "held_out.jsonl"):
        rows = [row | {"w": 1 + version * (i % 2)} for i, row in enumerate(single_model.read_rows(world / name))]
        (world / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_template(world: Path, version: int) -> None:
    turn = f"{{{{ m.role }}}} {version}:\n{{{{ m.content }}}}\n\n"
    prompt = f"{{% if add_generation_prompt %}}assistant {version}:\n{{% endif %}}"
    (world / "template.jinja").write_text(f"{{% for m in messages %}}{turn}{{% endfor %}}{prompt}")


@pytest.mark.parametrize(
    ("recipe", "write", "settings", "said"),
    [
        ("sft", write_base, ("lora={}",), "model"),
        ("tis_dpo_distill", write_teacher, (), "teacher.model"),
        ("dpo_distill", write_adapter, ("teacher.adapter=WORLD/adapter",), "teacher.adapter"),
        ("dpo_distill", write_scores, ("~teacher.path", "teacher.scores=WORLD/scored/scores"), "teacher.scores"),
        ("dpo", write_worth, ("data.weight=w",), "train.worth, held_out.worth"),
        (
            *("dpo_distill", write_template, ("student.template={path: WORLD/template.jinja}",)),
            "train.student_tokens, held_out.student_tokens",
        ),
    ],
)
def test_a_run_does_not_go_on_with_something_else_under_the_same_path(tmp_path, capsys, recipe, write, settings, said):
    helper: Any = two_models if "distill" in recipe else single_model
    world, out = helper.make_world(tmp_path), tmp_path / "out"
    settings = ("training.max_steps=2", *(text.replace("WORLD", str(world)) for text in settings))
    write(world, 1)
    with pytest.raises(SystemExit):
        helper.run(recipe, world, out, *settings, killer(1, "SIGTERM"))
    write(world, 2)
    helper.run(recipe, world, out, *settings, code=2)
    assert f"was made with other {said}; restore that, or name another output_dir" in capsys.readouterr().err
    write(world, 1)  # the same again, in other files
    helper.run(recipe, world, out, *settings)
    assert "resuming after step 1" in capsys.readouterr().out


def test_two_processes_stop_together_and_one_goes_on(world, whole, tmp_path):
    two = ("--nproc-per-node=2",)
    settings = (*SETTINGS, "training.microbatch_size=2")
    one = run("dpo", world, tmp_path / "one", *settings)
    with pytest.raises(SystemExit) as end:
        run("dpo", world, tmp_path / "out", *settings, killer(2, "SIGTERM"), options=two)  # on one of the two
    assert end.value.code == 143
    record = json.loads((tmp_path / "out" / "checkpoints" / "step_00000002" / "checkpoint.json").read_text())
    assert record["world_size"] == 2
    with pytest.raises(SystemExit):
        run("dpo", world, tmp_path / "out", *settings, killer(3, "SIGINT"))
    resumed, _ = run_processes(lambda: run("dpo", world, tmp_path / "out", *settings))
    single_model.assert_same_run((tmp_path / "one", one), (tmp_path / "out", resumed), 1e-5)


@pytest.mark.parametrize("when", ["at once", "during the next steps"])
def test_kills_at_random_moments_change_nothing(tmp_path, when):
    """`python -m tests.faults.random_kills 20` does more of them."""
    assert compare(2, tmp_path, f"training.async_checkpoints={when != 'at once'}", steps=10) == 2


def test_checkpoints_beside_the_next_steps(world, whole, tmp_path, capsys, monkeypatch):
    """Two processes, stopped; then one whose disk fills up while a checkpoint is written in its back."""
    settings = (*LORA, "training.async_checkpoints=true", "training.microbatch_size=2")
    run_processes(lambda: stop(world, tmp_path / "out", *settings))
    assert names(tmp_path / "out") == ["run.json", "step_00000004", "step_00000005"]
    shutil.rmtree(tmp_path / "out" / "checkpoints" / "step_00000005")
    write = snapshots.torch.save

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(snapshots.torch, "save", full)
    run("dpo", world, tmp_path / "out", *settings, "training.checkpoint_every=1", code=2)
    assert "cannot be written: no space left on device" in capsys.readouterr().err
    monkeypatch.setattr(snapshots.torch, "save", write)
    assert [line["step"] for line in run("dpo", world, tmp_path / "out", *settings)] == list(range(7))


def stop(world: Path, out: Path, *settings: str) -> None:
    with pytest.raises(SystemExit):
        run("dpo", world, out, *settings, killer(5, "SIGTERM"))
