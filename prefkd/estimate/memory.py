"""Arithmetic of memory: what lies on one rank, in bytes, and whether a GPU has room for it."""

import math
from dataclasses import dataclass

import psutil
import torch

from prefkd.errors import PrefkdError, nearest

GIB = 2**30
# Total memory in GiB as the driver reports it.
GPUS = {
    "T4": 14.6,
    "RTX-4090": 23.5,
    "A10": 22.5,
    "A100-40": 39.5,
    "L40S": 44.5,
    "A100-80": 79.2,
    "H100": 79.2,
    "H200": 139.8,
    "B200": 178.4,
}
# What no tensor shows; estimates, until part `memory` of `benchmarks/gpu` has measured them on a card: the CUDA context
# with torch's kernels; workspaces of products and attention, and NCCL's buffers; and the share that is lost in gaps.
CONTEXT = 0.5 * GIB
WORKSPACES = 0.2 * GIB
GAPS = 0.05
# Bytes on disk of a log-prob in a score cache: 4 and what Parquet adds, as recipe score measured it (17.7 for three).
STORED_LOGPROB = 5.9


def sharded_bytes(size: float, ranks: int) -> float:
    """What a rank has of something that FSDP2 splits evenly."""
    return size / ranks


def gathered_bytes(root: float, layer: float) -> float:
    """Whole weights that a rank holds for a while: the root group, the layer at work and the next one."""
    return root + 2 * layer


def quantized_bytes(rows: int, columns: int, kind: str, dtype_bytes: int) -> float:
    """A weight (rows, columns) of a linear layer as torchao stores it, scales included."""
    weights = rows * columns
    match kind:
        case "int8":
            return weights + rows * (dtype_bytes + 8)  # scale and zero point of each row
        case "float8":
            return weights + rows * 4
        case "nf4":
            return weights / 2 + weights / 64 + weights / 64 / 256 * 4  # a byte for 64 weights, 4 for 256 of these
        case "int4":
            weights = math.ceil(rows / 8) * 8 * math.ceil(columns / 1024) * 1024  # it is padded to whole tiles
            return weights / 2 + weights / 128 * 4  # scale and zero point of 128 weights, 2 bytes each
    return weights * dtype_bytes


def unpacking_bytes(weights: int, kind: str, dtype_bytes: int, *, learns: bool) -> int:
    """What there is for a while of a layer's quantized weight while the layer computes.

    Args:
        learns: Whether adapters on it learn, so that backward unpacks it too.
    """
    if kind == "nf4":
        return weights * (2 + dtype_bytes)  # four bytes to look up each pair of numbers with, and these
    if kind in ("float8", "int4"):  # whose products read them as they are
        return 0
    return weights * dtype_bytes * (2 if learns else 1)


def score_cache_bytes(parents: float, logprobs: int) -> float:
    """A score cache: so many log-probs of each parent, 1 without a contrast and 3 with one."""
    return parents * logprobs * STORED_LOGPROB


@dataclass(frozen=True)
class Card:
    """A GPU.

    Attributes:
        name: Its name.
        gib: Its memory.
    """

    name: str
    gib: float

    @property
    def usable(self) -> float:
        """Bytes that a run's tensors can fill."""
        return max(self.gib * GIB * (1 - GAPS) - CONTEXT - WORKSPACES, 0.0)

    def fits(self, size: float) -> bool:
        """Whether it has room."""
        return size <= self.usable


def find_card(text: str) -> Card:
    """The GPU of a name, or one with so many GiB.

    Raises:
        PrefkdError: It is neither.
    """
    known = {name.lower(): Card(name, gib) for name, gib in GPUS.items()}
    if text.lower() in known:
        return known[text.lower()]
    try:
        gib = float(text)
    except ValueError:
        raise PrefkdError(f"--gpu {text} is not known{nearest(text, GPUS)} (or give its memory in GiB)") from None
    if not 0 < gib < math.inf:
        raise PrefkdError(f"--gpu {text} is not the memory of a GPU; give GiB, for example 24")
    return Card("a GPU", gib)


def own_card() -> Card | None:
    """The GPU of this machine, None if there is none."""
    if not torch.cuda.is_available():
        return None
    return Card(torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory / GIB)


def own_memory() -> Card:
    """The GPU of this machine, or else its main memory as far as it is free."""
    return own_card() or Card("the memory of this machine", psutil.virtual_memory().available / GIB)


def smallest_card(size: float) -> Card | None:
    """The smallest of the known GPUs that has room, None if there is none."""
    cards = sorted((Card(name, gib) for name, gib in GPUS.items()), key=lambda card: card.gib)
    return next((card for card in cards if card.fits(size)), None)
