"""One process or many: the same calls, so that a recipe need not ask."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from prefkd.errors import PrefkdError, first_line

Found = TypeVar("Found")
# How long ranks wait for each other: the main one alone downloads, reads and tokenizes, which may take hours, and
# torchrun ends the others anyway when one dies. By default NCCL would give up after ten minutes, gloo after thirty.
PATIENCE = timedelta(hours=24)
TORCHRUN = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ranks:
    """Where this process stands among the processes that train together.

    Attributes:
        rank: Number of this process, 0-based.
        world_size: Number of processes.
        device: The device of this process.
        node_size: Number of processes on this machine.
        group: The connections between the processes; None = those of the training.
    """

    rank: int
    world_size: int
    device: torch.device
    node_size: int = 1
    group: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes files."""
        return self.rank == 0

    @property
    def processes(self) -> str:
        """How many processes there are, in words."""
        return "one process" if self.world_size == 1 else f"{self.world_size} processes"

    @property
    def assembly_device(self) -> torch.device:
        """Where a model is put together that `prefkd.models.shard` splits then.

        Of several processes the main one alone has its weights, in main memory; the others have an outline without. One
        alone has them where it computes.
        """
        if self.world_size == 1:
            return self.device
        return torch.device("cpu" if self.is_main else "meta")

    def in_background(self) -> Self:
        """The same ranks with connections of their own, between main memories, for a thread in the background."""
        group = dist.new_group(timeout=PATIENCE, backend="gloo") if self.world_size > 1 else None
        return replace(self, device=torch.device("cpu"), group=group)

    def broadcast(self, values: Tensor) -> None:
        """Overwrite a tensor on the other ranks with the one on the main rank."""
        if self.world_size > 1:
            dist.broadcast(values, src=0, group=self.group)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, as a new tensor: the input may be part of a live graph."""
        total = values.detach().clone()
        if self.world_size > 1:
            dist.all_reduce(total, group=self.group)
        return total

    def gather(self, value: Any) -> list[Any]:
        """The value of each rank, on all of them."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value, group=self.group)
        return values

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main rank runs the block before the others, so that these find its work in the cache."""
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()

    def wait(self) -> None:
        """Wait until all ranks are here."""
        if self.world_size > 1:
            dist.barrier(group=self.group)


def torchrun_numbers() -> dict[str, int]:
    """The numbers that torchrun puts into the environment of a process, by variable; none without torchrun.

    Raises:
        PrefkdError: One is missing, or is not the number of a process.
    """
    if "WORLD_SIZE" not in os.environ:
        return {}
    remedy = "start several processes with --nproc-per-node, or unset WORLD_SIZE"
    missing = [name for name in TORCHRUN if name not in os.environ]
    if missing:
        raise PrefkdError(f"WORLD_SIZE is in the environment, but {', '.join(missing)} is not: {remedy}")
    numbers = {}
    for name in ("WORLD_SIZE", *TORCHRUN):
        if name != "MASTER_ADDR":
            if not os.environ[name].isdecimal():
                raise PrefkdError(f"{name} is {os.environ[name]!r} in the environment, not a number: {remedy}")
            numbers[name] = int(os.environ[name])
    for name, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if numbers[name] >= numbers[size]:
            told = f"{name} is {numbers[name]} in the environment, and {size} is {numbers[size]}"
            raise PrefkdError(f"{told}, but processes are counted from 0: {remedy}")
    return numbers


@contextmanager
def join_ranks(device: Literal["auto", "cpu", "cuda"]) -> Iterator[Ranks]:
    """Join the processes that torchrun started; without torchrun there is one.

    Args:
        device: `auto` takes the GPU where there is one.
    """
    use_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if use_cuda:
        # Where attention has a mask, torch would ask cuDNN first, which plans each new shape of a batch for a second or
        # so, forward and backward. Microbatches hardly ever have the same shape; the other kernels need no plan.
        torch.backends.cuda.enable_cudnn_sdp(False)
    numbers = torchrun_numbers()
    if not numbers:
        if use_cuda:  # FSDP casts weights there on one GPU as on many; a CPU, which gains nothing by it, does without
            store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
            dist.init_process_group("cpu:gloo,cuda:nccl", store=store, rank=0, world_size=1)
        try:
            yield Ranks(0, 1, torch.device("cuda", 0) if use_cuda else torch.device("cpu"))
        finally:
            if use_cuda:
                dist.destroy_process_group()
        return
    local_rank, node_size = numbers["LOCAL_RANK"], numbers["LOCAL_WORLD_SIZE"]
    own = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        if node_size > torch.cuda.device_count():
            raise PrefkdError(
                f"{node_size} processes on a machine with {torch.cuda.device_count()} GPU(s); use --nproc-per-node gpu"
            )
        torch.cuda.set_device(own)
    # What lies in main memory, offloaded weights for instance, is summed by gloo.
    dist.init_process_group("cpu:gloo,cuda:nccl" if use_cuda else "gloo", timeout=PATIENCE)
    ranks, is_done = Ranks(dist.get_rank(), dist.get_world_size(), own, node_size), False
    try:
        yield ranks
        is_done = True
    finally:
        # NCCL's end is a meeting. Where this rank alone has failed, the others wait for it elsewhere, so that it must
        # just end: torchrun ends them then.
        if is_done or not use_cuda or ranks.world_size == 1:
            dist.destroy_process_group()


def together(
    ranks: Ranks, action: Callable[[], Found], explain: Callable[[BaseException], str] | None = None
) -> list[Found]:
    """What an action returns on each rank.

    Args:
        explain: Says in a line why the action failed; without it, that is the error's own first line.

    Raises:
        PrefkdError: On all ranks, if it fails on one of them.
    """
    found: Any = None
    failure = None
    try:
        found = action()
    except (Exception, CheckpointException) as error:  # whatever it is, the other ranks must not wait for this one
        failure = (explain or _cause)(error)
    outcomes = ranks.gather((found, failure))
    for _, failed in outcomes:
        if failed is not None:
            raise PrefkdError(failed)
    return [result for result, _ in outcomes]


def worker(device: torch.device) -> ThreadPoolExecutor:
    """A thread of a process that works on a device. Left to itself, a new thread works on GPU 0, whichever is the
    process's own, and takes the memory of a CUDA context there."""
    if device.type != "cuda":
        return ThreadPoolExecutor(1)
    return ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(device,))


def _cause(error: BaseException) -> str:
    """The cause of a failure in a line."""
    if isinstance(error, CheckpointException) and error.failures:
        return _cause(next(iter(error.failures.values()))[0])
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno).lower()
    return first_line(error)
