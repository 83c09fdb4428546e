"""Rounds of a pipeline: the same stages again and again, each time on the student that the last round has trained.

    rounds: 2
    stages:
      sft: ...
    round:
      student:
        first: ${stages.sft.output_dir}/model      what `${round.student}` is in the first round
        then: ${stages.distil.output_dir}/student  and in later rounds, from the round before
      stages:
        sample: {..., overrides: {models: {student: {path: "${round.student}"}}}}
        rank: {..., overrides: {candidates: "${stages.sample.output_dir}/candidates"}}
        distil: {..., overrides: {student: {path: "${round.student}"}, data: {...}}}

Round 1 has the stages sample_1, rank_1 and distil_1, and so on. `${stages.sample...}` is the stage of the same round,
and outside of rounds that of the last one; `${round.number}` counts from 1. What is finished is kept, so that more
rounds continue where fewer have ended.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from prefkd.config.hints import shown
from prefkd.errors import ConfigError

MOST_ROUNDS = 100
_OURS = re.compile(r"rounds=|round\.")


def unroll(raw: Mapping[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The content of a pipeline's file with the stages of all rounds among its stages.

    Args:
        overrides: `key=value`; those of `rounds` and of what is under `round` are applied here.

    Returns:
        The content without `rounds` and `round`, and the other overrides.

    Raises:
        ConfigError: They are not what this module says.
    """
    content: dict[str, Any] = dict(raw)
    ours = [one for one in overrides if _OURS.match(one)]
    if ours and "round" in content:
        part = OmegaConf.create({name: content[name] for name in ("rounds", "round") if name in content})
        try:
            merged = OmegaConf.merge(part, OmegaConf.from_dotlist(ours))
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise ConfigError([f"{ours[0]}: is not a setting of rounds; write rounds=3"]) from error
        applied: Any = OmegaConf.to_container(merged)
        content |= applied
        overrides = [one for one in overrides if one not in ours]
    count, section = content.pop("rounds", None), content.pop("round", None)
    if count is None and section is None:
        return content, [*overrides]
    before = content.get("stages") or {}
    problems = [*_problems(count, section, before)]
    if problems:
        raise ConfigError(problems)
    assert isinstance(section, dict) and isinstance(count, int)
    inner, student = section["stages"], section["student"]
    stages = {name: _renamed(stage, inner, count, "") for name, stage in before.items()}
    for number in range(1, count + 1):
        newest = _renamed(student["then"], inner, number - 1, "") if number > 1 else student["first"]
        for name, stage in inner.items():
            stages[f"{name}_{number}"] = _renamed(stage, inner, number, newest)
    return content | {"stages": stages}, [*overrides]


def _problems(count: Any, section: Any, stages: Any) -> Iterator[str]:
    """What is wrong with `rounds` and `round`, one line each."""
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST_ROUNDS:
        yield f"rounds: {shown(count)} is not a number of rounds; use 2, say, or {MOST_ROUNDS} at most"
    if not isinstance(stages, dict):
        yield f"stages: {shown(stages)} is not a section; give a section for each stage, with recipe and config in it"
        return
    if not isinstance(section, dict):
        yield "round: missing; give student (first, then) and the stages of a round"
        return
    student, inner = section.get("student"), section.get("stages")
    if not isinstance(student, dict) or not all(isinstance(student.get(name), str) for name in ("first", "then")):
        yield "round.student: give first, the student of the first round, and then, what a round hands to the next"
    if not isinstance(inner, dict) or not inner:
        yield "round.stages: missing; give a section for each stage, with recipe and config in it"
        return
    yield from (
        f"round.{name}: unknown key; there are student and stages" for name in section.keys() - {"student", "stages"}
    )
    for name in inner:
        if name in stages or any(re.fullmatch(rf"{re.escape(str(name))}_\d+", str(other)) for other in stages):
            yield f"round.stages.{name}: is the name of another stage; rename one of them"


def _renamed(value: Any, inner: Mapping[str, Any], number: int, newest: str) -> Any:
    """A stage, or a part of one, as it is in a round."""
    if isinstance(value, dict):
        return {name: _renamed(part, inner, number, newest) for name, part in value.items()}
    if isinstance(value, list):
        return [_renamed(part, inner, number, newest) for part in value]
    if not isinstance(value, str):
        return value
    value = value.replace("${round.number}", str(number)).replace("${round.student}", newest)
    return re.sub(
        r"\$\{stages\.(\w+)\.", lambda found: f"${{stages.{found[1]}{f'_{number}' * (found[1] in inner)}.", value
    )
