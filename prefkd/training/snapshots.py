"""How a checkpoint gets to the disk: under a temporary name, flushed, renamed; so it is there whole or not at all."""

import os
import random
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from prefkd.errors import PrefkdError
from prefkd.files import sha256, write_json
from prefkd.ranks import Ranks, together

RUN, STATE, RECORD = "run.json", "state.pt", "checkpoint.json"
STEPS = "step_" + "[0-9]" * 8


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: Optimizer steps that are done.
        before, latest: Held-out metrics before training, and the latest ones.
        best, best_step: With `training.keep_best` the best held-out metrics so far, and the step that they are of.
        since_best: Evaluations since then.
    """

    step: int = 0
    before: dict[str, float] = field(default_factory=dict)
    latest: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    best_step: int = 0
    since_best: int = 0


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds: all that the next step depends on.

    Attributes:
        tensors: Trained weights and the optimizer's state; of sharded tensors, this rank's part.
        remembered: State of losses and teachers from earlier steps, by name.
        random_state: Random state of this process.
        run: The settings and data that the run was started with.
    """

    progress: Progress
    tensors: dict[str, Any]
    lr_schedule: dict[str, Any]
    remembered: dict[str, Any]
    random_state: dict[str, Any]
    run: dict[str, Any]

    def copy(self) -> "Snapshot":
        """The same in memory of its own, so that training may continue."""
        return replace(self, tensors=_copied(self.tensors))


def write_snapshot(snapshot: Snapshot, *, folder: Path, keep: int, ranks: Ranks) -> None:
    """Write a checkpoint and remove old ones; all ranks call it together.

    Args:
        folder: The folder of checkpoints, next to metrics.jsonl.
        keep: How many of the newest are left.

    Raises:
        PrefkdError: It cannot be written. The one before it is still there.
    """
    progress = snapshot.progress
    final = folder / step_name(progress.step)
    unfinished = final.with_name(f".{final.name}.unfinished")

    def make_folder() -> None:
        if ranks.is_main:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()

    def write_tensors() -> None:
        with warnings.catch_warnings(action="ignore"):  # torch warns about a single process
            writer = FileSystemWriter(unfinished, sync_files=True)
            alone = ranks.world_size == 1
            save(snapshot.tensors, storage_writer=writer, process_group=ranks.group, no_dist=alone)

    def write_rest() -> None:
        if ranks.is_main:
            state = {"lr_schedule": snapshot.lr_schedule, "remembered": snapshot.remembered, "random": random_states}
            torch.save(state, unfinished / STATE)
            write_json(unfinished / RUN, snapshot.run)

    def digest() -> dict[str, str]:
        names = sorted(path.name for path in unfinished.iterdir())
        return digests(unfinished, names[ranks.rank :: ranks.world_size])

    def finish() -> None:
        if ranks.is_main:
            files = {name: value for part in found for name, value in part.items()}
            write_json(unfinished / RECORD, asdict(progress) | {"world_size": ranks.world_size, "files": files})
            for path in (*unfinished.iterdir(), unfinished, folder.parent / "metrics.jsonl"):
                _sync(path)
            shutil.rmtree(final, ignore_errors=True)
            unfinished.rename(final)
            _sync(folder)

    try:
        together(ranks, make_folder)
        together(ranks, write_tensors)
        random_states = ranks.gather(snapshot.random_state)
        together(ranks, write_rest)
        found = together(ranks, digest)
        together(ranks, finish)
    except PrefkdError as error:
        if ranks.is_main:
            shutil.rmtree(unfinished, ignore_errors=True)
        whole = sorted(folder.glob(STEPS))
        rest = f"from {whole[-1].name}" if whole else "from the start"
        remedy = f"fix that, and the same command resumes {rest}"
        raise PrefkdError(f"{final} cannot be written: {error}; {remedy}") from error
    if ranks.is_main:
        kept = sorted(folder.glob(STEPS))[-keep:]
        for path in folder.iterdir():
            if path.is_dir() and path not in kept:
                shutil.rmtree(path, ignore_errors=True)
    ranks.wait()


def learned(model: nn.Module) -> dict[str, Any]:
    """What of a model may change in training, each tensor once; they share memory with the model."""
    learns = {name for name, value in model.named_parameters() if value.requires_grad}
    others = {name for name, _ in model.named_parameters(remove_duplicate=False)} - learns
    return {name: value for name, value in model.state_dict().items() if name not in others}


def step_name(step: int) -> str:
    """The name of the folder of a checkpoint."""
    return f"step_{step:08}"


def get_random_state() -> dict[str, Any]:
    """Where all random number generators of this process are."""
    name, keys, *position = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *position),
        "cpu": torch.get_rng_state(),
        # Asking would take the memory of a CUDA context, also for a run on the CPU.
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put all random number generators of this process where they were."""
    name, keys, *position = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((name, keys.numpy().astype(np.uint32), *position))
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])


def digests(folder: Path, names: list[str]) -> dict[str, str]:
    """SHA-256 of files by name."""
    return {name: sha256(folder / name) for name in names}


def _copied(value: Any) -> Any:
    """Nested dictionaries and lists with copies of the tensors in them, in main memory."""
    if is_traceable_wrapper_subclass(value):  # 8-bit moments among them, whose own `to` copies nothing on a CPU
        names, context = value.__tensor_flatten__()
        parts = {name: _copied(getattr(value, name)) for name in names}
        return type(value).__tensor_unflatten__(parts, context, value.shape, value.stride())
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {name: _copied(part) for name, part in value.items()}
    return [_copied(part) for part in value] if isinstance(value, list) else value


def _sync(path: Path) -> None:
    """Have a file, or the list of files of a folder, on the disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
