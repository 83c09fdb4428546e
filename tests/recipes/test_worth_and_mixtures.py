"""Pairs with a weight and a margin, and several sources: what is learned, however a step is split."""

import json
import math

import pytest

from tests.recipes import single_model, two_models
from tests.recipes.single_model import assert_same_run, run
from tests.tiny import write_pairs

WORTH = ("data.weight=w", "data.margin=m", "loss.beta=0.5")


def add_worth(path):
    rows = single_model.read_rows(path)
    rows = [row | {"w": i % 3, "m": 0.5 * (i % 4)} for i, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return rows


def expected_start(rows):
    """Before training h = 0, so that the loss of a pair is log(1 + e^m)."""
    weights = sum(row["w"] for row in rows)
    return sum(row["w"] * math.log1p(math.exp(row["m"])) for row in rows) / weights


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = single_model.make_world(tmp_path_factory.mktemp("worth"))
    for name in ("pairs.jsonl", "held_out.jsonl"):
        add_worth(folder / name)
    return folder


@pytest.fixture(scope="module")
def plain(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "out"
    return out, run("dpo", world, out, *WORTH)


def test_the_loss_is_the_weighted_mean_with_an_offset(world, plain):
    expected = expected_start(single_model.read_rows(world / "held_out.jsonl"))
    assert plain[1][0]["held_out/loss"] == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(math.log(2), rel=0.05)


@pytest.mark.parametrize("size", [1, 3])
def test_how_a_step_is_split_changes_nothing(world, plain, tmp_path, size):
    out = tmp_path / "out"
    again = run("dpo", world, out, *WORTH, f"training.microbatch_size={size}", "nll_weight=0.0")
    assert_same_run(plain, (out, again), 1e-4)


def test_a_mixture_tells_its_shares_and_the_accuracy_of_each_source(world, tmp_path, capsys):
    for name, count in (("one", 20), ("two", 30)):
        rows = write_pairs(tmp_path / f"{name}.jsonl", count)
        rows.write_text(rows.read_text().replace("Question", f"Question {name}"))  # no prompt is in both
    sources = ", ".join(
        f"{{source: {tmp_path}/{name}.jsonl, weight: {weight}}}" for name, weight in (("one", 1), ("two", 3))
    )
    data = f"data={{sources: [{sources}], held_out_fraction: 0.2, max_length: 256, max_prompt_length: 128}}"
    metrics = run("dpo", world, tmp_path / "out", data, "training.max_steps=2")
    found = metrics[-1]
    share = {name: found[f"held_out/accuracy/{name}"] for name in ("one", "two")}
    assert (4 * share["one"] + 6 * share["two"]) / 10 == pytest.approx(found["held_out/accuracy"], abs=1e-6)
    shown = capsys.readouterr().out
    assert "25.0% one, 75.0% two" in " ".join(shown.split())
    assert "held_out/accuracy/two" in shown


@pytest.mark.parametrize("recipe", ["dpo_distill", "tis_dpo_distill", "dskd_distill"])
def test_distillations_take_weights_and_margins(tmp_path, recipe):
    world = two_models.make_world(tmp_path / "world")
    for name in ("pairs.jsonl", "held_out.jsonl"):
        rows = add_worth(world / name)
    settings = ["data.weight=w", "data.margin=m", "reference=student", "training.max_steps=1"]
    if recipe == "dskd_distill":
        settings += ["objective=[{_component_: prefkd.training.terms.dpo}]"]
    if recipe == "tis_dpo_distill":
        settings += ["weights.contrast=uniform"]
    metrics = two_models.run(recipe, world, tmp_path / "out", *settings)
    assert metrics[0]["held_out/" + ("dpo" if recipe == "dskd_distill" else "loss")] == pytest.approx(
        expected_start(rows), rel=1e-4
    )


MISTAKES = {
    "a loss without an offset": (
        ["data.margin=m", "loss._component_=prefkd.method.preference.hinge_loss"],
        "data.margin: hinge_loss asks for no margin; use dpo_loss or tis_dpo_loss, or remove it",
    ),
    "a loss of the whole step": (
        ["data.weight=w", "loss._component_=prefkd.method.preference.aot_loss"],
        "data.weight: aot_loss compares all pairs of a step with each other and weighs none; remove it",
    ),
    "an offset of one's own": (["loss.offset=1"], "loss.offset: the recipe itself passes it to "),
}


@pytest.mark.parametrize(("settings", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line(world, tmp_path, capsys, settings, message):
    run("dpo", world, tmp_path / "out", *settings, code=2)
    assert message in capsys.readouterr().err
