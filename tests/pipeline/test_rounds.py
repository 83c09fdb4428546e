"""Rounds of a pipeline: each on what the last has written; what is finished is kept, whatever is added."""

import re
from pathlib import Path

import pytest

from prefkd.errors import ConfigError
from prefkd.pipeline.rounds import unroll
from prefkd.pipeline.stages import read_pipeline
from tests.pipeline.test_pipeline import chain  # noqa: F401 (a fixture)

ROUNDS = """
output_dir: runs/chain
values: {mark: "+"}
rounds: 2
stages:
  start:
    recipe: ./join.py
    config: ./join.yaml
    overrides: {text: "0"}
  end:
    recipe: ./join.py
    config: ./join.yaml
    overrides: {sources: ["${stages.learn.output_dir}/joined.txt"], text: "!"}
round:
  student:
    first: ${stages.start.output_dir}/joined.txt
    then: ${stages.learn.output_dir}/joined.txt
  stages:
    ask:
      recipe: ./join.py
      config: ./join.yaml
      overrides: {sources: ["${round.student}"], text: "${values.mark}"}
    learn:
      recipe: ./join.py
      config: ./join.yaml
      overrides: {sources: ["${stages.ask.output_dir}/joined.txt"], text: "${round.number}"}
"""


@pytest.fixture
def rounds(chain) -> Path:  # noqa: F811
    Path("rounds.yaml").write_text(ROUNDS)
    return chain


def ran(ended) -> list[str]:
    return re.findall(r"─ stage (\w+) \(", ended.out)


def test_each_round_is_built_on_the_last(rounds, prefkd):
    first = prefkd("pipeline", "rounds.yaml")
    assert (first.code, first.err) == (0, "")
    assert ran(first) == ["start", "ask_1", "learn_1", "ask_2", "learn_2", "end"]
    assert (rounds / "end/joined.txt").read_text() == "0+1+2!"
    assert ran(prefkd("pipeline", "rounds.yaml")) == []


def test_more_rounds_keep_those_that_are_finished(rounds, prefkd):
    prefkd("pipeline", "rounds.yaml")
    assert ran(prefkd("pipeline", "rounds.yaml", "rounds=3")) == ["ask_3", "learn_3", "end"]
    assert (rounds / "end/joined.txt").read_text() == "0+1+2+3!"
    # What a round is built on runs it again, and those after it.
    changed = prefkd("pipeline", "rounds.yaml", "rounds=3", "stages.learn_2.overrides.text=two")
    assert ran(changed) == ["learn_2", "ask_3", "learn_3", "end"]
    assert (rounds / "end/joined.txt").read_text() == "0+1+two+3!"


def test_settings_of_a_round_and_of_all_rounds(rounds, prefkd):
    prefkd("pipeline", "rounds.yaml", "round.stages.ask.overrides.text=b", "values.mark=c", "rounds=1")
    assert (rounds / "end/joined.txt").read_text() == "0b1!"


def test_a_dry_run_names_all_stages(rounds, prefkd):
    shown = prefkd("pipeline", "rounds.yaml", "--dry-run").out
    assert [name for name in ("start", "ask_1", "learn_1", "ask_2", "learn_2", "end") if name in shown] == [
        "start",
        "ask_1",
        "learn_1",
        "ask_2",
        "learn_2",
        "end",
    ]
    assert not rounds.exists()


MISTAKES = [
    ({"rounds": 0}, "rounds: 0 is not a number of rounds"),
    ({"rounds": True}, "rounds: True is not a number of rounds"),
    ({"rounds": "two"}, "rounds: 'two' is not a number of rounds"),
    ({"rounds": None}, "rounds: null is not a number of rounds"),
    ({"round": None}, "round: missing"),
    ({"round": {"stages": {"a": {}}}}, "round.student: give first"),
    ({"round": {"student": {"first": "a", "then": "b"}}}, "round.stages: missing"),
    ({"round": {"student": {"first": "a", "then": "b"}, "stages": {"a": {}}, "stage": 1}}, "round.stage: unknown key"),
    ({"stages": [1]}, "stages: [1] is not a section"),
    ({"stages": {"a_1": {}}}, "round.stages.a: is the name of another stage"),
]


@pytest.mark.parametrize(("wrong", "message"), MISTAKES)
def test_mistakes(wrong, message):
    raw = {"rounds": 2, "round": {"student": {"first": "a", "then": "b"}, "stages": {"a": {}}}, "stages": {}} | wrong
    with pytest.raises(ConfigError) as error:
        unroll(raw, [])
    assert message in str(error.value)


def test_what_a_stage_names_is_checked(rounds):
    Path("rounds.yaml").write_text(ROUNDS.replace("${stages.ask.output_dir}", "${stages.aks.output_dir}"))
    with pytest.raises(ConfigError, match="there is no stage aks"):
        read_pipeline(Path("rounds.yaml"))


def test_a_pipeline_without_rounds_is_left_alone():
    raw = {"stages": {"a": {"text": "${round.number}"}}}
    assert unroll(raw, ["rounds=2"]) == (raw, ["rounds=2"])
