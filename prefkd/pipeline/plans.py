"""Which stages of a pipeline run, why, and what becomes of the folders that they find."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prefkd.errors import ConfigError, PrefkdError, Problem, nearest
from prefkd.pipeline.records import Contents, Record, read_record
from prefkd.pipeline.stages import Pipeline, Stage, in_stage


@dataclass(frozen=True)
class Plan:
    """What happens to a stage.

    Attributes:
        why: The reason, a few words.
        aside: The name that its old folder gets, so that nothing is lost; None where there is none or where it resumes.
        seconds: How long it took, if it is finished already.
    """

    stage: Stage
    runs: bool
    why: str
    aside: Path | None = None
    seconds: float | None = None


def make_plans(pipeline: Pipeline, contents: Contents, *, first: str | None, only: str | None) -> list[Plan]:
    """Compare each stage with the record of what was finished.

    Args:
        first: Run this stage and all that are built on it, and take those on which it is built as they are.
        only: Run no stage but this one.

    Raises:
        PrefkdError: If there is no such stage.
        ConfigError: With the problems of the stages that would run; what an earlier stage will write may be missing.
    """
    names = [stage.name for stage in pipeline.stages]
    for option, name in (("from", first), ("only", only)):
        if name is not None and name not in names:
            raise PrefkdError(f"--{option}: there is no stage {name}{nearest(name, names)}")
    named = first or only
    fixed = pipeline.built_on(named) if named else set()
    plans: dict[str, Plan] = {}
    problems: list[Problem | str] = []
    for stage in pipeline.stages:
        record = read_record(stage.output_dir)
        seconds = record.seconds if record else None
        running = sorted(name for name in stage.needs if plans[name].runs)
        if stage.name in fixed:
            plans[stage.name] = Plan(stage, False, "taken as it is", seconds=seconds)
            if seconds is None:
                option = "--from" if first else "--only"
                problems.append(f"stage {stage.name} is not finished, and {named} needs it; leave {option} out")
        elif only not in (None, stage.name):
            plans[stage.name] = Plan(stage, False, f"left out: only {only}", seconds=seconds)
        else:
            reason = _reason(stage, record, running, contents)
            if reason is None and stage.name == named:
                reason = "asked for"
            if reason is None:
                plans[stage.name] = Plan(stage, False, "finished", seconds=seconds)
                continue
            goes_on = reason == "unfinished" and not _is_refused(stage)
            aside = None if goes_on else _aside(stage.output_dir)
            plans[stage.name] = Plan(stage, True, f"{reason}, resumes" if goes_on else reason, aside)
            problems += _problems(stage, [plans[name].stage.output_dir for name in running])
    if problems:
        raise ConfigError(problems)
    return [*plans.values()]


def _reason(stage: Stage, record: Record | None, running: list[str], contents: Contents) -> str | None:
    """Why a stage must run, None if it need not."""
    if record is None:
        return "new"
    changes = record.fingerprint.changes(stage.fingerprint(contents))
    if changes:
        more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        return f"changed: {', '.join(changes[:3])}{more}"
    if running:
        return f"{' and '.join(running)} will change"
    if record.seconds is None:
        return "unfinished"
    lost = record.lost(stage.output_dir)
    return f"lost: {', '.join(lost[:3])}" if lost else None


def _problems(stage: Stage, coming: list[Path]) -> Iterator[Problem]:
    """What its config says against running it, but for what other stages are going to write and for its old folder."""
    for problem in stage.problems:
        if not problem.lies_in(coming) and not (_is_about_folder(problem) and stage.output_dir.is_dir()):
            yield in_stage(stage.name, problem)


def _is_refused(stage: Stage) -> bool:
    """Whether the recipe does not resume in the folder that it finds."""
    return any(map(_is_about_folder, stage.problems))


def _is_about_folder(problem: Problem) -> bool:
    return problem.key == "output_dir"


def _aside(folder: Path) -> Path | None:
    """A free name for an old folder, None where there is nothing to keep."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    number = 1
    while (aside := folder.with_name(f"{folder.name}.before-{number}")).exists():
        number += 1
    return aside
