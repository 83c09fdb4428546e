r"""Train and evaluate the rows of the study (plan.md); stopped at any moment, the same command resumes.

    python benchmarks/study/run.py --student models/smollm2-135m-instruct --teacher models/gemma-3-270m \
        --data Anthropic/hh-rlhf --subset harmless-base --split test --minutes 90
    python benchmarks/study/summary.py

Rows are entries of rows.yaml, a training of one of prefkd's recipes each. They run one after the other, each a process
of its own, on a GPU if there is one: first the teachers that a row needs, then the row, then its held-out pairs. A seed
is finished before the next one begins, so that whatever time there was, the table compares rows on equal terms.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro
import yaml
from omegaconf import OmegaConf
from transformers import AutoTokenizer

from prefkd.data.pairs import DataConfig, load_pairs

HERE = Path(__file__).resolve().parent
# Whatever the length of a seed, these come in this order: rows that answer the question first.
MAIN = ("dpo", "dpo_distill", "tis_teacher", "tis_student", "sft")
# What a template may add to a text, in tokens.
TEMPLATE = 32


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
    seeds: tuple[int, ...] = (0, 1)
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
    """When this time is over, the run that is going on writes a checkpoint and ends."""
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
        for job in jobs(arguments, entries):
            finish(job, arguments, deadline)
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
        if row["recipe"] != "score":
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


def jobs(arguments: Arguments, entries: dict[str, Any]) -> Iterator[Job]:
    """All runs in order. Those after a choice of learning rates are known when it has been made."""
    for part in ("held_out", *(("development",) if arguments.rates else ())):
        yield evaluation("start", {"path": arguments.student}, part, arguments)
    taught: dict[str, None] = {}
    for seed in arguments.seeds:
        for row in arguments.rows:
            settings = entries["rows"][row]
            for needed in teachers(settings, entries, arguments.out):
                if entries["teachers"][needed]["recipe"] == "dpo":
                    taught[needed] = None
                yield training(needed, entries["teachers"][needed], arguments)
            rate = None
            if arguments.rates:
                for tried in arguments.rates:
                    yield from row_jobs(row, settings, arguments.seeds[0], arguments, rate=tried, part="development")
                rate = best_rate(row, arguments)
            yield from row_jobs(row, settings, seed, arguments, rate=rate, part="held_out")
    for name in taught:
        adapted = {"path": arguments.teacher, "adapter": str(arguments.out / name / "adapter")}
        yield evaluation(name, adapted, "held_out", arguments)


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
    job = training(name, changed, arguments)
    yield job
    yield evaluation(name, {"path": str(job.proof)}, part, arguments)


def training(name: str, settings: dict[str, Any], arguments: Arguments) -> Job:
    """A run of a training recipe, or of `score`."""
    recipe, out = settings["recipe"], arguments.out / name
    student = {"sft": "model", "dpo": "model"}.get(recipe, "student")
    proof = "scores_done" if recipe == "score" else "adapter" if settings.get("lora") else student
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


def best_rate(row: str, arguments: Arguments) -> float:
    """The learning rate of a row with the largest mean reward margin on the development pairs."""
    start = records(arguments.out, "development", "start")
    seed = arguments.seeds[0]

    def accuracy(rate: float) -> float:
        found = records(arguments.out, "development", f"{row}/seed_{seed}_lr_{rate:g}")
        gained = [margin(found[key]) > margin(start[key]) for key in start]
        return float(np.mean(gained))

    return max(arguments.rates, key=accuracy)


def records(out: Path, part: str, name: str) -> dict[str, dict[str, Any]]:
    """What `evaluate` has written of a model, by pair."""
    path = out / "read" / part / name / "preferences" / "pairs" / "model.jsonl"
    return {row["key"]: row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}


def margin(row: dict[str, Any]) -> float:
    """log pi(chosen) - log pi(rejected), in nats."""
    return row["chosen_logprob"] - row["rejected_logprob"]


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
    overrides = () if job.recipe in ("evaluate", "score") else arguments.overrides
    command = [sys.executable, "-m", "prefkd", "run", job.recipe, "--config", str(config), *overrides]
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
