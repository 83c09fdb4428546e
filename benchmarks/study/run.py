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
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import tyro
import yaml
from omegaconf import OmegaConf
from on_policy import round_stages
from transformers import AutoTokenizer

from prefkd.data.pairs import DataConfig, load_pairs

HERE = Path(__file__).resolve().parent
# Whatever the length of a seed, these come in this order: rows that answer the question first.
MAIN = ("dpo", "dpo_distill", "tis_teacher", "tis_student", "sft")
# What other recipes than trainings leave when they have finished.
UNTRAINED = {
    "sample": "sample_report.json",
    "rank": "pairs.jsonl",
    "score": "scores_done",
    "shuffle_scores": "scores",
}
# What a template may add to a text, in tokens.
TEMPLATE = 32
LOCKS: dict[str, Lock] = defaultdict(Lock)


@dataclass
class Arguments:
    """What to run, on what, and for how long."""

    student: str
    """Folder or Hub id of the student."""
    teacher: str
    """Folder or Hub id of the teacher."""
    data: str
    """Preference pairs, as data.source of a config."""
    subset: str | None = None
    """data.subset of a config."""
    split: str = "train"
    """data.split of a config."""
    out: Path = Path("runs/study")
    """Folder of the runs."""
    rows: tuple[str, ...] = MAIN
    """Rows of rows.yaml, in the order in which they run."""
    rows_file: Path = HERE / "rows.yaml"
    """The trainings, by name."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds that shuffle the pairs."""
    rates: tuple[float, ...] = ()
    """Learning rates from which each row takes its best on the development pairs; that of rows.yaml if not given."""
    train_pairs: int = 56
    """Pairs that a student sees; the large teacher sees ten times as many."""
    held_out_pairs: int = 160
    """Pairs that all rows are compared on."""
    development_pairs: int = 48
    """Pairs that learning rates are chosen on."""
    tokens: int = 224
    """Pairs for which a model would read more tokens are left out."""
    minutes: float = 60.0
    """When this time is over, the runs that are under way write a checkpoint and end."""
    parallel: int = 1
    """Rows that run at the same time, on the same device."""
    judge: str | None = None
    """Adapter of the student's base that judges answers: the DPO teacher of the study in the other direction."""
    answered: int = 64
    """Held-out prompts that are answered for the judge."""
    answer_tokens: int = 64
    """Most tokens of such an answer."""
    overrides: tuple[str, ...] = field(default=())
    """Settings of every training, key=value."""


@dataclass(frozen=True)
class Job:
    """A run of a recipe.

    Attributes:
        name: Its folder in `out`.
        recipe: The recipe that runs.
        settings: Its whole config.
        proof: The file or folder that is there once it has finished.
    """

    name: str
    recipe: str
    settings: dict[str, Any]
    proof: Path


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


def split_pairs(arguments: Arguments) -> None:
    """Share the pairs out once, each prompt to one part, into files that the runs read."""
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    sizes = {
        name: getattr(arguments, name) for name in ("train_pairs", "held_out_pairs", "development_pairs", "tokens")
    }
    if (out / "sizes.json").exists():
        if json.loads((out / "sizes.json").read_text()) != sizes:
            raise SystemExit(f"{out} holds a study of other sizes; name another --out")
        return
    config = DataConfig(
        source=arguments.data, subset=arguments.subset, split=arguments.split, held_out_fraction=0.0, on_bad_row="skip"
    )
    read = load_pairs(config).train
    tokenizers: list[Any] = [AutoTokenizer.from_pretrained(path) for path in (arguments.student, arguments.teacher)]
    short, prompts = [], set()
    for row in read.shuffle(seed=0):
        pair: dict[str, Any] = {name: row[name] for name in ("prompt", "chosen", "rejected")}  # pyright: ignore
        prompt = "\n\n".join(f"{message['role']}: {message['content']}" for message in pair["prompt"])
        longest = max(
            len(tokenizer(prompt + pair[answer])["input_ids"])
            for tokenizer in tokenizers
            for answer in ("chosen", "rejected")
        )
        if longest + TEMPLATE <= arguments.tokens and prompt not in prompts:
            prompts.add(prompt)
            short.append(pair)
    parts = {"held_out": sizes["held_out_pairs"], "development": sizes["development_pairs"]}
    needed = sum(parts.values()) + 10 * sizes["train_pairs"]
    if len(short) < needed:
        raise SystemExit(
            f"{len(short)} pairs are short enough, and {needed} are needed; lower a size or raise --tokens"
        )
    first = 0
    for name, size in parts.items():
        write_pairs(out / f"{name}.jsonl", short[first : first + size])
        first += size
    write_pairs(out / "pairs.jsonl", short[first : first + sizes["train_pairs"]])
    write_pairs(out / "many_pairs.jsonl", short[first : first + 10 * sizes["train_pairs"]])
    (out / "sizes.json").write_text(json.dumps(sizes))
    print(f"{len(short)} of {len(read)} pairs are short enough", flush=True)


def write_pairs(path: Path, pairs: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs), encoding="utf-8")


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
        rate = best_rate(row, arguments)
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
    name = f"{row}/seed_{seed}" + (f"_lr_{rate:g}" if rate else "")
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


def training(name: str, settings: dict[str, Any], arguments: Arguments) -> Job:
    """A run of a training recipe, or of one that training builds on."""
    recipe, out = settings["recipe"], arguments.out / name
    student = {"sft": "model", "dpo": "model"}.get(recipe, "student")
    proof = UNTRAINED.get(recipe, "adapter" if settings.get("lora") else student)
    return Job(name, recipe, settings | {"output_dir": str(out)}, out / proof)


def evaluation(name: str, checkpoint: dict[str, Any], part: str, arguments: Arguments) -> Job:
    """The log-probs that a checkpoint gives the answers of some pairs, in float32."""
    out = arguments.out / "read" / part / name
    data = {"source": str(arguments.out / f"{part}.jsonl"), "max_length": 256, "max_prompt_length": 224}
    settings = {
        "recipe": "evaluate",
        "output_dir": str(out),
        "checkpoints": {"model": {"dtype": "float32", **checkpoint}},
        "preferences": {"data": {"pairs": data}, "microbatch_size": 8},
    }
    return Job(f"read/{part}/{name}", "evaluate", settings, out / "table.json")


def answering(name: str, checkpoint: dict[str, Any], arguments: Arguments) -> Job:
    """The answers of a checkpoint to held-out prompts."""
    out = arguments.out / "read" / "answers" / name
    prompts = {"source": str(arguments.out / "held_out.jsonl"), "limit": arguments.answered}
    sampling = {"max_new_tokens": arguments.answer_tokens, "batch_size": 16}
    scorers = {"words": {"_component_": "prefkd.evaluation.scorers.words"}}
    settings = {
        "recipe": "evaluate",
        "output_dir": str(out),
        "checkpoints": {"model": {"dtype": "float32", **checkpoint}},
        "answers": {"held_out": {"prompts": prompts, "sampling": sampling, "scorers": scorers}},
    }
    return Job(f"read/answers/{name}", "evaluate", settings, out / "table.json")


def write_comparisons(name: str, arguments: Arguments) -> int:
    """Pairs of a row's answers with those of the start, where they differ and none is empty; returns how many."""
    own, start = answers(arguments.out, name), answers(arguments.out, "start")
    rows = [
        {"prompt": own[key]["prompt"], "chosen": own[key]["answer"], "rejected": start[key]["answer"]}
        for key in start
        if own[key]["answer"] != start[key]["answer"] and own[key]["answer"] and start[key]["answer"]
    ]
    path = comparisons(arguments.out, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_pairs(path, rows)
    return len(rows)


def comparisons(out: Path, name: str) -> Path:
    """The file of answers that are judged."""
    return out / "read" / "answers" / name / "against_start.jsonl"


def judging(name: str, arguments: Arguments) -> Job:
    """The log-probs that the judge and its base give a row's answers and those of the start."""
    out = arguments.out / "read" / "judged" / name
    data = {"source": str(comparisons(arguments.out, name)), "max_length": 512, "max_prompt_length": 384}
    base = {"path": arguments.student, "dtype": "float32"}
    settings = {
        "recipe": "evaluate",
        "output_dir": str(out),
        "checkpoints": {"judge": base | {"adapter": arguments.judge}, "base": base},
        "preferences": {"data": {"pairs": data}, "microbatch_size": 8},
    }
    return Job(f"read/judged/{name}", "evaluate", settings, out / "table.json")


def best_rate(row: str, arguments: Arguments) -> float:
    """The learning rate of a row with the highest reward accuracy on the development pairs."""
    start = records(arguments.out, "development", "start")
    seed = arguments.seeds[0]

    def accuracy(rate: float) -> float:
        found = records(arguments.out, "development", f"{row}/seed_{seed}_lr_{rate:g}")
        gained = [margin(found[key]) > margin(start[key]) for key in start]
        return float(np.mean(gained))

    return max(arguments.rates, key=accuracy)


def records(out: Path, part: str, name: str, checkpoint: str = "model") -> dict[str, dict[str, Any]]:
    """What `evaluate` has written of a model, by pair."""
    return by_key(out / "read" / part / name / "preferences" / "pairs" / f"{checkpoint}.jsonl")


def answers(out: Path, name: str) -> dict[str, dict[str, Any]]:
    """What a row has answered, by prompt."""
    return by_key(out / "read" / "answers" / name / "answers" / "held_out" / "answers" / "model.jsonl")


def by_key(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return {row["key"]: row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}


def margin(row: dict[str, Any]) -> float:
    """log pi(chosen) - log pi(rejected), in nats."""
    return row["chosen_logprob"] - row["rejected_logprob"]


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
