r"""Every term of dskd_distill for some steps on real models: does it fall, and what does a step of it cost.

    python benchmarks/terms.py --student models/smollm2-135m-instruct --teacher models/gemma-3-270m --pairs pairs.jsonl

Each row is a run of its own, of a term and a cross-entropy next to it, and is kept in `--output`: the same command
computes the rows that are missing. A row whose name ends in "cached" learns from what recipe score kept, without the
teacher in memory; the scores are made once and lie next to `--output`. Time and memory are shown as multiples of those
of recipe tis_dpo_distill with the teacher in memory, whose loss is a sum over parents alone. pi+ and pi- are the
teacher under two instructions.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

MEASURED = """
import json, resource, sys
from prefkd.cli.main import main
code = main(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
sys.stderr.write(f"\\n{used.ru_maxrss / 2**20} {used.ru_utime + used.ru_stime}")
sys.exit(code)
"""
BASELINE = "tis_dpo_distill"
CACHED = " cached"
# Term -> its settings, where they are not the defaults.
TERMS: dict[str, dict[str, Any]] = {
    "uld": {},
    "shared_tokens": {},
    "gold": {},
    "x_token": {},
    "align_distil": {},
    "dckd": {},
    "adpa": {},
    "tvkd": {},
    "pad": {},
    "distillm2": {},
    "dual_space": {},
    "dual_space_v2": {},
    "alm": {},
    "min_ed": {},
}


@dataclass
class Arguments:
    """What to measure."""

    student: Path
    """Folder of the student."""
    teacher: Path
    """Folder of the teacher."""
    pairs: Path
    """Preference pairs in any form that prefkd reads."""
    output: Path = Path("runs/benchmarks/terms.json")
    """Where rows are kept."""
    rows: tuple[str, ...] = (BASELINE, *TERMS)
    """Rows to compute, for instance `shared_tokens "shared_tokens cached"`."""
    steps: int = 30
    """Training steps; the first ones warm up."""
    batch_size: int = 1
    """Pairs of a step."""
    held_out: int = 8
    """Pairs that are held out, on which a term is measured before and after."""
    max_length: int = 128
    """Tokens of a sequence, half of them of the prompt."""
    lr: float = 2e-5
    """Learning rate of the student."""
    threads: int = 1
    """Threads of torch."""


def shared_config(folder: Path, arguments: Arguments) -> dict[str, Any]:
    """What the recipes score and those of training have in common."""
    return {
        "output_dir": str(folder),
        "student": {"path": str(arguments.student)},
        "teacher": {"path": str(arguments.teacher), "dtype": "float32"},
        "data": {
            "source": str(arguments.pairs),
            "held_out_limit": arguments.held_out,
            "max_length": arguments.max_length,
            "max_prompt_length": arguments.max_length // 2,
        },
    }


def config_of(row: str, arguments: Arguments, folder: Path) -> tuple[str, dict[str, Any]]:
    """Recipe and config of a row."""
    term = row.removesuffix(CACHED)
    config = shared_config(folder / "out", arguments) | {
        "weights": {"contrast": "uniform"},
        "optimizer": {"_component_": "torch.optim.AdamW", "lr": arguments.lr, "weight_decay": 0.0},
        "lr_schedule": {"_component_": "transformers.get_cosine_schedule_with_warmup", "num_warmup_steps": 5},
        "training": {
            "max_steps": arguments.steps,
            "batch_size": arguments.batch_size,
            "microbatch_size": arguments.batch_size,
            "precision": "float32",
            "evaluate_every": arguments.steps,
            "sample_answers": 0,
        },
    }
    if row != term:
        config["teacher"] = {"scores": str(scores_of(arguments))}
    if term == BASELINE:
        return BASELINE, config
    terms = [{"_component_": f"prefkd.training.terms.{term}", **TERMS[term]}]
    terms.append({"_component_": "prefkd.training.terms.cross_entropy", "weight": 0.5})
    return "dskd_distill", config | {"objective": terms}


def scores_of(arguments: Arguments) -> Path:
    """What the cached rows learn from; made, or completed, if it is not there."""
    folder = arguments.output.parent / "score"
    if not (folder / "done").is_file():
        keep = {"top_k": 64, "models": ["teacher", "positive", "negative"], "states": True}
        run("score", shared_config(folder, arguments) | {"keep": keep, "microbatch_size": 2}, folder, arguments)
        (folder / "done").touch()
    return folder / "scores"


def run(recipe: str, config: dict[str, Any], folder: Path, arguments: Arguments) -> tuple[float, float]:
    """Run a recipe in a process of its own: its peak memory in GiB, and the seconds that the processor was busy."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.yaml").write_text(json.dumps(config))  # JSON is YAML
    command = [sys.executable, "-c", MEASURED, "run", recipe, "--config", str(folder / "settings.yaml")]
    environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
    ended = subprocess.run(command, text=True, capture_output=True, env=environment)
    if ended.returncode:
        raise SystemExit(f"{recipe} failed: {ended.stderr.strip()[-2000:]}")
    memory, seconds = map(float, ended.stderr.strip().splitlines()[-1].split())
    return memory, seconds


def measure(row: str, arguments: Arguments) -> dict[str, float]:
    """What a run of a row shows: its held-out value before and after, seconds and memory."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        memory, seconds = run(*config_of(row, arguments, folder), folder, arguments)
        lines = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
    term = row.removesuffix(CACHED)
    name = "loss" if term == BASELINE else term
    before, after = lines[0], lines[-1]
    names = {key.removeprefix("held_out/") for key in before} & {"accuracy", "t2s_accuracy", "one_token_parents"}
    kept = {key: after[f"held_out/{key}"] for key in names}
    kept |= {f"{key}_before": before[f"held_out/{key}"] for key in names}
    return kept | {
        "before": before[f"held_out/{name}"],
        "after": after[f"held_out/{name}"],
        "cross_entropy_before": before.get("held_out/cross_entropy", float("nan")),
        "cross_entropy_after": after.get("held_out/cross_entropy", float("nan")),
        "step_seconds": seconds / arguments.steps,
        "memory": memory,
    }


def table(found: dict[str, dict[str, float]]) -> str:
    """Rows as Markdown."""
    lines = ["| row | held-out before | after | cross-entropy | time | memory |", "|---|---|---|---|---|---|"]
    base = found.get(BASELINE)
    for row, values in found.items():
        relative = [f"{values[name] / base[name]:.2f}" if base else "?" for name in ("step_seconds", "memory")]
        entropy = f"{values['cross_entropy_before']:.2f} → {values['cross_entropy_after']:.2f}"
        what = entropy if row.removesuffix(CACHED) != BASELINE else ""
        lines.append(
            f"| {row} | {values['before']:.4g} | {values['after']:.4g} | {what} | {relative[0]} | {relative[1]} |"
        )
    return "\n".join(lines)


def main(arguments: Arguments) -> None:
    """Compute the rows that are missing, and show all."""
    found = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {}
    for row in arguments.rows:
        if row not in found:
            found[row] = measure(row, arguments)
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            arguments.output.write_text(json.dumps(found, indent=2))
            print(row, json.dumps(found[row]), flush=True)
    print(table(found))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
