"""A recipe without a model, with which the command line is tried out."""

import errno
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from prefkd.config import Component, component
from prefkd.errors import PrefkdError


@dataclass
class Model:
    path: str
    dtype: Literal["float32", "bfloat16"] = "float32"

    def problems(self) -> Iterator[str]:
        if not Path(self.path).is_dir():
            yield f"path: no folder {self.path}; fetch the model with `prefkd download`"


@dataclass
class Training:
    steps: int = 10
    batch_size: int = 4
    microbatch_size: int = 2

    def problems(self) -> Iterator[str]:
        if self.batch_size % self.microbatch_size:
            yield f"batch_size: {self.batch_size} is not a multiple of microbatch_size {self.microbatch_size}"


@dataclass
class Config:
    student: Model
    act: Literal["finish", "user", "bug", "stuck", "memory", "gpu", "full", "forbidden", "sleep", "show"] = "finish"
    acting_rank: int = 0
    training: Training = field(default_factory=Training)
    betas: tuple[float, float] = (0.9, 0.95)
    log_every: int | None = None
    verbose: bool = False
    optimizer: Component = component("torch.optim.AdamW", supplied=("params",), lr=1e-6, fused=False)
    logger: Component | None = None


def main(config: Config) -> None:
    rank, world = os.environ.get("RANK", "-"), os.environ.get("WORLD_SIZE", "-")
    sys.stdout.write(f"rank {rank} of {world}: {config.training.steps} steps\n")
    if rank not in ("-", str(config.acting_rank)):
        return
    match config.act:
        case "user":
            raise PrefkdError("pairs.jsonl, row 3: chosen is empty; delete the row")
        case "bug":
            raise RuntimeError("a mistake in the program")
        case "stuck":
            threading.Thread(target=time.sleep, args=(300,)).start()
            raise RuntimeError("a mistake in the program")
        case "memory":
            raise MemoryError
        case "gpu":
            import torch

            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20.00 MiB.")
        case "full":
            Path("/dev/full").write_text("x")
        case "forbidden":
            raise PermissionError(errno.EACCES, "Permission denied", "runs/toy")
        case "sleep":
            sys.stdout.flush()
            time.sleep(60)
