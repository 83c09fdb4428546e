"""How many operations a GPU would be sent, and how many bytes they move, before and after; counted, not timed.

    python benchmarks/launches.py

Every tensor is one of torch without content, so that full size takes seconds on any machine. An operation that is no
view counts as one launch that reads its inputs and writes its outputs once, all in float32. A compiled pass over logits
counts as the kernels that it needs: two for `fold`, since a maximum has to be known before exponentials are summed, one
for `differences`. What a card does in what time only a card can say (benchmarks/gpu).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prefkd.method.dual_space import DualSpaceProjectors
from prefkd.method.head_passes import EAGER, FUSED, Passes, Running
from prefkd.method.logprobs import linear_token_logprobs
from prefkd.models.logprob_model import TokenStates
from prefkd.training import terms
from prefkd.training.signals import Signals

WITHOUT_KERNEL = ("empty", "new_empty", "empty_like", "detach", "alias", "lift_fresh", "device")
# They touch as much of their largest tensor as their smallest has.
SPARSE = ("gather", "scatter_", "index", "index_select", "embedding")


@dataclass
class Options:
    """Launches and bytes of the parts of a microbatch."""

    pairs: int = 4
    """Pairs of a microbatch."""
    answer: int = 512
    """Tokens of an answer."""
    vocabularies: tuple[int, int] = (151_936, 32_768)
    """Tokens of the student and of the teacher."""
    sizes: tuple[int, int] = (1536, 4096)
    """Their hidden sizes."""
    chunk_size: int = 512
    """Targets whose logits exist at one time."""


class Launches(TorchDispatchMode):
    """Counts operations and the bytes that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.launches, self.bytes, self.counts = 0, 0, True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        inputs, outputs = (_tensors(values) for values in ((args, kwargs), found))
        known = {tensor.untyped_storage()._cdata for tensor in inputs}
        is_view = not func._schema.is_mutable and any(out.untyped_storage()._cdata in known for out in outputs)
        if self.counts and not is_view and func.overloadpacket.__name__ not in WITHOUT_KERNEL:
            touched = [*inputs, *outputs]
            if func.overloadpacket.__name__ in SPARSE:
                touched = [min(touched[1:], key=lambda each: each.numel())] * 3
            self.add(*touched)
        return found

    def add(self, *tensors: Tensor) -> None:
        """One launch that reads or writes these."""
        self.launches += 1
        self.bytes += sum(min(each.numel() * each.itemsize, each.untyped_storage().nbytes()) for each in tensors)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Inside, nothing is counted."""
        self.counts = False
        try:
            yield
        finally:
            self.counts = True


def compiled(mode: Launches) -> Passes:
    """`FUSED`, counted as the kernels of a compiler."""

    def fold(logits: Tensor, columns: Tensor, running: Running, *how: Any) -> Any:
        with mode.apart():
            exponentials, rescale, after = FUSED.fold(logits, columns, running, *how)
        mode.add(logits, columns, *running, after.peaks, after.target_logits)
        mode.add(logits, after.peaks, rescale, after.others, *([exponentials] if how[-1] else []))
        return exponentials, rescale, after

    def differences(logits: Tensor, columns: Tensor, running: Running, *how: Any) -> Tensor:
        with mode.apart():
            found = FUSED.differences(logits, columns, running, *how)
        mode.add(logits, columns, running.peaks, running.others, found)
        return found

    return Passes(fold, differences, fused=True)


def head(options: Options, choose: Callable[[Launches], Passes]) -> dict[str, Launches]:
    """The head of the student."""
    tokens, vocabulary, size = 2 * options.pairs * options.answer, options.vocabularies[0], options.sizes[0]
    hidden, weight = torch.empty(tokens, size, requires_grad=True), torch.empty(vocabulary, size, requires_grad=True)
    targets = torch.zeros(tokens, dtype=torch.long)
    with Launches() as forward:
        passes = choose(forward)
        found = linear_token_logprobs(hidden, weight, targets, chunk_size=options.chunk_size, passes=passes)
    upstream = torch.empty(tokens)
    with Launches() as backward:
        forward.add, forward.apart = backward.add, backward.apart  # pyright: ignore[reportAttributeAccessIssue]
        found.backward(upstream)
    return {"head, forward": forward, "head, backward": backward}


def dual_space(options: Options, *, at_once: bool) -> dict[str, Launches]:
    """The term of DSKD on both answers of all pairs, forward and backward: in one pass, or pair by pair as it was."""
    projectors = DualSpaceProjectors(*options.sizes)
    pairs = [options.pairs] if at_once else [1] * options.pairs
    sides = [(0, 1)] if at_once else [(0,), (1,)]
    with Launches() as mode:
        for count in pairs:
            states = [_states(options, side, count) for side in range(2)]
            policy = torch.zeros(2, count, 1)
            signals = Signals(policy, policy.bool(), states[0], teacher=states[1], projectors=projectors)
            for which in sides:
                values, _ = terms.dual_space(replace(signals, sides=which))
                values.sum().backward()
    return {"DSKD, forward and backward": mode}


def _states(options: Options, side: int, pairs: int) -> TokenStates:
    lengths = (options.answer,) * (2 * pairs)
    ids = torch.empty(sum(lengths), dtype=torch.long)
    vocabulary, size = options.vocabularies[side], options.sizes[side]
    hidden = torch.empty(sum(lengths), size, requires_grad=side == 0)
    table = torch.empty(vocabulary, size)
    weight = torch.empty(vocabulary, size, requires_grad=side == 0)
    return TokenStates(ids, ids, ids, hidden, table, weight, lengths, chunk_size=options.chunk_size)


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def measure(options: Options) -> dict[str, tuple[Launches, Launches]]:
    """What is counted before and after, by unit."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        before = head(options, lambda mode: EAGER) | dual_space(options, at_once=False)
        after = head(options, compiled) | dual_space(options, at_once=True)
    return {unit: (before[unit], after[unit]) for unit in before}


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    table = Table(title=f"{options.pairs} pairs, answers of {options.answer} tokens")
    for heading in ("", "launches before", "after", "GB before", "after"):
        table.add_column(heading, justify="right" if heading else "left")
    for unit, (before, after) in measure(options).items():
        counts = (f"{mode.launches:,}" for mode in (before, after))
        table.add_row(unit, *counts, *(f"{mode.bytes / 1e9:.1f}" for mode in (before, after)))
    Console().print(table)


if __name__ == "__main__":
    main()
