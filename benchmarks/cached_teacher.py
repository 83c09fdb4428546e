r"""Time and peak memory of distilling with the teacher in memory and on its scores, and how far the losses agree.

    python benchmarks/cached_teacher.py --student models/smollm2-135m-instruct --teacher models/gemma-3-270m \
        --pairs pairs.jsonl

The recipes run as a user runs them, each in a process of its own. Scoring is shown apart: it is paid for once, whatever
number of students is trained on the scores.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

MEASURED = """
import json, resource, sys
from prefkd.cli.main import main
code = main(sys.argv[1:])
sys.stderr.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20))
sys.exit(code)
"""


@dataclass
class Arguments:
    """What to measure."""

    student: Path
    """Folder of the student."""
    teacher: Path
    """Folder of the teacher."""
    pairs: Path
    """Preference pairs in any form that prefkd reads."""
    steps: int = 6
    """Training steps of two pairs; of the counted time the first is left out."""
    recipes: tuple[str, ...] = ("tis_dpo_distill", "dpo_distill")
    """Recipes to compare."""
    max_length: int = 384
    """Tokens of a sequence."""
    threads: int = 2
    """Threads of torch."""


def run(recipe: str, config: dict[str, Any], threads: int) -> tuple[float, float]:
    """Seconds and peak memory in GiB of a recipe in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "config.yaml"
        path.write_text(json.dumps(config))  # JSON is YAML
        command = [sys.executable, "-c", MEASURED, "run", recipe, "--config", str(path)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        began = time.perf_counter()
        ended = subprocess.run(command, text=True, capture_output=True, env=environment)
        seconds = time.perf_counter() - began
    if ended.returncode:
        raise SystemExit(f"{recipe} failed:\n{ended.stdout}\n{ended.stderr}")
    return seconds, float(ended.stderr.strip().splitlines()[-1])


def step_seconds(folder: Path) -> tuple[float, list[float]]:
    """Mean seconds of a training step but the first, and the losses of all."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][1:]
    seconds = [line["tokens"] * 2 / line["tokens_per_second"] for line in lines]
    return sum(seconds[1:]) / len(seconds[1:]), [line["loss"] for line in lines]


def main(arguments: Arguments) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shared = {
            "student": {"path": str(arguments.student)},
            "data": {
                "source": str(arguments.pairs),
                "limit": arguments.steps * 2,
                "held_out_fraction": 0.0,
                "max_length": arguments.max_length,
                "max_prompt_length": arguments.max_length * 2 // 3,
            },
        }
        teacher = {"path": str(arguments.teacher), "dtype": "float32"}
        training = {"batch_size": 2, "microbatch_size": 1, "precision": "float32"}
        score = shared | {"output_dir": str(folder / "score"), "teacher": teacher, "microbatch_size": 1}
        seconds, memory = run("score", score, arguments.threads)
        sys.stdout.write(f"score: {seconds:.1f} s in all, peak {memory:.2f} GiB\n")
        for recipe in arguments.recipes:
            figures = {}
            for name, source in (("live", teacher), ("cached", {"scores": str(folder / "score" / "scores")})):
                out = folder / f"{recipe}_{name}"
                config = shared | {"output_dir": str(out), "teacher": source, "training": training}
                if recipe == "tis_dpo_distill":
                    config["weights"] = {"contrast": "prompt_pair" if name == "live" else "scores"}
                _, memory = run(recipe, config, arguments.threads)
                figures[name] = (*step_seconds(out), memory)
                sys.stdout.write(f"{recipe}, {name}: {figures[name][0]:.2f} s a step, peak {memory:.2f} GiB\n")
            live, cached = figures["live"], figures["cached"]
            difference = max(abs(one - other) for one, other in zip(live[1], cached[1], strict=True))
            sys.stdout.write(
                f"{recipe}: cached takes {cached[0] / live[0]:.2f} of the time and {cached[2] / live[2]:.2f} of the "
                f"memory; the largest difference of a loss is {difference:.1e}\n"
            )


if __name__ == "__main__":
    main(tyro.cli(Arguments))
