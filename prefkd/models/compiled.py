"""Decoder layers that torch compiles, one graph for all lengths: what is cheap to compute and dear to move is fused."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch._dynamo.utils import counters
from torch._functorch import config as tracing
from transformers import PreTrainedModel

from prefkd.models.load import decoder_layers

Compile = bool | Literal["auto"]
# By which torch builds what it has compiled, unless CXX names another.
COMPILERS = ("g++", "c++", "clang++")


def compile_obstacle() -> str | None:
    """Why layers cannot be compiled on this machine, in a few words; None if they can."""
    named = os.environ.get("CXX")
    if any(map(shutil.which, [named] if named else COMPILERS)):
        return None
    return f"there is no C++ compiler here ({named or ', '.join(COMPILERS)})"


def tries_compiling(wanted: Compile, device: torch.device) -> bool:
    """Whether layers are to be compiled, if they can be."""
    return wanted is True or (wanted == "auto" and device.type == "cuda" and compile_obstacle() is None)


def compile_layers(lm: PreTrainedModel, backend: str = "inductor") -> None:
    """Let torch compile each decoder layer when it is called next. They share their graphs.

    What is compiled is `forward`, inside the hooks by which FSDP2 gathers weights; with them torch compiles nothing.
    """
    for layer in decoder_layers(lm):
        layer.forward = torch.compile(layer.forward, dynamic=True, backend=backend)


def is_compiled(lm: PreTrainedModel) -> bool:
    """Whether torch compiles its layers."""
    return any("forward" in vars(layer) for layer in decoder_layers(lm))


def undo_compiling(lm: PreTrainedModel) -> None:
    """Let each decoder layer run as it is written."""
    for layer in decoder_layers(lm):
        del layer.forward


@contextmanager
def as_written_on_failure(lm: PreTrainedModel) -> Iterator[list[Exception]]:
    """Inside, once a compiled layer has failed, layers run as they are written; what it raised is in the list.

    An exception would leave a model that FSDP2 has in parts in the middle of a pass. Backward is compiled with forward,
    so that a compiler fails here and not in autograd.
    """
    errors: list[Exception] = []
    compiled = {layer: layer.forward for layer in decoder_layers(lm)}

    def run(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not errors:
            try:
                return compiled[layer](*args, **kwargs)
            except Exception as error:  # of the compiler, of what it has compiled, and of the model
                errors.append(error)
        return type(layer).forward(layer, *args, **kwargs)

    for layer in compiled:
        layer.forward = partial(run, layer)
    at_once = {"force_non_lazy_backward_lowering": True}
    try:
        with tracing.patch({name: value for name, value in at_once.items() if hasattr(tracing, name)}):
            yield errors
    finally:
        for layer, forward in compiled.items():
            layer.forward = forward


class Recompilations:
    """Tells when torch compiles in the middle of a training, where it should have done so in its first steps.

    Args:
        settled: After so many steps nothing new is expected.
    """

    def __init__(self, settled: int = 20):
        self._settled = settled
        self._steps = self._graphs = 0

    def before_step(self) -> None:
        """Leave out what was compiled between steps, for an evaluation."""
        self._graphs = graph_count()

    def after_step(self) -> int:
        """Graphs that were compiled in a step; 0 in the first ones, where that is as it should be."""
        self._steps += 1
        return graph_count() - self._graphs if self._steps > self._settled else 0


def graph_count() -> int:
    """Graphs that this process has compiled."""
    return counters["stats"]["unique_graphs"]
