"""Recipes on answers that have no rival: a term that reads the chosen answers of pairs learns the same from them."""

import json
import shutil
from pathlib import Path

import pytest

from prefkd.data.pairs import DataConfig, load_pairs
from prefkd.data.tokenizing import align_pairs
from prefkd.data.tokens import tokenize_pairs
from prefkd.models import frozen as frozen_module
from prefkd.models.load import ModelConfig, read_side
from tests.recipes import two_models
from tests.recipes.two_models import assert_same_run, make_world, read_rows, score
from tests.tiny import SPEEDS

TERMS = "objective=[{_component_: prefkd.training.terms.shared_tokens, divergence: reverse_kl}, {_component_: prefkd.training.terms.alm}]"  # noqa: E501
# One step holds all pairs, since pairs and answers have other lengths by which they are put together.
STEPS = ("training.batch_size=12", "training.epochs=2", "training.evaluate_every=1")
OF_PAIRS = ("logprob_accuracy", "rejected_logprob", "tokens")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = make_world(tmp_path_factory.mktemp("world"))
    for name in ("pairs", "held_out"):
        rows = [
            {"prompt": [{"role": "user", "content": row["prompt"]}], "answer": row["chosen"], "finish": "stop"}
            | {"key": f"{name}:{i}#0", "model": "student", "number": 0, "seed": i}
            for i, row in enumerate(read_rows(folder / f"{name}.jsonl"))
        ]
        write(folder / f"{name}_answers.jsonl", rows)
    return folder


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def answers(world: Path, name: str = "pairs_answers") -> tuple[str, ...]:
    held_out = f"data.held_out_source={world}/held_out_answers.jsonl"
    return f"data.source={world}/{name}.jsonl", held_out, "data.format=answers"


def without_those_of_pairs(metrics: list[dict]) -> list[dict]:
    return [{name: value for name, value in step.items() if not name.endswith(OF_PAIRS)} for step in metrics]


@pytest.fixture(scope="module")
def learned(world, tmp_path_factory) -> tuple[Path, list[dict]]:
    out = tmp_path_factory.mktemp("learned") / "out"
    return out, two_models.run("dskd_distill", world, out, TERMS, *STEPS, *answers(world))


def test_what_is_learned_is_that_of_the_chosen_answers(world, learned, tmp_path):
    out = tmp_path / "out"
    pairs = two_models.run("dskd_distill", world, out, TERMS, *STEPS)
    assert not [name for name in learned[1][0] if name.endswith(OF_PAIRS[:2])]
    assert_same_run((out, without_those_of_pairs(pairs)), (learned[0], without_those_of_pairs(learned[1])), 2e-4)


def test_what_is_learned_of_scores_is_that_of_the_live_teacher(world, learned, tmp_path, monkeypatch, capsys):
    scores = score(world, tmp_path / "scores", *answers(world), "keep={top_k: 400}", "contrast.kind=prompts")
    assert "prefkd run dskd_distill --config CONFIG" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setattr(frozen_module, "load_causal_lm", lambda *_, **__: pytest.fail("a teacher was loaded"))
    where = ("~teacher.path", "~teacher.dtype", f"teacher.scores={scores}")
    cached = two_models.run("dskd_distill", world, tmp_path / "out", TERMS, *STEPS, *answers(world), *where)
    for one, other in zip(learned[1], cached, strict=True):
        for name in one.keys() - SPEEDS:
            assert other[name] == pytest.approx(one[name], rel=1e-2, abs=5e-3), name


def test_an_answer_that_was_cut_has_no_end(world):
    """A model must not learn to stop where nothing but a limit of tokens stopped it."""
    rows = read_rows(world / "pairs_answers.jsonl")
    write(world / "cut.jsonl", [row | {"finish": "length"} for row in rows])
    side = read_side(ModelConfig(str(world / "student")))
    config = DataConfig(str(world / "cut.jsonl"), format="answers", held_out_fraction=0.0)
    whole = DataConfig(str(world / "pairs_answers.jsonl"), format="answers", held_out_fraction=0.0)
    both = [load_pairs(data).train for data in (config, whole)]
    aligned = [align_pairs(pairs, side, side, config=config) for pairs in both]
    for cut, full in zip(*aligned, strict=True):
        assert (cut["chosen_ends"], full["chosen_ends"]) == (False, True) and cut["student_rejected"] == []
        assert [*cut["student_chosen"], *side.end_ids] == full["student_chosen"]
    tokenized = [tokenize_pairs(pairs, side, config=config) for pairs in both]
    for cut, full in zip(*tokenized, strict=True):
        assert [*cut["chosen"], *side.end_ids] == full["chosen"] and cut["rejected"] == []


def test_mistakes(world, tmp_path, capsys):
    for recipe in ("tis_dpo_distill", "dpo_distill"):
        two_models.run(recipe, world, tmp_path / recipe, *answers(world), code=2)
        assert "data.format: answers have no rival, and this recipe compares two; rank" in capsys.readouterr().err
    rejected = (
        "objective=[{_component_: prefkd.training.terms.alm, answers: both}, {_component_: prefkd.training.terms.dpo}]"
    )
    two_models.run("dskd_distill", world, tmp_path / "out", rejected, *answers(world), "data.reverse=true", code=2)
    printed = capsys.readouterr().err
    assert "objective: alm is about rejected answers, and format: answers has none; use answers: chosen" in printed
    assert "objective: dpo compares two answers, and with data.format: answers there is one; remove it" in printed
    assert "data.reverse: compares two answers, and with format: answers there is one; remove it" in printed
    begun = world / "begun.jsonl"
    shutil.copy(world / "pairs_answers.jsonl", begun)
    begun.with_suffix(".settings.json").write_text('{"finished": false}')
    two_models.run("dskd_distill", world, tmp_path / "out", *answers(world, "begun"), code=2)
    assert f"data.source: {begun} is not finished; run the recipe" in capsys.readouterr().err
    source = f"data.source={world}/pairs_answers.jsonl"
    two_models.run("dskd_distill", world, tmp_path / "out", source, code=2)
    assert "are missing: rank answers with recipe rank first, or give format: answers" in capsys.readouterr().err
