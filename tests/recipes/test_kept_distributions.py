"""Recipe score keeps next-token distributions, and terms learn from them without the teacher in memory."""

from functools import partial
from pathlib import Path

import pytest

from prefkd.data.scores import open_scores
from prefkd.models import frozen as frozen_module
from tests.processes import run_processes
from tests.recipes import two_models
from tests.recipes.two_models import assert_same_run, make_world, score

run = partial(two_models.run, "dskd_distill")
KEEP = "keep={{top_k: {}, models: [teacher, positive, negative]}}"
CACHED = ("~teacher.path", "~teacher.dtype")
NAMES = ("shared_tokens answers: both", "uld", "min_ed", "align_distil", "dckd", "adpa", "tvkd", "distillm2",
         "shared_tokens form: renormalised, temperature: 2.0")  # fmt: skip


def objective(*terms: str) -> str:
    parts = (term.partition(" ") for term in terms)
    items = (f"{{_component_: prefkd.training.terms.{name}{', ' if more else ''}{more}}}" for name, _, more in parts)
    return f"objective=[{', '.join(items)}]"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory) -> Path:
    """Scores that keep all tokens of the vocabulary, of which there are 400."""
    return score(world, tmp_path_factory.mktemp("runs") / "whole", KEEP.format(400), "microbatch_size=3")


@pytest.fixture(scope="module")
def few(world, tmp_path_factory) -> Path:
    return score(world, tmp_path_factory.mktemp("runs") / "few", KEEP.format(16))


@pytest.fixture(scope="module")
def live(world, tmp_path_factory) -> list[dict]:
    return run(world, tmp_path_factory.mktemp("runs") / "live", objective(*NAMES), "optimizer.lr=1e-3")


def names_of(metrics: dict) -> list[str]:
    names = {term.partition(" ")[0] for term in NAMES} | {"shared_tokens 2"}
    return [f"held_out/{name}" for name in sorted(names)]


def test_with_all_tokens_kept_it_is_the_live_teacher(world, whole, live, tmp_path, monkeypatch):
    """But for float16, in which log-probs are off by at most one part in two thousand."""
    monkeypatch.setattr(frozen_module, "load_causal_lm", lambda *_, **__: pytest.fail("a teacher was loaded"))
    cached = run(world, tmp_path / "out", objective(*NAMES), *CACHED, f"teacher.scores={whole}", "optimizer.lr=1e-3")
    for before, after in zip(live, cached, strict=True):
        for name in names_of(before) if "held_out/loss" in before else ():
            assert after[name] == pytest.approx(before[name], rel=5e-3, abs=5e-3), name


def test_with_few_tokens_kept_it_is_near_and_never_above(world, few, live, tmp_path):
    """Divergences of lumped outcomes; what a term says of the tail is approximate."""
    cached = run(world, tmp_path / "out", objective(*NAMES), *CACHED, f"teacher.scores={few}", "training.max_steps=1")
    for name in ("shared_tokens", "dckd"):
        found, whole = cached[0][f"held_out/{name}"], live[0][f"held_out/{name}"]
        assert 0.3 * whole < found <= whole * 1.001
    assert cached[0]["held_out/tvkd"] == pytest.approx(live[0]["held_out/tvkd"], rel=1e-3)  # values are exact


@pytest.mark.parametrize("override", ["training.microbatch_size=1", "training.chunk_size=3"])
def test_how_a_batch_is_computed_changes_nothing(world, few, tmp_path, override):
    settings = (objective(*NAMES), *CACHED, f"teacher.scores={few}", "optimizer.lr=1e-3")
    one, other = tmp_path / "one", tmp_path / "other"
    assert_same_run((one, run(world, one, *settings)), (other, run(world, other, *settings, override)), 3e-5)


def test_two_processes_score_and_learn_as_one(world, few, tmp_path):
    again, _ = run_processes(lambda: score(world, tmp_path / "two", KEEP.format(16)))
    stored = [open_scores(folder).read("train") for folder in (few, again)]
    assert stored[0].column_names == stored[1].column_names
    ids = [rows["chosen_teacher_ids"][:] for rows in stored]
    assert ids[0] == ids[1]


@pytest.mark.parametrize(
    ("first", "then", "line"),
    [
        ((), ("keep={}",), "keep.models: is teacher here, but was None"),
        (("keep={}",), (), "keep.models: is None here, but was teacher"),
        (("keep={top_k: 5}",), ("keep={top_k: 6}",), "keep.top_k: is 6 here, but was 5"),
    ],
)
def test_a_folder_holds_one_kind_of_scores(world, tmp_path, capsys, first, then, line):
    score(world, tmp_path / "out", *first)
    score(world, tmp_path / "out", *then, code=2)
    (found,) = errors(capsys)
    assert found.startswith(line) and found.endswith("restore it, or name another output_dir")


def errors(capsys) -> list[str]:
    return [line.removeprefix("error: ") for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (("keep.top_k=0",), "keep.top_k: 0 keeps nothing; use 64, or remove keep"),
        (("keep.top_k=401",), "keep.top_k: 401 is more than the 400 tokens of the teacher; use 64"),
        (("keep.models=[negative]",), "keep.models: negative is kept on the tokens of positive; name both"),
        (("keep.temperature=0.0",), "keep.temperature: 0.0 is not a temperature; use a positive number"),
        (
            ("keep.models=[positive]", "contrast.kind=none"),
            "keep.models: positive is pi+ of a contrast, and contrast.kind is none; remove it, or name a contrast",
        ),
    ],
)
def test_mistakes_of_keeping_are_one_line(world, tmp_path, capsys, overrides, line):
    score(world, tmp_path / "out", "keep={}", *overrides, code=2)
    assert errors(capsys) == [line]


@pytest.mark.parametrize(
    ("term", "line"),
    [
        (
            "shared_tokens temperature: 3.0",
            "objective[0]: temperature is 3.0, but the scores know 1.0 and 2.0; score again with keep.temperature",
        ),
        ("tvkd temperature: 3.0", "objective[0]: temperature is 3.0, but the scores have values at 2.0; use that"),
        (
            "gold",
            "teacher.path: missing, but the objective asks for hidden states, which these scores do not have; add the "
            "model, or score with keep.states: true",
        ),
    ],
)
def test_what_scores_do_not_keep_is_one_line(world, few, tmp_path, capsys, term, line):
    run(world, tmp_path / "out", objective(term), *CACHED, f"teacher.scores={few}", code=2)
    assert errors(capsys) == [line]
