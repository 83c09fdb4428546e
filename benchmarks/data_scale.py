"""How seconds and memory of reading, aligning and planning grow with the number of pairs.

    python benchmarks/data_scale.py --student models/student --teacher models/teacher --pairs 10000 100000

Each step runs in a process of its own, on what the steps before it have left in the cache, so that its peak memory is
its own. Memory is the largest resident set of the process and of its workers; pages of the Arrow files that are mapped
count in it, although the system takes them back when it needs them. Own memory is that without files, of the process
alone. CPU seconds are those of all cores; on a busy machine they say more than the seconds on the clock.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

WHO = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
STEPS = ("read", "align", "plan", "batches")
WORDS = ("boil", "the", "eggs", "for", "eight", "minutes", "then", "cool", "them", "in", "cold", "water", "today")


def write_pairs(path: Path, count: int) -> None:
    """Pairs of 10 to 60 words, with scores."""
    draw = random.Random(0)

    def text(least: int, most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(least, most)))

    with path.open("w") as file:
        for i in range(count):
            row = {"prompt": f"{i}: {text(10, 60)}", "chosen": text(20, 60), "rejected": text(10, 60)}
            file.write(
                json.dumps(row | {"score_chosen": draw.randint(5, 9), "score_rejected": draw.randint(1, 5)}) + "\n"
            )


def run_step(step: str, source: str, student: str, teacher: str) -> None:
    """One step; prints its seconds, its CPU seconds and the peaks of memory in MiB."""
    from datasets import disable_progress_bars

    from prefkd.data.alignment_report import alignment_report
    from prefkd.data.collate import collate_pairs
    from prefkd.data.pairs import DataConfig, load_pairs
    from prefkd.data.steps import Microbatch, pair_lengths, plan_epochs
    from prefkd.data.tokenizing import align_pairs
    from prefkd.models.tokenizers import side_without_model

    disable_progress_bars()
    config = DataConfig(source, margin="gap", workers=1)
    sides = side_without_model(student, "auto"), side_without_model(teacher, "auto")
    own: list[int] = []
    threading.Thread(target=_watch_own_memory, args=(own,), daemon=True).start()
    began, cpu_began = time.perf_counter(), _cpu_seconds()
    pairs = load_pairs(config)
    if step != "read":
        began, cpu_began = time.perf_counter(), _cpu_seconds()
        aligned: Any = align_pairs(pairs.train, *sides, config=config)
    if step == "plan":
        alignment_report(aligned, pairs.train, {})
        plan_epochs(pair_lengths(aligned), 64, seed=0, epochs=1, max_steps=None)
    if step == "batches":
        for start in range(0, 800, 8):
            collate_pairs(aligned, Microbatch([*range(start, start + 8)]), share_prompt=(True, True))
    seconds, cpu = time.perf_counter() - began, _cpu_seconds() - cpu_began
    peak = sum(resource.getrusage(who).ru_maxrss for who in WHO) / 1024
    print(
        json.dumps({"seconds": round(seconds, 1), "cpu": round(cpu, 1), "peak_mib": round(peak), "own_mib": max(own)})
    )


def _watch_own_memory(found: list[int]) -> None:
    """Note the memory of this process that no file stands behind, in MiB, ten times a second. Linux tells it."""
    while True:
        status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        found.append(int(status["RssAnon"].split()[0]) // 1024)
        time.sleep(0.1)


def _cpu_seconds() -> float:
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, WHO))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--pairs", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--step", nargs=2, metavar=("STEP", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    models = ["--student", arguments.student, "--teacher", arguments.teacher]
    if arguments.step:
        step, file = arguments.step
        run_step(step, file, arguments.student, arguments.teacher)
        return
    print("| pairs | step | seconds | CPU s | pairs/s | peak MiB | own MiB |\n|---|---|---|---|---|---|---|")
    for count in arguments.pairs:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "pairs.jsonl"
            write_pairs(source, count)
            for step in STEPS:
                command = [sys.executable, __file__, *models, "--step", step, str(source)]
                environment = os.environ | {"HF_DATASETS_CACHE": f"{folder}/cache"}
                ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
                found = json.loads(ended.stdout.splitlines()[-1])
                speed = count / max(found["seconds"], 0.1)
                cells = (f"{count:,}", step, found["seconds"], found["cpu"], f"{speed:,.0f}")
                cells += (found["peak_mib"], found["own_mib"])
                print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
