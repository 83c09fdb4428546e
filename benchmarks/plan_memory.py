r"""What `prefkd plan` says of memory compared with what runs take, for recipes of the demo, on a CPU.

    prefkd download demo
    python benchmarks/plan_memory.py

Each run trains a few steps on pairs that fill `data.max_length`, in a process of its own. Measured is the most memory
that the process held in training beyond what it held before any model was loaded (Linux with glibc only). glibc is told
to give freed memory back at once: else it keeps gaps of a quarter and more, which are of its making and not the run's.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

MEASURED = """
import re, sys
from pathlib import Path
from prefkd import catalog
from prefkd.cli.launch import load_recipe
from prefkd.config import load_config

def held(what):
    return int(re.search(what + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

recipe = load_recipe(catalog.find_recipe(sys.argv[1]))
config = load_config(recipe.Config, catalog.find_config(sys.argv[2]), sys.argv[3:])
load, train, measured = recipe.load_causal_lm, recipe.train, {}

def load_after_looking(*args, **kwargs):
    measured.setdefault("before", held("VmRSS"))
    return load(*args, **kwargs)

def train_and_look(*args):
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    result = train(*args)
    measured["peak"] = held("VmHWM")
    return result

recipe.load_causal_lm, recipe.train = load_after_looking, train_and_look
recipe.main(config)
sys.stderr.write(str(measured["peak"] - measured["before"]))
"""

WORDS = ("the", "a", "of", "to", "and", "in", "is", "it", "you", "that", "he", "was", "for", "on", "are", "with", "as")


@dataclass
class Arguments:
    """What to measure."""

    runs: tuple[str, ...] = ("sft", "tis_dpo_distill", "dskd_distill")
    """Recipes, each with its config of the demo."""
    overrides: tuple[str, ...] = ()
    """Settings for all of them, as key=value."""
    steps: int = 2
    """Training steps."""
    threads: int = 2
    """Threads of torch."""


def write_full_pairs(path: Path, count: int) -> None:
    """Pairs far longer than any limit."""
    draw = random.Random(0)
    rows = [
        {name: " ".join(draw.choices(WORDS, k=800)) for name in ("prompt", "chosen", "rejected")} for _ in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main(arguments: Arguments) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
    environment |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    for recipe in arguments.runs:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            write_full_pairs(folder / "pairs.jsonl", 8 * arguments.steps)
            settings = [
                f"output_dir={folder}/run",
                f"data.source={folder}/pairs.jsonl",
                "~data.held_out_source",
                "data.held_out_fraction=0.0",
                f"training.max_steps={arguments.steps}",
                "training.checkpoint_every=null",
                *arguments.overrides,
            ]
            run = [recipe, f"demo/{recipe}", *settings]
            planning = ["plan", recipe, "--config", f"demo/{recipe}", "--json", f"{folder}/plan.json", *settings]
            subprocess.run(
                [sys.executable, "-m", "prefkd", *planning], check=True, capture_output=True, env=environment
            )
            planned = json.loads((folder / "plan.json").read_text())["peak"]
            ended = subprocess.run(
                [sys.executable, "-c", MEASURED, *run], text=True, capture_output=True, env=environment
            )
            if ended.returncode:
                raise SystemExit(f"{recipe} failed:\n{ended.stdout}\n{ended.stderr}")
            measured = int(ended.stderr.strip().splitlines()[-1])
        sizes = f"planned {planned / 2**30:.3f} GiB, measured {measured / 2**30:.3f} GiB"
        sys.stdout.write(f"{recipe}: {sizes}, ratio {planned / measured:.2f}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(tyro.cli(Arguments))
