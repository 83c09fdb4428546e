"""A problem is a value: what it is about and what it names are asked, never read out of its text."""

from pathlib import Path

import pytest

from prefkd.errors import ConfigError, Problem


def test_a_problem_and_a_string_are_one_line():
    problem = Problem("path", "no folder x; name another", about="model", paths=(Path("x"),))
    assert str(problem) == "path: no folder x; name another"
    assert str(problem.under("teacher")) == "teacher.path: no folder x; name another"
    assert problem.under("") == problem
    assert problem.under("teacher").about == "model"
    assert Problem.of(problem) is problem
    assert Problem.of("betas[0].lr: 2: too large") == Problem("betas[0].lr", "2: too large")
    assert Problem.of("holds no keys") == Problem("", "holds no keys")
    assert str(Problem.of("holds no keys").under("data")) == "data: holds no keys"
    assert str(ConfigError([problem, "a: b"])) == f"{problem}\na: b"


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("runs/dpo/adapter", True),
        ("runs/dpo", True),
        ("./runs/dpo/", True),
        (str(Path("runs/dpo/adapter").absolute()), True),
        ("runs/dpo_reversed/adapter", False),
        ("other/runs/dpo", False),
        ("runs/dpo.before-1/adapter", False),
        ("runs", False),
    ],
)
def test_lies_in(path, found):
    assert Problem("path", "no folder runs/dpo", paths=(Path(path),)).lies_in([Path("runs/dpo")]) == found
    assert Problem("path", "x", paths=(Path("elsewhere"), Path(path))).lies_in([Path("y"), Path("runs/dpo")]) == found


def test_a_text_that_names_a_folder_decides_nothing():
    assert not Problem("path", "no folder runs/dpo/adapter").lies_in([Path("runs/dpo")])
