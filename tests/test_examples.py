"""Every file of examples/ does what its docstring says, on tiny models."""

import runpy
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.recipes import single_model, two_models

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return two_models.make_world(tmp_path_factory.mktemp("world"))


def run_script(monkeypatch, name: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_parents_of_a_text_are_shown(world, monkeypatch, capsys):
    run_script(monkeypatch, "01_parents.py", f"{world}/student", f"{world}/teacher", "Boil the eggs.")
    student, teacher, parents = (line[8:].strip().split("|") for line in capsys.readouterr().out.splitlines())
    assert "".join(parents) == "Boil the eggs."
    assert 1 < len(parents) < min(len(student), len(teacher)) + 1


def test_answers_are_scored_as_transformers_does(world, monkeypatch, capsys):
    prompt, answers = "What now?", ("Boil the eggs.", "Look it up yourself.")
    run_script(monkeypatch, "02_score_a_pair.py", f"{world}/student", prompt, *answers)
    shown = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    lm = single_model.load_model(world / "student")
    expected = [two_models.student_logprob(world, lm, prompt, answer).item() for answer in answers]
    assert shown == pytest.approx(expected, abs=0.01)


def test_a_term_of_ones_own_is_learned_and_logged(world, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    terms = "{_component_: prefkd.training.terms.tis_dpo}, {_component_: own_term.entropy, floor: 6.0, weight: 0.1}"
    metrics = two_models.run("dskd_distill", world, tmp_path / "out", f"objective=[{terms}]", "training.max_steps=1")
    assert metrics[1]["entropy"] > 0


def test_a_loss_of_ones_own_starts_at_its_margin(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    world = single_model.make_world(tmp_path)
    loss = ("loss._component_=own_loss.hinge", "training.max_steps=1")
    metrics = single_model.run("dpo", world, tmp_path / "out", *loss)
    assert metrics[0]["held_out/loss"] == 1.0


def test_every_example_has_a_test():
    source = Path(__file__).read_text(encoding="utf-8")
    assert all(file.name in source or f"{file.stem}." in source for file in EXAMPLES.glob("*.py"))
