r"""Train and evaluate the rows of the study (plan.md); stopped at any moment, the same command resumes.

    python benchmarks/study/run.py --student models/smollm2-135m-instruct --teacher models/gemma-3-270m \
        --data Anthropic/hh-rlhf --subset harmless-base --split test --minutes 90
    python benchmarks/study/summary.py

Rows are entries of rows.yaml, a training of one of prefkd's recipes each. Each training is a process of its own, on a
GPU if there is one: first the teachers that a row needs, then the row, then its held-out pairs. A seed is finished
before the next one begins, so that whatever time there was, the table compares rows on equal terms. On a GPU with room,
`--parallel 4` runs four rows at a time.

The other direction is the same command with the two models swapped and another `--out`. Its DPO teacher is a judge that
no row of this direction has trained on:

    ... --judge runs/study_reverse/dpo_teacher/adapter
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import tyro
import yaml
from jobs import UNTRAINED, Job, answering, evaluation, judging, training, write_comparisons
from omegaconf import OmegaConf
from on_policy import round_stages
from readings import best_rate, run_name
from settings import HERE, Arguments
from sharing import split_pairs

LOCKS: dict[str, Lock] = defaultdict(Lock)


class OutOfTime(Exception):
    """The time is over."""


def main(arguments: Arguments) -> None:
    deadline = time.monotonic() + 60 * arguments.minutes
    entries = read_rows(arguments)
    if unknown := set(arguments.rows) - entries["rows"].keys():
        raise SystemExit(f"no row is named {', '.join(sorted(unknown))}; there are {', '.join(entries['rows'])}")
    split_pairs(arguments)
    try:
        for chains in plan(arguments, entries):
            if arguments.parallel == 1:
                for jobs in chains:
                    finish_all(jobs, arguments, deadline)
                continue
            with ThreadPoolExecutor(arguments.parallel) as pool:
                list(pool.map(lambda jobs: finish_all(jobs, arguments, deadline), chains))
    except OutOfTime:
        print("the time is over; the same command resumes", flush=True)
    else:
        print("all rows are finished", flush=True)


def read_rows(arguments: Arguments) -> dict[str, Any]:
    """The sections of rows.yaml with the paths of this study."""
    given = {
        "student": arguments.student,
        "teacher": arguments.teacher,
        "out": str(arguments.out),
        "pairs": str(arguments.out / "pairs.jsonl"),
        "many_pairs": str(arguments.out / "many_pairs.jsonl"),
    }
    merged = OmegaConf.merge(OmegaConf.create(given), OmegaConf.load(arguments.rows_file))
    found: Any = OmegaConf.to_container(merged, resolve=True)
    for name, row in [*found["teachers"].items(), *found["rows"].items()]:
        if row["recipe"] not in UNTRAINED:
            row["training"] = found["length"] | row.get("training", {})
        row["output_dir"] = str(arguments.out / name)
    return found


def plan(arguments: Arguments, entries: dict[str, Any]) -> Iterator[list[Iterator[Job]]]:
    """Chains of runs that may run at the same time, one group after the other."""
    yield [start_jobs(arguments)]
    for seed in arguments.seeds:
        yield [chain(row, seed, arguments, entries) for row in arguments.rows]
    built = {name for row in arguments.rows for name in teachers(entries["rows"][row], entries, arguments.out)}
    taught = [name for name in entries["teachers"] if name in built and entries["teachers"][name]["recipe"] == "dpo"]
    adapted = {name: {"path": arguments.teacher, "adapter": f"{arguments.out}/{name}/adapter"} for name in taught}
    yield [iter([evaluation(name, checkpoint, "held_out", arguments)]) for name, checkpoint in adapted.items()]


def start_jobs(arguments: Arguments) -> Iterator[Job]:
    """What is read of the untrained student."""
    start = {"path": arguments.student}
    for part in ("held_out", *(("development",) if arguments.rates else ())):
        yield evaluation("start", start, part, arguments)
    if arguments.judge:
        yield answering("start", start, arguments)


def chain(row: str, seed: int, arguments: Arguments, entries: dict[str, Any]) -> Iterator[Job]:
    """The teachers of a row, the choice of its learning rate, and the row; each job is known when the last is done."""
    settings = entries["rows"][row]
    for needed in teachers(settings, entries, arguments.out):
        yield training(needed, entries["teachers"][needed], arguments)
    rate = None
    if arguments.rates:
        for tried in arguments.rates:
            yield from row_jobs(row, settings, arguments.seeds[0], arguments, rate=tried, part="development")
        rate = best_rate(arguments.out, row, arguments.seeds[0], arguments.rates, arguments.primary)
    yield from row_jobs(row, settings, seed, arguments, rate=rate, part="held_out")


def teachers(settings: Any, entries: dict[str, Any], out: Path) -> list[str]:
    """Names of the trainings on whose folders a config builds, in the order of rows.yaml."""
    text = json.dumps(settings)
    direct = [name for name in entries["teachers"] if f'"{out}/{name}/' in text]
    before = [earlier for name in direct for earlier in teachers(entries["teachers"][name], entries, out)]
    return list(dict.fromkeys([*before, *direct]))


def row_jobs(
    row: str, settings: dict[str, Any], seed: int, arguments: Arguments, *, rate: float | None, part: str
) -> Iterator[Job]:
    """The training of a row with a seed and the reading of pairs after it."""
    name = run_name(row, seed, rate)
    changed = settings | {"training": settings["training"] | {"seed": seed}}
    if rate:
        changed["optimizer"] = settings["optimizer"] | {"lr": rate}
    stages = round_stages(name, changed, arguments.out) if "rounds" in changed else [(name, changed)]
    for stage, its_settings in stages:
        job = training(stage, its_settings, arguments)
        yield job
    checkpoint = {"path": str(job.proof)}
    yield evaluation(name, checkpoint, part, arguments)
    if arguments.judge and part == "held_out":
        yield answering(name, checkpoint, arguments)
        if write_comparisons(name, arguments):
            yield judging(name, arguments)


def finish_all(jobs: Iterable[Job], arguments: Arguments, deadline: float) -> None:
    """Run a chain of jobs. Of two chains that need the same teacher, one waits for the other."""
    for job in jobs:
        with LOCKS[job.name]:
            finish(job, arguments, deadline)


def finish(job: Job, arguments: Arguments, deadline: float) -> None:
    """Run a job unless it has finished; it resumes where it was stopped.

    Raises:
        OutOfTime: Before it has finished.
    """
    if job.proof.exists():
        return
    left = deadline - time.monotonic()
    if left < 20:
        raise OutOfTime
    config = arguments.out / "configs" / f"{job.name.replace('/', '_')}.yaml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(yaml.safe_dump(job.settings, sort_keys=False), encoding="utf-8")
    overrides = () if job.recipe in ("evaluate", *UNTRAINED) else arguments.overrides
    own = HERE / f"{job.recipe}.py"  # a recipe of the study
    recipe = str(own) if own.exists() else job.recipe
    command = [sys.executable, "-m", "prefkd", "run", recipe, "--config", str(config), *overrides]
    print(f"{time.strftime('%H:%M:%S')} {job.name}", flush=True)
    if code := execute(command, config.with_suffix(".log"), left):
        raise SystemExit(f"{job.name} failed with exit code {code}; see {config.with_suffix('.log')}")
    if job.recipe == "score":
        job.proof.touch()


def execute(command: list[str], log: Path, seconds: float) -> int:
    """Run a command; returns its exit code.

    Raises:
        OutOfTime: It has taken so long, and was told to end.
    """
    with log.open("a") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise OutOfTime from None


if __name__ == "__main__":
    main(tyro.cli(Arguments))
