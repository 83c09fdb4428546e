"""Tasks of lm-eval, run by lm-eval itself: the Open LLM Leaderboard, those that CTPD reports, your own.

    <folder>/<checkpoint>/      results and samples as lm-eval writes them
    <folder>/<checkpoint>.jsonl a row for each task and metric: mean, standard error, and the number of each question
    <folder>/.<checkpoint>-*.db the answers of a run that was killed, which resumes with them

Besides the groups of lm-eval, such as `leaderboard`, there is `ctpd` (lm_eval_tasks/ctpd.yaml).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from prefkd.config.hints import LARGEST_SEED, size_problems
from prefkd.data.fingerprints import Fingerprint
from prefkd.data.template_settings import template_problems, template_settings
from prefkd.errors import PrefkdError, Problem
from prefkd.evaluation.checkpoints import Checkpoint, CheckpointConfig
from prefkd.evaluation.records import Records
from prefkd.evaluation.table import Series
from prefkd.evaluation.tasks import Attempts
from prefkd.files import fingerprint
from prefkd.ranks import Ranks
from prefkd.training.display import Bar

OWN_TASKS = Path(__file__).with_name("lm_eval_tasks")


@dataclass
class HarnessConfig:
    """Which tasks of lm-eval are run, and how.

    Attributes:
        tasks: Names of tasks or groups, `leaderboard` or `ctpd` for example, and paths of task files (.yaml).
        task_folders: Folders with task files of your own, which are known by name then.
        backend: The library that runs the models: transformers, or vLLM if it is installed.
        num_fewshot: Examples before each question; null = as the task has it.
        limit: Questions of each task, to try things out; null = all.
        batch_size: Questions that are read at the same time; null = as many as fit.
        apply_chat_template: Ask in the chat template that lies with each checkpoint's tokenizer; false = in none.
        model_args: Further arguments of the backend, as lm-eval calls them.
        seed: Seed of few-shot examples and draws.
    """

    tasks: list[str] = field(default_factory=list)
    task_folders: list[Path] = field(default_factory=list)
    backend: Literal["hf", "vllm"] = "hf"
    num_fewshot: int | None = None
    limit: int | None = None
    batch_size: int | None = None
    apply_chat_template: bool = False
    model_args: dict[str, Any] = field(default_factory=dict)
    seed: int = 1234

    def problems(self) -> Iterator[Problem | str]:
        if find_spec("lm_eval") is None:
            yield "tasks: they need the package lm-eval; pip install 'prefkd[lm-eval]'"
        if self.backend == "vllm" and find_spec("vllm") is None:
            yield "backend: vllm is not installed; pip install vllm, or use hf"
        if not self.tasks:
            yield "tasks: names none; give leaderboard, ctpd, or others that lm-eval knows"
        for name in self.tasks:
            if name.endswith((".yaml", ".yml")) and not Path(name).is_file():
                yield Problem("tasks", f"no file {name}", paths=(Path(name),))
        for folder in self.task_folders:
            if not folder.is_dir():
                yield Problem("task_folders", f"no folder {folder}", paths=(folder,))
        yield from size_problems(self, "limit", "batch_size")
        yield from size_problems(self, "seed", least=0, most=LARGEST_SEED)
        if self.num_fewshot is not None and self.num_fewshot < 0:
            yield f"num_fewshot: {self.num_fewshot} is negative; use 0 for none"

    def template_problems(self, checkpoints: Mapping[str, CheckpointConfig]) -> Iterator[str]:
        """Where lm-eval would ask in another template than a checkpoint is to be asked in."""
        for name, checkpoint in checkpoints.items() if self.apply_chat_template else ():
            if any(template_problems(checkpoint.template)):
                continue
            settings = template_settings(checkpoint.template)
            if settings.kind == "plain" or settings.path is not None or settings.arguments:
                yield (
                    f"checkpoints.{name}.template: lm_eval.apply_chat_template takes the tokenizer's own alone; use "
                    "auto, or lm_eval.apply_chat_template=false"
                )

    def fingerprint(self) -> Fingerprint:
        """What results depend on; a task file of the user's by its content."""
        files = [path for folder in self.task_folders for path in sorted(folder.rglob("*.y*ml"))]
        files += [Path(name) for name in self.tasks if Path(name).is_file()]
        contents = [path.read_text(encoding="utf-8") for path in files]
        settings = {name: str(value) for name, value in vars(self).items() if name not in ("tasks", "batch_size")}
        return {
            "lm_eval.tasks": " ".join(self.tasks),
            "lm_eval.settings": fingerprint("lm_eval", sorted(settings.items()), contents),
            "lm_eval.version": version("lm-eval"),
        }


class HarnessTask:
    """Runs the tasks of lm-eval for one checkpoint after the other.

    Args:
        config: Which tasks.
        folder: Where results go.
        ranks: One process alone; lm-eval shares work among GPUs itself.

    Raises:
        PrefkdError: There are several processes, or lm-eval does not know a task.
    """

    name = "lm-eval"
    size = 1

    def __init__(self, config: HarnessConfig, *, folder: Path, ranks: Ranks):
        if ranks.world_size > 1:
            raise PrefkdError(
                "lm_eval: runs in one process; leave torchrun out, and spread a model over GPUs with "
                "lm_eval.model_args.parallelize=true"
            )
        self.config = config
        self.folder = folder
        self.ranks = ranks
        self.manager = _task_manager(config)
        self.records: dict[str, Records] = {}

    def ask(self, checkpoint: Checkpoint, bar: Bar) -> None:
        """Run all tasks for a checkpoint, unless that was done before."""
        parts = checkpoint.fingerprint | self.config.fingerprint()
        records = Records(self.folder / f"{checkpoint.name}.jsonl", parts, self.ranks)
        if not records.finished:
            checkpoint.release()  # lm-eval loads the model itself
            answers = self.folder / f".{checkpoint.name}-{fingerprint('lm_eval', sorted(parts.items()))}"
            folder = self.folder / checkpoint.name
            records.add(run_harness(checkpoint, self.config, self.manager, folder=folder, answers=answers))
            records.finish()
            for path in self.folder.glob(f".{checkpoint.name}-*.db"):
                path.unlink()
        bar.advance(f"{self.name}: {checkpoint.name}", steps=1)
        self.records[checkpoint.name] = records

    def score(self, attempts: Attempts) -> None:
        """lm-eval has scored all answers."""

    def series(self) -> Iterator[Series]:
        """The metrics of all tasks. Of a group lm-eval tells mean and standard error alone."""
        for checkpoint, records in self.records.items():
            for row in records.rows.values():
                series = Series(row["task"], "", row["metric"], checkpoint, is_percent=row["is_share"])
                if row["values"] is not None:
                    yield replace(series, values=row["values"])
                else:
                    yield replace(series, reported=(row["mean"], row["standard_error"]))

    def notes(self) -> Iterator[str]:
        """What a limit means for the numbers."""
        if self.config.limit is not None:
            yield f"lm-eval: {self.config.limit} questions of each task; not to be compared with published numbers"


def run_harness(
    checkpoint: Checkpoint, config: HarnessConfig, manager: Any, *, folder: Path, answers: Path
) -> list[dict[str, Any]]:
    """Run tasks of lm-eval, and keep its results.

    Args:
        checkpoint: The model, which lm-eval loads.
        config: Which tasks.
        manager: lm-eval's task manager.
        folder: Where lm-eval writes.
        answers: Start of the name of a file in which lm-eval keeps what the model has answered so far.

    Returns:
        A row for each task and metric: `key`, `task`, `metric`, `mean`, `standard_error` (or None), `is_share` (whether
        all numbers lie between 0 and 1), and `values`, question -> number, or None where the mean is not over these.
    """
    problem = checkpoint.config.missing()
    if problem is not None:
        raise PrefkdError(problem)
    if checkpoint.config.quantization != "none":
        raise PrefkdError("lm-eval loads the model itself, and cannot quantize it as asked; use quantization: none")
    lm_eval: Any = import_module("lm_eval")
    tracker: Any = import_module("lm_eval.loggers").EvaluationTracker(output_path=str(folder))
    results = lm_eval.simple_evaluate(
        model=config.backend,
        model_args=_model_args(checkpoint.config, config),
        tasks=list(config.tasks),
        num_fewshot=config.num_fewshot,
        batch_size=config.batch_size or "auto",
        device=str(checkpoint.device),
        limit=config.limit,
        apply_chat_template=config.apply_chat_template,
        task_manager=manager,
        evaluation_tracker=tracker,
        use_cache=str(answers),
        random_seed=config.seed,
        numpy_random_seed=config.seed,
        torch_random_seed=config.seed,
        fewshot_random_seed=config.seed,
    )
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for task, rows in samples.items():
        tracker.save_results_samples(task_name=task, samples=rows)
    return [
        _row(task, metric, numbers, samples.get(task, []))
        for task, numbers in results["results"].items()
        for metric in numbers
        if "," in metric and "_stderr," not in metric
    ]


def _row(task: str, name: str, numbers: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A metric of a task. lm-eval names it `metric,filter`."""
    metric, _, filter_name = name.partition(",")
    error = numbers.get(f"{metric}_stderr,{filter_name}")
    values = {
        str(sample["doc_id"]): float(sample[metric])
        for sample in samples
        if sample.get("filter", "none") == filter_name and isinstance(sample.get(metric), (int, float))
    }
    mean = float(numbers[name])
    # The questions tell nothing of a metric that is not a mean over them, such as perplexity.
    is_mean = bool(values) and abs(float(np.mean(list(values.values()))) - mean) < 1e-6
    return {
        "key": f"{task}/{name}",
        "task": task,
        "metric": metric if filter_name == "none" else f"{metric} {filter_name}",
        "mean": mean,
        "standard_error": float(error) if isinstance(error, (int, float)) else None,
        "is_share": all(0 <= value <= 1 for value in (values.values() if is_mean else [mean])),
        "values": values if is_mean else None,
    }


def _model_args(checkpoint: CheckpointConfig, config: HarnessConfig) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "pretrained": checkpoint.path,
        "dtype": checkpoint.dtype,
        "trust_remote_code": checkpoint.trust_remote_code,
    }
    if checkpoint.revision is not None:
        names = ("revision",) if config.backend == "hf" else ("revision", "tokenizer_revision")
        arguments |= dict.fromkeys(names, checkpoint.revision)
    if checkpoint.adapter is not None:
        arguments["peft" if config.backend == "hf" else "lora_local_path"] = checkpoint.adapter
    return arguments | config.model_args


def _task_manager(config: HarnessConfig) -> Any:
    """lm-eval's task manager, with its thousands of tasks only where one of them is asked for: they take a while."""
    task_manager: Any = import_module("lm_eval.tasks").TaskManager
    folders = [OWN_TASKS, *config.task_folders]
    own = task_manager(include_path=folders, include_defaults=False)
    if all(Path(name).is_file() or name in own.all_tasks for name in config.tasks):
        with suppress(Exception):  # a file of the user's may build on a task of lm-eval's
            own.load(list(config.tasks))
            return own
    manager = task_manager(include_path=folders)
    for name in config.tasks:
        if not Path(name).is_file() and name not in manager.all_tasks:
            close = get_close_matches(name, manager.all_tasks, n=1)
            hint = f"did you mean {close[0]}?" if close else "`lm-eval ls tasks` lists all"
            raise PrefkdError(f"lm_eval.tasks: lm-eval knows no task {name}; {hint}")
    return manager
