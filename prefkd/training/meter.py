"""What a step takes: tokens that are read, share of the GPU's arithmetic, memory; and a trace of a few steps."""

import re
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.profiler import profile, schedule, tensorboard_trace_handler

from prefkd.data.batches import Segment, TokenBatch
from prefkd.models.flops import forward_flops, keys_attended, outer_weights, reading, training_flops
from prefkd.models.logprob_model import LogprobModel
from prefkd.models.teacher import Teacher
from prefkd.ranks import Ranks
from prefkd.training.run import TrainingRun, learner_of

Batch = TypeVar("Batch")
# Floating-point operations a second of dense products in bfloat16, by what a GPU is called; datasheets of NVIDIA.
PEAKS = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H200 NVL": 835e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "A10": 125e12,
    "L4": 121e12,
    "T4": 65e12,
}
GIB = 2**30
# Steps of a trace: the first is left out, and one more warms up.
WAIT, WARMUP, ACTIVE = 1, 1, 3


class Meter:
    """Counts what the models of a run read in a step.

    Args:
        config: The recipe's config, with `output_dir` and `training`.
        run: Its model that learns is counted forward and backward, its teacher forward.
    """

    def __init__(self, config: Any, run: TrainingRun):
        self._ranks: Ranks = run.ranks
        self._peak = peak_flops(run.ranks.device)
        parts = list(vars(run).values())
        self._learner = learner_of(run)
        teachers = (model.base for part in parts if isinstance(part, Teacher) for model in part.models)
        self._models: list[LogprobModel] = list(dict.fromkeys([self._learner, *teachers]))
        self._trained = trained_weights(self._learner)
        self._counts, self._waited = self._nothing(), 0.0
        for number, model in enumerate(self._models):
            model.register_forward_pre_hook(partial(self._count, number))
        self._profiler = _profiler(config.output_dir / "profile") if config.training.profile else None
        if self._profiler is not None and run.ranks.is_main:
            self._profiler.start()

    def begin(self) -> float:
        """Begin a step; returns the time in seconds."""
        self._counts, self._waited = self._nothing(), 0.0
        if self._ranks.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        return time.perf_counter()

    def waiting(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches of a step; the time until each is there counts as waiting for data."""
        found = iter(batches)
        while True:
            asked = time.perf_counter()
            batch = next(found, None)
            self._waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def of_step(self, began: float) -> dict[str, float]:
        """What the step took: `processed_tokens_per_second` of all models and ranks, and `waiting_for_data`, a share of
        this rank's time; on a GPU also `mfu`, if its peak is known, and `peak_memory_gib`, the most that a rank
        allocated. All ranks call it together.

        Model FLOPs utilisation is the share of the peak arithmetic in bfloat16 that went into the products of the
        models and the attention that their masks let through; what backward computes again is not counted.
        """
        counts = self._ranks.sum(self._counts).tolist()  # the step is done, so that nothing waits for this
        seconds = time.perf_counter() - began
        found = {"processed_tokens_per_second": sum(tokens for tokens, _, _ in counts) / seconds}
        found["waiting_for_data"] = self._waited / seconds
        if self._peak is not None:
            work = sum(map(self._flops, self._models, counts))
            found["mfu"] = work / seconds / self._peak / self._ranks.world_size
        if self._ranks.device.type == "cuda":
            found["peak_memory_gib"] = max(self._ranks.gather(torch.cuda.max_memory_allocated())) / GIB
        if self._profiler is not None and self._ranks.is_main:
            self._profiler.step()
        return found

    def close(self) -> None:
        """Write the trace, if there is one, of a run that ends before its last step."""
        if self._profiler is not None and self._ranks.is_main:
            self._profiler.stop()

    def _nothing(self) -> Tensor:
        """Of each model: tokens, keys that they attend to, targets."""
        return torch.zeros(len(self._models), 3, dtype=torch.float64, device=self._ranks.device)

    def _count(self, number: int, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        tokens: TokenBatch = inputs[0]
        there = tokens.segments != Segment.PADDING
        positions = tokens.position_ids.masked_fill(~there, -1)  # padding attends to nothing
        attended = keys_attended(self._models[number].lm, positions)
        targets = torch.full((), len(tokens.targets), device=there.device)  # written there, not copied
        self._counts[number] += torch.stack([there.sum(), attended, targets])

    def _flops(self, model: LogprobModel, counts: list[float]) -> float:
        tokens, attended, targets = map(int, counts)
        read = reading(model.lm, tokens=tokens, attended=attended, targets=targets)
        if model is not self._learner:
            return forward_flops(read)
        return training_flops(read, trained=self._trained, recomputed=False)


def peak_flops(device: torch.device) -> float | None:
    """The peak of a GPU's arithmetic in bfloat16, None for a CPU and for one that is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    # In whole words, so that an RTX A1000 is no A100; and an H100 PCIe is more than an H100.
    found = [known for known in PEAKS if re.search(rf"\b{known}\b", name)]
    return PEAKS[max(found, key=len)] if found else None


def trained_weights(model: LogprobModel) -> int:
    """Weights of the layers that learn."""
    learns = sum(parameter.numel() for parameter in model.lm.parameters() if parameter.requires_grad)
    return learns - outer_weights(model.lm, trained=True)


def _profiler(folder: Path) -> profile:
    steps = schedule(wait=WAIT, warmup=WARMUP, active=ACTIVE, repeat=1)
    return profile(schedule=steps, on_trace_ready=tensorboard_trace_handler(str(folder)), with_flops=True)
