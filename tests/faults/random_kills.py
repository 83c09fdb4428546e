"""Kill a run with SIGKILL again and again, and compare what comes out in the end with a run that nobody has touched.

    python -m tests.faults.random_kills 20
    python -m tests.faults.random_kills 20 training.async_checkpoints=true

Every other kill hits the writing of a checkpoint, the others any moment. Losses and weights must be equal bit by bit.
"""

import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from prefkd.cli.main import main
from tests.processes import fork
from tests.recipes.single_model import make_world, saved_weights
from tests.tiny import SPEEDS

STEPS = 24
CONFIG = """
output_dir: {folder}/{name}
model: {{path: {folder}/model}}
data: {{source: {folder}/pairs.jsonl, held_out_source: {folder}/held_out.jsonl}}
lora: {{dropout: 0.1}}
optimizer: {{_component_: torch.optim.AdamW, lr: 0.01}}
lr_schedule: {{_component_: transformers.get_cosine_schedule_with_warmup, num_warmup_steps: 2}}
training: {{batch_size: 4, epochs: 100, max_steps: {steps}, precision: float32, evaluate_every: 5, checkpoint_every: 1}}
"""


def start(folder: Path, name: str, *overrides: str) -> int:
    """Run recipe dpo in a fork of this process, which has imported everything already; returns its process id."""
    child = fork()
    if child:
        return child
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os._exit(main(["run", "dpo", "--config", str(folder / f"{name}.yaml"), *overrides]))


def wait_for_moment(process: int, out: Path, *, in_checkpoint: bool) -> None:
    """Come back at the moment of a kill, or when the run has ended by itself."""
    metrics = out / "metrics.jsonl"
    old = metrics.stat().st_mtime_ns if metrics.exists() else 0
    while not metrics.exists() or metrics.stat().st_mtime_ns == old:
        if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.002)
    if in_checkpoint:
        limit = time.monotonic() + 1
        while time.monotonic() < limit and not any((out / "checkpoints").glob(".*.unfinished")):
            pass
    else:
        time.sleep(random.uniform(0, 0.3))


def compare(kills: int, folder: Path, *overrides: str, steps: int = STEPS) -> int:
    """How often the run of some steps was killed; fails if that has changed anything."""
    make_world(folder)
    for name in ("whole", "killed"):
        (folder / f"{name}.yaml").write_text(CONFIG.format(folder=folder, name=name, steps=steps), encoding="utf-8")
    assert os.waitpid(start(folder, "whole"), 0)[1] == 0
    done, status = 0, -1
    while status != 0:
        process = start(folder, "killed", *overrides)
        if done < kills:
            wait_for_moment(process, folder / "killed", in_checkpoint=done % 2 == 0)
            os.kill(process, signal.SIGKILL)
        status = os.waitpid(process, 0)[1]
        assert status in (0, signal.SIGKILL), f"exit status {status} after {done} kills"
        done += status == signal.SIGKILL
    whole, killed = (
        [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "killed")
    )
    for one, other in zip(whole, killed, strict=True):
        one, other = ({name: line[name] for name in line.keys() - SPEEDS} for line in (one, other))
        assert one == other, (one, other)
    one, other = saved_weights(folder / "whole"), saved_weights(folder / "killed")
    assert all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())
    return done


if __name__ == "__main__":
    random.seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        done = compare(int(sys.argv[1]), Path(temporary), *sys.argv[2:])
    sys.stdout.write(f"killed {done} times in {STEPS} steps: losses and weights are the same bit by bit\n")
