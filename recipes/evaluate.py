"""Compare checkpoints: preference accuracy, and answers under scorers of your choice, in one table with intervals.

Give it what came before and after a training, and the teacher: each number comes with a bootstrap interval, and with
the paired difference to a baseline, which tells a gain from luck long before the intervals stop overlapping.

    prefkd run evaluate --config demo/evaluate

After a kill, the same command resumes where it left off; what is finished is only read. A checkpoint that
is missing or damaged does not stop the others: the table says why it failed.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from prefkd.config import save_config
from prefkd.config.hints import LARGEST_SEED, size_problems
from prefkd.errors import PrefkdError, Problem, nearest
from prefkd.evaluation.answers import AnswersConfig, AnswersTask
from prefkd.evaluation.checkpoints import Checkpoint, CheckpointConfig
from prefkd.evaluation.harness import HarnessConfig, HarnessTask
from prefkd.evaluation.preferences import PreferencesConfig, PreferenceTask, read_pairs
from prefkd.evaluation.table import ResultTable, make_rows
from prefkd.evaluation.tasks import Attempts, Task
from prefkd.ranks import Ranks, join_ranks
from prefkd.training.display import Display
from prefkd.training.settings import folder_problems

MOST_RESAMPLES = 1_000_000  # 100 times as many as change an interval that a reader sees


@dataclass
class Config:
    """All settings of a run; the YAML file and the key=value overrides are laid over these defaults.

    Attributes:
        output_dir: Folder of the table, of all numbers that it is made from, and of the resolved config.
        checkpoints: Name -> model; the names are those of the table, which keeps their order.
        baseline: Name of the checkpoint that the others are compared with.
        reference: Name of the checkpoint from which implicit rewards are measured, such as the start of a DPO.
        preferences: Preference accuracy on pairs; null = none.
        answers: Name -> prompts that are answered, and who scores the answers.
        lm_eval: Tasks of lm-eval; null = none.
        resamples: Samples of each bootstrap.
        seed: Seed of the bootstrap.
        device: `auto` takes the GPU where there is one.
    """

    output_dir: Path
    checkpoints: dict[str, CheckpointConfig]
    baseline: str | None = None
    reference: str | None = None
    preferences: PreferencesConfig | None = None
    answers: dict[str, AnswersConfig] = field(default_factory=dict)
    lm_eval: HarnessConfig | None = None
    resamples: int = 2000
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def outputs(self) -> tuple[str, ...]:
        """What a later stage of a pipeline can build on."""
        return ("table.json",)

    def problems(self) -> Iterator[Problem | str]:
        yield from folder_problems(self.output_dir)
        if not self.checkpoints:
            yield "checkpoints: there are none; give them as name: {path: ...}"
        data = self.preferences.data if self.preferences else {}
        for key, names in {"checkpoints": self.checkpoints, "preferences.data": data, "answers": self.answers}.items():
            for name in names:
                if not re.fullmatch(r"[\w.-]+", name):
                    yield f"{key}.{name}: is the name of files as well; use letters, digits, - and _"
        for name in data.keys() & self.answers.keys():
            yield f"answers.{name}: the table would have two tasks of this name; rename it or preferences.data.{name}"
        for key in ("baseline", "reference"):
            name = getattr(self, key)
            if name is not None and self.checkpoints and name not in self.checkpoints:
                yield f"{key}: {name} is not a checkpoint{nearest(name, self.checkpoints)}"
        if self.preferences is None and not self.answers and self.lm_eval is None:
            yield "preferences: there is nothing to evaluate; give data: {name: {source: ...}}, answers, lm_eval"
        for name, task in self.answers.items():
            if task.judge is not None and self.baseline is None:
                yield f"answers.{name}.judge: compares with the baseline, and there is none; name one"
        if self.lm_eval is not None:
            yield from self.lm_eval.template_problems(self.checkpoints)
        if self.resamples < 100:
            yield f"resamples: {self.resamples} is too small for an interval; use 1000 or more"
        yield from size_problems(self, "resamples", most=MOST_RESAMPLES)
        yield from size_problems(self, "seed", least=0, most=LARGEST_SEED)
        if self.device == "cuda" and not torch.cuda.is_available():
            yield Problem("device", "cuda is not available here; use auto or cpu", about="device")


@dataclass
class Run:
    """What `setup` prepares and `evaluate` uses."""

    ranks: Ranks
    display: Display
    checkpoints: list[Checkpoint]
    tasks: list[Task]
    attempts: Attempts


def load_data(config: Config, ranks: Ranks) -> list[Task]:
    """Read the pairs and the prompts; the main rank first, so that the others find its work in the cache."""
    tasks: list[Task] = []
    with ranks.main_first():
        if config.preferences is not None:
            for name, data in config.preferences.data.items():
                pairs, folder = read_pairs(data), config.output_dir / "preferences" / name
                tasks.append(
                    PreferenceTask(
                        name, pairs, config.preferences, folder=folder, reference=config.reference, ranks=ranks
                    )
                )
        for name, task in config.answers.items():
            folder = config.output_dir / "answers" / name
            tasks.append(AnswersTask(name, task, folder=folder, baseline=config.baseline, ranks=ranks))
        if config.lm_eval is not None:
            tasks.append(HarnessTask(config.lm_eval, folder=config.output_dir / "lm_eval", ranks=ranks))
    return tasks


def setup(config: Config, ranks: Ranks) -> Run:
    """Read the data, and say what is going to happen."""
    display = Display(ranks)
    tasks = load_data(config, ranks)
    # Each is in memory only while it is asked.
    checkpoints = [Checkpoint(name, model, ranks.device) for name, model in config.checkpoints.items()]
    if ranks.is_main:
        config.output_dir.mkdir(parents=True, exist_ok=True)
        save_config(config, config.output_dir / "config.yaml")
    display.table(
        "evaluate",
        {checkpoint.name: f"{checkpoint.description}  {checkpoint.config.dtype}" for checkpoint in checkpoints}
        | {
            "tasks": ", ".join(f"{task.name} ({task.size})" for task in tasks),
            "baseline": config.baseline or "none",
            "reference": config.reference or "none",
            "on": f"{ranks.device}, {ranks.processes}",
            "output": config.output_dir,
        },
    )
    return Run(ranks, display, checkpoints, tasks, Attempts(display))


def evaluate(run: Run) -> None:
    """Ask each checkpoint everything while it is in memory."""
    with run.display.progress(len(run.checkpoints) * sum(task.size for task in run.tasks)) as bar:
        for checkpoint in run.checkpoints:
            # ---------------------------------------------------------------------------------------- one checkpoint
            for task in run.tasks:
                with run.attempts.attempt(checkpoint.name, task.name):
                    task.ask(checkpoint, bar)
            checkpoint.release()
            # ------------------------------------------------------------------------------------------------------


def save(config: Config, run: Run) -> ResultTable:
    """Let others judge the answers, and make the table: on the terminal, as Markdown, JSON and CSV."""
    for task in run.tasks:
        task.score(run.attempts)
    series = [one for task in run.tasks for one in task.series()]
    table = ResultTable(
        baseline=config.baseline,
        rows=make_rows(series, baseline=config.baseline, resamples=config.resamples, seed=config.seed),
        failures=run.attempts.failures,
        notes=[note for task in run.tasks for note in task.notes()],
    )
    run.display.console.print(table.terminal())
    run.display.table("files", {path.name: path for path in table.write(config.output_dir)})
    return table


def main(config: Config) -> None:
    """Run the recipe."""
    with join_ranks(config.device) as ranks:
        run = setup(config, ranks)
        evaluate(run)
        if not ranks.is_main:
            return
        table = save(config, run)
    if table.failures:
        failed = ", ".join(sorted({failure.checkpoint for failure in table.failures}))
        raise PrefkdError(f"{len(table.failures)} parts failed ({failed}); fix them and run the same command again")
