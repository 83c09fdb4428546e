"""All that a step makes is on the device of its batch, or the step would end on a GPU with tensors on two devices.

There need not be a GPU: models and batch are fake tensors on torch's `meta` device, which autograd knows, and what is
left in main memory is found where it meets them. The numbers that a run makes once of its tokenizers may go there.
"""

import contextlib
import inspect
import math
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prefkd import catalog
from prefkd.config import load_config
from prefkd.data.packing import with_tensors
from prefkd.estimate.outlines import load_outlines
from prefkd.estimate.tracking import MemoryTracker, fakes
from prefkd.training.metrics import PairSums
from prefkd.training.optimizer import clip_gradients
from tests.recipes import two_models
from tests.recipes.test_waits import terms

CASES = {
    "tis_dpo_distill": ("weights.method=rank_based", "weights.reduce=mean", "training.attention=varlen"),
    "dskd_distill": (terms("dual_space, answers: both", "x_token", "uld", "alm"), "projectors.warmup_steps=1"),
}


class Devices(TorchDispatchMode):
    """Notes operations on tensors in main memory and elsewhere, and copies from there."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        devices = [value.device for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        target = (kwargs or {}).get("device")
        if len({*devices, *([target] if devices and target else [])}) > 1:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def on_device(monkeypatch) -> Devices:
    # Of autocast `meta` knows nothing; in float32 it is off anyway.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    return Devices()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return two_models.make_world(tmp_path_factory.mktemp("world"))


def empty(value: torch.Tensor) -> torch.Tensor:
    found = torch.empty(value.shape, dtype=value.dtype, device="meta")
    return nn.Parameter(found, value.requires_grad) if isinstance(value, nn.Parameter) else found


def run_step(recipe: str, world, devices: Devices, *settings: str) -> list[str]:
    """What was noted in a step, with its gradients clipped, that trains the projectors alone where there are some."""
    module = catalog.load_recipe(catalog.find_recipe(recipe))
    own = ("training.precision=float32", "training.device=auto", "training.microbatch_size=2", "output_dir=out")
    found = load_config(
        module.Config, yaml.safe_load(inspect.cleandoc(two_models.models_and_pairs(world))), [*own, *settings]
    )
    outlines = load_outlines(module, found)
    student, mode = outlines.learner, fakes()
    with mode:
        made = {}
        for part in (student, *(base for _, base in outlines.frozen)):
            for owner in part.modules():
                for table in (owner._parameters, owner._buffers):
                    named = {name: value for name, value in table.items() if value is not None}
                    table.update({name: made.setdefault(value, empty(value)) for name, value in named.items()})
        batch = with_tensors(outlines.batch, empty)
    run = SimpleNamespace(
        **vars(outlines.models) | {"teacher": outlines.teacher.read}, with_reference=lambda batch: batch
    )
    run.lr_schedule = SimpleNamespace(last_epoch=0 if student.projectors is not None else math.inf)
    groups = [{"params": [*part.parameters()]} for part in (student.lm, student.projectors) if part is not None]
    with mode, MemoryTracker([]), devices:
        losses, metrics = module.compare(found, run, batch)
        (losses * batch.counted).sum().backward()
        sums = PairSums()
        sums.add(metrics, batch)
        clip_gradients(torch.optim.SGD(groups, lr=0.1), 1.0)
    assert sums._sums.device.type == "meta"
    return devices.found


@pytest.mark.parametrize("recipe", CASES)
def test_nothing_of_a_step_is_left_in_main_memory(world, on_device, recipe):
    found = run_step(recipe, world, on_device, *CASES[recipe])
    # The norm of the student, which has no gradient while projectors warm up, is made there by torch itself.
    assert found == (["aten._to_copy.default"] if recipe == "dskd_distill" else [])


def test_what_is_left_there_is_seen(on_device):
    with fakes(), on_device:
        values = torch.zeros(2, device="meta")
        torch.stack([values.sum(), torch.zeros(())])
        values[torch.zeros(1, dtype=torch.long)]
        torch.zeros(2).to("meta")
    assert on_device.found == ["aten.stack.default", "aten.index.Tensor", "aten._to_copy.default"]
