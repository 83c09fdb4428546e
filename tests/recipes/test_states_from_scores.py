"""Recipe score keeps hidden states, and terms that project them learn without the teacher in memory."""

import json
import shutil
from collections import namedtuple
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from prefkd.cli.main import main
from prefkd.data.rows import STATES
from prefkd.data.scores import HEAD, begin_scores, open_scores
from prefkd.errors import ConfigError
from prefkd.models import frozen as frozen_module
from tests.processes import run_processes
from tests.recipes import two_models
from tests.recipes.test_kept_distributions import errors, objective
from tests.recipes.two_models import assert_same_metrics, assert_same_run, make_world, score
from tests.tiny import make_model

run = partial(two_models.run, "dskd_distill")
KEEP = "keep={top_k: 0, states: true}"
# A teacher that is stored in bfloat16 and computes in it has states that are kept as they are.
ROUNDED = ("teacher.dtype=bfloat16",)


def from_scores(scores: Path, *overrides: str) -> tuple[str, ...]:
    return "~teacher.path", f"teacher.scores={scores}", "weights.contrast=uniform", *overrides


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """The teacher caps its logits, and has an output layer of its own."""
    folder = make_world(tmp_path_factory.mktemp("world"))
    shutil.rmtree(folder / "teacher")
    caps = {"final_logit_softcapping": 5.0, "tie_word_embeddings": False}
    teacher = make_model(folder / "teacher", "gemma2", "byte_level", seed=2, **caps)
    AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.bfloat16).save_pretrained(teacher)
    return folder


@pytest.fixture(scope="module")
def scores(world, tmp_path_factory) -> Path:
    return score(world, tmp_path_factory.mktemp("runs") / "scores", KEEP, *ROUNDED)


def test_a_student_learns_the_same_without_the_teacher(world, scores, tmp_path, monkeypatch):
    """Losses, metrics and the weights after some steps, so gradients too; here two processes learn from scores."""
    one, other = tmp_path / "live", tmp_path / "cached"
    settings = (objective("tis_dpo", "dual_space_v2", "gold"), "training.max_steps=2", *ROUNDED)
    live = run(world, one, *settings, "weights.contrast=uniform")
    monkeypatch.setattr(frozen_module, "load_causal_lm", lambda *_, **__: pytest.fail("a teacher was loaded"))
    cached, _ = run_processes(lambda: run(world, other, *settings, *from_scores(scores)))
    assert_same_run((one, live), (other, cached), 2e-5)


def test_states_of_float32_are_off_by_their_rounding(world, tmp_path):
    """Here two processes score."""
    settings = (objective("dual_space", "uld"), "training.max_steps=1")
    live = run(world, tmp_path / "live", *settings)
    kept, _ = run_processes(lambda: score(world, tmp_path / "scores", KEEP))
    assert_same_metrics(live, run(world, tmp_path / "cached", *settings, *from_scores(kept)), 1e-2)


def test_what_is_missing_is_written_again(world, scores, tmp_path, capsys):
    """A shard and the teacher's outer layers; the other shards are left as they are."""
    folder = tmp_path / "out" / "scores"
    shutil.copytree(scores, folder)
    names = ["train/shard-00001.parquet", HEAD]
    for name in names:
        (folder / name).unlink()
        run(world, tmp_path / "learn", objective("dual_space"), *from_scores(folder), code=2)
        assert errors(capsys)[0].endswith(
            " first; run score again, which resumes" if name != HEAD else "which writes it"
        )
        score(world, tmp_path / "out", KEEP, *ROUNDED)
        assert (folder / name).stat().st_size == (scores / name).stat().st_size


def test_states_are_read_only_where_they_are_asked_for(scores):
    less, more = (open_scores(scores).read("train", states=states) for states in (False, True))
    assert less is not None and more is not None
    assert {*more.column_names} - {*less.column_names} == {STATES}


@pytest.mark.parametrize(
    ("terms", "line"),
    [
        (("dual_space answers: both",), "hidden states of rejected answers, which scores never have; add the model"),
        (("dual_space", "distillm2"), "hidden states of rejected answers, which scores never have; add the model"),
    ],
)
def test_states_of_rejected_answers_are_not_there(world, scores, tmp_path, capsys, terms, line):
    run(world, tmp_path / "out", objective(*terms), *from_scores(scores), code=2)
    assert errors(capsys) == [f"teacher.path: missing, but the objective asks for {line}"]


def test_a_full_disk_is_found_before_the_teacher_is_loaded(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(60_000))
    score(world, tmp_path / "out", KEEP, *ROUNDED, code=2)
    assert "GB left; free some, or keep less" in capsys.readouterr().err
    assert not (tmp_path / "out" / "scores").exists()


def test_a_folder_without_states_gets_none(tmp_path):
    parts = {"keep.models": "teacher", "keep.top_k": 4, "pairs_per_shard": 8, "train.pairs": 1, "held_out.pairs": 0}
    begin_scores(tmp_path, parts)  # of a version that knew of no states
    begin_scores(tmp_path, parts | {"keep.states": False})
    with pytest.raises(ConfigError, match=r"keep\.states: is True here, but was False"):
        begin_scores(tmp_path, parts | {"keep.states": True})


def test_a_plan_counts_the_layers_that_read_states(world, scores, tmp_path):
    config, out = tmp_path / "config.yaml", tmp_path / "plan.json"
    sections = two_models.models_and_pairs(world).replace("\n        ", "\n")
    config.write_text(f"output_dir: {tmp_path}/out\n{sections}")
    settings = (objective("dual_space_v2"), *from_scores(scores), *ROUNDED, "training.precision=float32")
    assert main(["plan", "dskd_distill", "--config", str(config), "--json", str(out), *settings]) == 0
    assert json.loads(out.read_text())["memory"]["teacher"]["most"] == 2 * 400 * 32 * 2  # both are in bfloat16
