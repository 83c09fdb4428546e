"""Run the real code of a step on tensors without content, and see how much memory its tensors would take.

Every tensor is a fake one of torch: shape, type and device, but no bytes. So all that the models, the losses and
autograd keep is counted as it is, whatever the architecture, and a model of any size is run in seconds.
"""

import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

aten = torch.ops.aten
# What an allocator counts is in whole blocks: 512 bytes on a GPU.
BLOCK = 512


class MemoryTracker(TorchDispatchMode):
    """Counts the bytes of all tensors that are made while it is on and still live, by kind.

    Args:
        known: Tensors that are there already and are not counted; among them the weights.
        shares: Kind -> the part of its bytes that lies on this rank; 1 where it is not named.

    Attributes:
        live: Kind -> bytes that are there now.
        most: Kind -> the most bytes that were there.
        peak: Kind -> bytes at the moment when all together were most.

    The kinds are `gradients`, `casts` (copies of weights in another type, which autocast makes) and `activations`,
    which is all else.
    """

    def __init__(self, known: Iterable[Tensor], shares: Mapping[str, float] | None = None):
        super().__init__()
        self.shares = dict(shares or {})
        self.live: dict[str, float] = defaultdict(float)
        self.most: dict[str, float] = defaultdict(float)
        self.peak: dict[str, float] = defaultdict(float)
        self._known = {id(storage): storage for storage in (tensor.untyped_storage() for tensor in known)}
        self._kinds: dict[int, str] = {}
        self._references: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        answered, result = _answer(func, args)
        if not answered:
            result = func(*args, **kwargs)
        kind = "casts" if func is aten._to_copy.default and self._is_known(args[0]) else "activations"
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._see(tensor, kind)
        return result

    def keep_gradients(self, module: nn.Module, *, are_there: bool) -> None:
        """Count the gradients of a module as such from the moment on when they are accumulated.

        Args:
            are_there: Whether earlier passes of the step have left gradients already, to which this one adds.
        """
        learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
        for parameter in learning:
            parameter.register_post_accumulate_grad_hook(self._add_up if are_there else self._keep)
        if are_there:
            self._change("gradients", sum(map(_size, learning)))

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Inside, so many bytes more are there."""
        self._change("activations", size)
        try:
            yield
        finally:
            self._change("activations", -size)

    @property
    def total(self) -> float:
        """Bytes at the peak."""
        return sum(self.peak.values())

    def _keep(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        key, size = id(parameter.grad.untyped_storage()), _size(parameter.grad)
        if self._kinds.get(key) == "activations":
            self._change("activations", -size)
            self._kinds[key] = "gradients"
            self._change("gradients", size)

    def _add_up(self, parameter: Tensor) -> None:
        parameter.grad = None

    def _is_known(self, value: Any) -> bool:
        return isinstance(value, Tensor) and id(value.untyped_storage()) in self._known

    def _see(self, tensor: Tensor, kind: str) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known or key in self._kinds:
            return
        size = _size(tensor)
        self._kinds[key] = kind
        self._references[key] = weakref.ref(storage, lambda _: self._gone(key, size))
        self._change(kind, size)

    def _gone(self, key: int, size: int) -> None:
        del self._references[key]
        self._change(self._kinds.pop(key), -size)

    def _change(self, kind: str, size: int) -> None:
        self.live[kind] += size * self.shares.get(kind, 1)
        self.most[kind] = max(self.most[kind], self.live[kind])
        if sum(self.live.values()) > self.total:
            self.peak = defaultdict(float, self.live)


def fakes() -> FakeTensorMode:
    """Inside it, tensors are made without content."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def empty(module: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Put fake weights into a module of the meta device, as if it were on a CPU; tied ones stay so. Inside `fakes`.

    Args:
        dtype: Type of the weights, those of the module if not given.
    """
    made: dict[Tensor, Tensor] = {}
    for owner in module.modules():
        tables: Any = owner._parameters, owner._buffers
        for table in tables:
            for name, value in table.items():
                if value is None:
                    continue
                if value not in made:
                    is_weight = isinstance(value, nn.Parameter)
                    fake = torch.empty(value.shape, dtype=dtype if dtype and is_weight else value.dtype)
                    made[value] = nn.Parameter(fake, value.requires_grad) if is_weight else fake
                table[name] = made[value]


def _size(tensor: Tensor) -> int:
    return -(-tensor.untyped_storage().nbytes() // BLOCK) * BLOCK


def _answer(func: Any, args: Any) -> tuple[bool, Any]:
    """What is answered to questions about values, which nobody knows: no, one, alike, and every position of a mask."""
    if func is aten._local_scalar_dense.default:
        return True, args[0].dtype != torch.bool  # False for a mask, 1 for a number
    if func is aten.equal.default:
        return True, True
    if func is aten.nonzero.default:
        return True, args[0].new_zeros(args[0].numel(), args[0].ndim, dtype=torch.long)
    if func is aten.index.Tensor and any(_is_mask(index) for index in args[1] if index is not None):
        return True, func(args[0], _positions(args[1]))
    return False, None


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool


def _positions(indices: Any) -> list[Any]:
    found: list[Any] = []
    for index in indices:
        ids = [index.new_zeros(index.numel(), dtype=torch.long)] * index.ndim if _is_mask(index) else [index]
        found += ids
    return found
