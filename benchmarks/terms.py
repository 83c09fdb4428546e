r"""Every term of dskd_distill for some steps on real models: does it fall, and what does a step of it cost.

    python benchmarks/terms.py --student models/smollm2-135m-instruct --teacher models/gemma-3-270m --pairs pairs.jsonl

Each row is a run of its own, of a term and a cross-entropy next to it, and is kept in `--output`: the same command
computes the rows that are missing. Time and memory are shown as multiples of those of recipe tis_dpo_distill with the
teacher in memory, whose loss is a sum over parents alone. pi+ and pi- are the teacher under two instructions.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
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
    """Rows to compute."""
    steps: int = 30
    """Training steps of four pairs; the first ones warm up."""
    held_out: int = 8
    """Pairs that are held out, on which a term is measured before and after."""
    max_length: int = 128
    """Tokens of a sequence, half of them of the prompt."""
    lr: float = 2e-5
    """Learning rate of the student."""
    threads: int = 1
    """Threads of torch."""
    overrides: tuple[str, ...] = field(default_factory=tuple)
    """Overrides of every run."""


def config_of(row: str, arguments: Arguments, folder: Path) -> tuple[str, dict[str, Any]]:
    """Recipe and config of a row."""
    config: dict[str, Any] = {
        "output_dir": str(folder / "out"),
        "student": {"path": str(arguments.student)},
        "teacher": {"path": str(arguments.teacher), "dtype": "float32"},
        "data": {
            "source": str(arguments.pairs),
            "held_out_limit": arguments.held_out,
            "max_length": arguments.max_length,
            "max_prompt_length": arguments.max_length // 2,
        },
        "weights": {"contrast": "uniform"},
        "optimizer": {"_component_": "torch.optim.AdamW", "lr": arguments.lr, "weight_decay": 0.0},
        "lr_schedule": {"_component_": "transformers.get_cosine_schedule_with_warmup", "num_warmup_steps": 5},
        "training": {
            "max_steps": arguments.steps,
            "batch_size": 4,
            "microbatch_size": 4,
            "precision": "float32",
            "evaluate_every": arguments.steps,
        },
    }
    if row == BASELINE:
        return BASELINE, config
    terms = [{"_component_": f"prefkd.training.terms.{row}", **TERMS[row]}]
    terms.append({"_component_": "prefkd.training.terms.cross_entropy", "weight": 0.5})
    return "dskd_distill", config | {"objective": terms}


def measure(row: str, arguments: Arguments) -> dict[str, float]:
    """What a run of a row shows: its held-out value before and after, seconds and memory."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        recipe, config = config_of(row, arguments, folder)
        (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
        command = [sys.executable, "-c", MEASURED, "run", recipe, "--config", str(folder / "config.yaml")]
        environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
        ended = subprocess.run([*command, *arguments.overrides], text=True, capture_output=True, env=environment)
        if ended.returncode:
            raise SystemExit(f"{row} failed: {ended.stderr.strip()[-2000:]}")
        memory, seconds = map(float, ended.stderr.strip().splitlines()[-1].split())
        lines = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
    name = "loss" if row == BASELINE else row
    before, after = lines[0], lines[-1]
    names = {key.removeprefix("held_out/") for key in before} & {"accuracy", "t2s_accuracy", "one_token_parents"}
    kept = {key: after[f"held_out/{key}"] for key in names}
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
        what = entropy if row != BASELINE else ""
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
