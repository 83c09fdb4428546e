"""`prefkd pipeline`."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, arg

from prefkd import catalog
from prefkd.cli.arguments import Overrides, optional
from prefkd.cli.output import say
from prefkd.cli.run import Torchrun
from prefkd.errors import USE_LESS_MEMORY, PrefkdError
from prefkd.pipeline.plans import Plan, make_plans
from prefkd.pipeline.records import Contents, record_end, record_start
from prefkd.pipeline.stages import Stage, read_pipeline
from prefkd.terminal import console

try:
    import fcntl
except ImportError:  # Windows has no locks that a process hands on to those that it starts
    fcntl = None

_ONE_PROCESS = Torchrun()
# Exit codes of a stage that was told to stop: 128 + SIGINT, SIGTERM or SIGUSR1.
STOPPED = (130, 143, 138)


def pipeline(
    pipeline: Annotated[str, arg(metavar="PIPELINE")],
    overrides: Overrides = (),
    /,
    *,
    from_: Annotated[str | None, arg(name="from", metavar="STAGE", help_behavior_hint="")] = None,
    only: Annotated[str | None, optional("STAGE")] = None,
    dry_run: Annotated[FlagCreatePairsOff[bool], arg(help_behavior_hint="")] = False,
    torchrun: OmitArgPrefixes[Torchrun] = _ONE_PROCESS,
) -> None:
    """Run a chain of recipes, each on the output of earlier ones. Finished stages are skipped.

    For example:
        prefkd pipeline demo/pipeline
        prefkd pipeline demo/pipeline --dry-run
        prefkd pipeline ./mine.yaml output_dir=runs/second values.teacher=models/teacher
        prefkd pipeline ./mine.yaml stages.dpo.overrides.optimizer.lr=1e-5 --nproc-per-node 8
        prefkd pipeline ./mine.yaml --from score

    A stage runs again if its recipe, its settings, or the content of a file or folder that they name has changed since
    it finished. All stages that depend on it then run too. The folder of an earlier result is renamed, never deleted.

    Args:
        pipeline: Name of a pipeline, or the path of your own.
        overrides: Settings that override the file.
        from_: Run this stage and all that depend on it, finished or not. Earlier stages are left as they are.
        only: Run only this stage, finished or not.
        dry_run: Check everything and show what would run, and why; run nothing.
    """
    if from_ and only:
        raise PrefkdError("--from and --only exclude each other; give one of them")
    chain = read_pipeline(catalog.find_pipeline(pipeline), overrides)
    contents = Contents(chain.output_dir / ".contents.json")
    with Console(stderr=True).status("comparing with what is finished"):
        plans = make_plans(chain, contents, first=from_, only=only)
    _show(plans, {})
    due = [plan for plan in plans if plan.runs]
    if dry_run:
        return
    if not due:
        say("nothing to do; `--from STAGE` runs a stage again, with all that are built on it")
        return
    options = {name: value for name, value in asdict(torchrun).items() if value is not None}
    torchrun_options = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    again = ["prefkd", "pipeline", pipeline, *overrides, *torchrun_options]
    seconds: dict[str, float] = {}
    with _locked(chain.output_dir) as lock:
        for number, plan in enumerate(due, start=1):
            name = plan.stage.name
            _rule(f"stage {name} ({number} of {len(due)})")
            named = ["--from", name] if from_ else ["--only", name] if only else []
            seconds[name] = _run(plan, contents, torchrun_options, lock, shlex.join([*again, *named]))
            contents.save()
    _rule("all stages are finished" if not only else f"stage {only} is finished")
    _show(plans, seconds)
    for plan in due:
        if not any(plan.stage.name in other.stage.needs for other in plans):
            say(_next_step(plan.stage))


def _show(plans: Sequence[Plan], seconds: dict[str, float]) -> None:
    """Print the stages, with what they are going to do or, where it is known, how long they took."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("stage", "state", "time", "output"):
        table.add_column(title, overflow="fold")
    for plan in plans:
        stage, took = plan.stage, seconds.get(plan.stage.name, plan.seconds)
        state = "finished" if stage.name in seconds else f"runs: {plan.why}" if plan.runs else plan.why
        table.add_row(Text(stage.name, "bold"), Text(state), _duration(took), Text(str(stage.output_dir)))
    console().print(table)
    for plan in plans:
        if plan.aside is not None and not seconds:
            say(f"the old {plan.stage.output_dir} will be renamed to {plan.aside}")


def _rule(title: str) -> None:
    """Print a line across, with a title in it."""
    printer = console()
    printer.print(Rule(Text(title)), width=min(printer.width, 80))


def _run(plan: Plan, contents: Contents, options: Sequence[str], lock: int | None, again: str) -> float:
    """Run a stage in a process of its own, whose memory is free afterwards; returns its seconds.

    Raises:
        PrefkdError: If it fails. It has told why; this says how to continue.
    """
    stage = plan.stage
    if plan.aside is not None:
        stage.output_dir.rename(plan.aside)
    fingerprint = stage.fingerprint(contents)
    record_start(stage.output_dir, fingerprint)
    command = [sys.executable, "-m", "prefkd", "run", str(stage.recipe_path), "--config", str(stage.config_path)]
    began = time.monotonic()
    code = _wait([*command, *options, *stage.overrides], lock)
    if code in STOPPED:
        raise KeyboardInterrupt(f"interrupted in stage {stage.name}; `{again}` resumes it")
    if code < 0:
        cause = f"was ended by {signal.Signals(-code).name}; if memory ran out, {USE_LESS_MEMORY}; then"
    else:
        cause = "failed for the reason above; fix it, and"
    if code:
        raise PrefkdError(f"stage {stage.name} {cause} `{again}` resumes it and keeps what is finished")
    seconds = time.monotonic() - began
    record_end(stage.output_dir, fingerprint, seconds)
    return seconds


def _wait(command: Sequence[str], lock: int | None) -> int:
    """The exit code of a command, which hears of an interruption and of the end of this process."""
    sys.stdout.flush()
    process = subprocess.Popen(command, pass_fds=() if lock is None else (lock,))
    if lock is not None:
        os.pwrite(lock, f"{process.pid:<20}".encode(), 0)
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        return process.wait()
    except KeyboardInterrupt:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)  # the terminal has interrupted it as well, and it puts its things in order
        process.terminate()
        process.wait()
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _locked(folder: Path) -> Iterator[int | None]:
    """Keep other pipelines out of a folder as long as this process, or a stage that it has started, lives.

    Raises:
        PrefkdError: If another one is in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield None
        return
    path = folder / ".lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stage = path.read_text().strip() or "just starting"
            raise PrefkdError(
                f"{folder} is in use: a stage of it still runs (process {stage}); wait until it ends, or end it"
            ) from error
        yield lock
    finally:
        os.close(lock)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _next_step(stage: Stage) -> str:
    """What to do with the output of a last stage."""
    from prefkd.training.publish import try_it  # needs torch

    checkpoints = [path.parent for path in sorted(stage.output_dir.glob("*/config.json"))]
    if checkpoints:
        return try_it(checkpoints[0])
    return f"written: {stage.output_dir}"
