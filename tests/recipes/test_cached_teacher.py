"""Training on scores is training with the teacher in memory; scores of anything else are refused by name."""

import json
from functools import partial
from pathlib import Path

import pytest

from prefkd.models import frozen as frozen_module
from tests.processes import run_processes
from tests.recipes import two_models
from tests.recipes.two_models import assert_same_run, make_world, score, weights
from tests.tiny import make_model, write_pairs

run = partial(two_models.run, "tis_dpo_distill")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def scores(world, tmp_path_factory) -> Path:
    """Scored pair by pair, since in float32 the padding of a batch changes the last digits."""
    return score(world, tmp_path_factory.mktemp("runs") / "score", "microbatch_size=1")


def cached(scores: Path) -> tuple[str, ...]:
    return ("~teacher.path", f"teacher.scores={scores}")


WEIGHTED = ("weights.contrast=scores",)
FOLLOWING = (
    "objective=[{_component_: prefkd.training.terms.tis_dpo}]",
    *("reference=student", "refresh={every: 1}", "lr_schedule.num_warmup_steps=0"),
)


@pytest.mark.parametrize(
    ("recipe", "live", "on_scores"),
    [
        ("tis_dpo_distill", (), WEIGHTED),
        ("tis_dpo_distill", ("weights.reduce=mean", "weights.eos_weight=0.0"),
         ("weights.reduce=mean", "weights.eos_weight=0.0", *WEIGHTED)),
        ("tis_dpo_distill", ("reference=student",), ("reference=student", *WEIGHTED)),
        ("tis_dpo_distill", ("weights.contrast=uniform",), ("weights.contrast=uniform",)),
        ("dskd_distill", FOLLOWING, (*FOLLOWING, *WEIGHTED)),
        ("dpo_distill", (), ()),
    ],
    ids=["tis", "tis, means", "tis, own start", "tis, uniform", "dskd, own start that follows", "dpo"],
)  # fmt: skip
def test_cached_is_live(world, scores, tmp_path, monkeypatch, recipe, live, on_scores):
    alone = "training.microbatch_size=1"
    with_teacher = two_models.run(recipe, world, tmp_path / "live", alone, *live)

    def refuse(*_, **__):
        raise AssertionError("no teacher is loaded")

    monkeypatch.setattr(frozen_module, "load_causal_lm", refuse)
    without = two_models.run(recipe, world, tmp_path / "cached", alone, *cached(scores), *on_scores)
    assert_same_run((tmp_path / "live", with_teacher), (tmp_path / "cached", without), 1e-6)


def test_two_processes_on_scores_are_one(world, scores, tmp_path):
    settings = (*cached(scores), *WEIGHTED, "training.microbatch_size=2", "reference=student")
    one = run(world, tmp_path / "one", *settings)
    two, _ = run_processes(lambda: run(world, tmp_path / "two", *settings))
    assert_same_run((tmp_path / "one", one), (tmp_path / "two", two), 2e-5)


def test_every_weight_reads_the_same_scores(world, scores, tmp_path):
    """The ablations: another weight needs no other scores."""
    before = {path: path.stat().st_mtime_ns for path in scores.rglob("*.parquet")}
    losses = set()
    for method in ("exp", "origin", "binary", "threshold", "threshold_and_scale", "random", "rank_based"):
        parameters = ["weights.parameters={top_percent: 50}"] if method == "binary" else []
        settings = (f"weights.method={method}", *parameters, "training.max_steps=1")
        metrics = run(world, tmp_path / method, *cached(scores), *WEIGHTED, *settings)
        losses.add(round(metrics[0]["held_out/loss"], 6))
    assert len(losses) == 7
    assert {path: path.stat().st_mtime_ns for path in scores.rglob("*.parquet")} == before


def test_a_part_of_the_scored_pairs_will_do(world, scores, tmp_path):
    part = tmp_path / "part"
    metrics = run(world, part, *cached(scores), *WEIGHTED, "data.limit=5", "training.max_steps=1")
    assert metrics[1]["loss"] > 0 and weights(part)


def errors(capsys) -> list[str]:
    return [line.removeprefix("error: ") for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (("data.max_length=60", "data.max_prompt_length=30"), {"data.max_length", "data.max_prompt_length"}),
        (("data.reverse=true",), {"data.reverse"}),
        (("student.template=plain", "teacher.template=plain"), {"teacher.template"}),
    ],
)
def test_what_changed_is_named(world, scores, tmp_path, capsys, overrides, names):
    run(world, tmp_path / "out", *cached(scores), *WEIGHTED, *overrides, code=2)
    assert {line.partition(":")[0] for line in errors(capsys)} == names


def test_another_student_tokenizer_is_named(world, scores, tmp_path, capsys):
    make_model(tmp_path / "student", "qwen2", "byte_level", seed=1)
    run(world, tmp_path / "out", *cached(scores), *WEIGHTED, f"student.path={tmp_path}/student", code=2)
    assert "student.tokenizer: differs from what was scored; restore it, or score again" in errors(capsys)


def test_other_data_is_named_by_its_rows(world, scores, tmp_path, capsys):
    rows = write_pairs(tmp_path / "pairs.jsonl", 12).read_text().splitlines()
    row = json.loads(rows[2])
    rows[2] = json.dumps(row | {"chosen": row["chosen"] + " Indeed."})
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    settings = (*cached(scores), *WEIGHTED, f"data.source={tmp_path}/pairs.jsonl")
    run(world, tmp_path / "out", *settings, code=2)
    (line,) = errors(capsys)
    assert "of 12 train pairs" in line and "score again" in line


@pytest.mark.parametrize("damage", ["cut", "lost"])
def test_a_damaged_shard_is_named(world, tmp_path, capsys, damage):
    folder = score(world, tmp_path / "score")
    shard = folder / "train" / "shard-00001.parquet"
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-300])
    else:
        shard.unlink()
    capsys.readouterr()
    run(world, tmp_path / "out", *cached(folder), *WEIGHTED, code=2)
    (line,) = errors(capsys)
    assert "shard-00001.parquet" in line and "run score again" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("teacher.scores={scores}",),
            "teacher.path: conflicts with scores, since nothing is asked of a model; remove it",
        ),
        (("~teacher.path",), "teacher.path: missing; give a model, or scores"),
        (("~teacher.path", "teacher.scores={scores}/.."), "has its scores in a folder of their own; name"),
        (("~teacher.path", "teacher.scores=nowhere"), "teacher.scores: no folder nowhere; write it with recipe score"),
        (("~teacher.path", "teacher.scores={scores}"), "weights.contrast: prompt_pair needs a model in memory"),
        (("weights.contrast=scores",), "weights.contrast: scores, but there is no teacher.scores"),
    ],
)
def test_mistakes_are_one_line(world, scores, tmp_path, capsys, overrides, message):
    run(world, tmp_path / "out", *(text.format(scores=scores) for text in overrides), code=2)
    assert message in " ".join(errors(capsys))


def test_scores_without_a_contrast_give_no_weights(world, tmp_path, capsys):
    folder = score(world, tmp_path / "score", "contrast.kind=none")
    run(world, tmp_path / "out", *cached(folder), *WEIGHTED, code=2)
    (line,) = errors(capsys)
    assert "was written without a contrast; use uniform, or score with one" in line
    two_models.run("dpo_distill", world, tmp_path / "dpo", *cached(folder), "training.max_steps=1")
