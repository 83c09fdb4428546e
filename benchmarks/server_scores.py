r"""Scores of a vLLM server and of the same model in memory: how far they differ, and how fast both are.

    python benchmarks/server_scores.py --vllm ~/vllm/bin/vllm --model models/smollm2-135m-instruct \
        --pairs pairs.jsonl --count 200

vLLM belongs in an environment of its own, since it wants other versions than prefkd. The script starts it, waits until
it answers, and ends it. With --url it takes a server that runs already.

The measure of a difference is the model in memory in float32: a server in bfloat16 should be as far from it as the
model in memory in bfloat16 is.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from datasets import Dataset

from prefkd.data.collate import collate_pairs
from prefkd.data.pairs import DataConfig, load_pairs
from prefkd.data.rows import ANSWERS, score_column
from prefkd.data.steps import Microbatch, pair_lengths, split_step
from prefkd.data.tokenizing import align_pairs
from prefkd.models.load import ModelConfig, TeacherConfig, read_side
from prefkd.models.questions import Asks
from prefkd.models.server import ServerConfig
from prefkd.models.teacher import Teacher
from prefkd.ranks import Ranks

NAME = "teacher"
RANKS = Ranks(0, 1, torch.device("cpu"))


@dataclass
class Arguments:
    """What to measure."""

    model: Path
    """Folder of the teacher."""
    pairs: Path
    """Preference pairs in any form that prefkd reads."""
    student: Path | None = None
    """Folder of a student, whose tokenizer decides about parents; the teacher's own if not given."""
    vllm: Path | None = None
    """The command vllm in its environment."""
    url: str | None = None
    """A server that runs already, in place of --vllm."""
    count: int = 200
    """Pairs."""
    max_length: int = 512
    """Tokens of a prompt and an answer."""
    microbatch: int = 16
    """Pairs that are read at the same time."""
    port: int = 8123
    """Where the server is started."""


@contextmanager
def serving(arguments: Arguments) -> Iterator[ServerConfig]:
    """A server of the model, which ends with the block."""
    if arguments.url is not None:
        yield ServerConfig(arguments.url, NAME)
        return
    assert arguments.vllm is not None, "give --vllm or --url"
    command = [str(arguments.vllm), "serve", str(arguments.model), "--served-model-name", NAME, "--dtype", "bfloat16"]
    command += ["--max-model-len", str(arguments.max_length + 16), "--host", "127.0.0.1", "--port", str(arguments.port)]
    on_cpu = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | on_cpu
    server = subprocess.Popen([*command, "--enforce-eager"], env=environment, stdout=subprocess.DEVNULL)
    try:
        yield ServerConfig(f"http://127.0.0.1:{arguments.port}", NAME)
    finally:
        server.terminate()
        server.wait()


def read(config: TeacherConfig, aligned: Dataset, microbatch: int) -> tuple[np.ndarray, float]:
    """Log-probs of all parents in the order of the rows, and pairs a second without loading."""
    collate = partial(collate_pairs, aligned, share_prompt=(True, True))
    teacher = Teacher(config, Asks(reference=True))
    teacher.load(collate(Microbatch([0])).teacher, chunk_size=512, ranks=RANKS)
    lengths, found = pair_lengths(aligned), {}
    longest_first = sorted(range(len(aligned)), key=lengths.__getitem__, reverse=True)
    began = time.perf_counter()
    for part in split_step(longest_first, microbatch):
        batch = collate(part)
        scores = teacher.read(batch).scores
        assert scores is not None
        found |= zip(part.rows, scores.columns(batch.parent_mask), strict=True)
    seconds = time.perf_counter() - began
    columns = [score_column(answer, "reference") for answer in ANSWERS]
    values = [found[row][name] for row in range(len(aligned)) for name in columns]
    return np.concatenate(values), len(aligned) / seconds


def main(arguments: Arguments) -> None:
    """Print a line for each source and for each difference."""
    data = DataConfig(
        str(arguments.pairs),
        limit=arguments.count,
        held_out_fraction=0.0,
        max_length=arguments.max_length,
        max_prompt_length=arguments.max_length // 2,
        on_bad_row="skip",
    )
    student = read_side(ModelConfig(str(arguments.student or arguments.model)))
    teacher = read_side(ModelConfig(str(arguments.model)))
    aligned = align_pairs(load_pairs(data).train, student, teacher, config=data)
    values: dict[str, np.ndarray] = {}

    def measure(name: str, config: TeacherConfig) -> None:
        values[name], speed = read(config, aligned, arguments.microbatch)
        print(f"{name:9} {speed:6.2f} pairs/s", flush=True)

    with serving(arguments) as server:
        measure("server", TeacherConfig(server=server, tokenizer=str(arguments.model)))
    for dtype in ("bfloat16", "float32"):
        measure(dtype, TeacherConfig(str(arguments.model), dtype=dtype))
    print(f"{len(aligned)} pairs, {len(values['float32'])} parents")
    for one, other in (("server", "float32"), ("bfloat16", "float32"), ("server", "bfloat16")):
        off, name = np.abs(values[one] - values[other]), f"{one} and {other}"
        print(f"{name:21} mean {off.mean():.4f}, 99 % {np.quantile(off, 0.99):.3f}, most {off.max():.3f} nats a parent")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
