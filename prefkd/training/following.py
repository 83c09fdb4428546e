"""TR-DPO (arXiv 2404.09656): a reference that follows the model which learns, from its start.

The reference needs no model of its own. It is a copy of the weights that learn, adapters alone where adapters learn. To
read a microbatch, copy and model change places for a forward pass without gradient.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from prefkd.data.batches import PairBatch, ParentScores, TokenPairBatch
from prefkd.method.loss_settings import refreshed_reference
from prefkd.models.logprob_model import LogprobModel

Compared = TypeVar("Compared", PairBatch, TokenPairBatch)


@dataclass
class Refresh:
    """How the reference follows (TR-DPO, arXiv 2404.09656).

    Attributes:
        every: Optimizer steps from one refresh to the next.
        alpha: Share of the model in the new reference; with 1 it is the model.
    """

    every: int = 512
    alpha: float = 0.6

    def problems(self) -> Iterator[str]:
        if self.every < 1:
            yield f"every: {self.every} is not a number of steps; use 1 or more"
        if not 0 < self.alpha <= 1:
            yield f"alpha: {self.alpha} is not a share of the model; use more than 0, and at most 1"


def refresh_problems(missing_reference: str | None, teacher_is_reference: bool, training: Any) -> Iterator[str]:
    """Why a reference cannot follow the model.

    Args:
        missing_reference: Who compares with no reference, in a few words; None where there is one.
        training: The section `training`.
    """
    if missing_reference is not None:
        yield f"refresh: {missing_reference}; remove it"
    elif teacher_is_reference:
        yield "refresh: the teacher is the reference, and does not learn; set reference: student, or remove it"
    elif training.keep_best is not None:
        yield "refresh: held-out metrics against another reference cannot be compared; remove training.keep_best"


class FollowingReference:
    """A reference that is refreshed after every few steps of an optimizer.

    Args:
        model: The model that learns, sharded or not; at its start.
        optimizer: A step of it is a step of training.
        lr_schedule: It counts the steps, in a resumed run too.

    Attributes:
        tensors: Its weights by name, sharded as the model's.
    """

    def __init__(self, settings: Refresh, model: LogprobModel, optimizer: Optimizer, lr_schedule: LRScheduler):
        self._settings, self._model, self._lr_schedule = settings, model, lr_schedule
        weights = model.lm.named_parameters(prefix="lm")  # projectors have no part in log-probs
        learning = {name: weight.detach() for name, weight in weights if weight.requires_grad}
        self.tensors = {name: weight.clone() for name, weight in learning.items()}
        self._pairs = [(_local(weight), _local(self.tensors[name])) for name, weight in learning.items()]
        self._learns = False  # since the last step; checkpoints let an optimizer step that has no state yet
        optimizer.register_step_post_hook(self._after_step)

    def read(self, batch: Compared) -> Compared:
        """A microbatch with what the reference says of it. All ranks call it together."""
        self._learns |= torch.is_grad_enabled()
        with torch.no_grad(), self._in_place_of_the_model():
            if isinstance(batch, TokenPairBatch):
                return replace(batch, reference=batch.padded(self._model(batch.tokens)))
            logprobs = batch.parent_sums(self._model(batch.student), batch.student)
        scores = ParentScores(logprobs) if batch.scores is None else replace(batch.scores, reference=logprobs)
        return replace(batch, scores=scores)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: `tensors` are all that it is."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""

    @contextmanager
    def _in_place_of_the_model(self) -> Iterator[None]:
        was_training = self._model.training
        self._model.eval()
        self._change_places()
        try:
            yield
        finally:
            self._change_places()
            self._model.train(was_training)

    def _change_places(self) -> None:
        if self._pairs[0][0].is_pinned():  # with cpu_offload; a pass may still be copying them to the GPU
            torch.cuda.synchronize()
        for weight, copy in self._pairs:
            held = weight.clone()
            weight.copy_(copy)
            copy.copy_(held)
        for module in self._model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # a forward pass alone leaves the weights of the root whole

    @torch.no_grad()
    def _after_step(self, *_: Any) -> None:
        learned, self._learns = self._learns, False
        if learned and (self._lr_schedule.last_epoch + 1) % self._settings.every == 0:
            for weight, copy in self._pairs:
                copy.copy_(refreshed_reference(copy, weight, self._settings.alpha))


def _local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
