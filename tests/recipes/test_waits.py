"""Nothing in a microbatch waits for the device: no number is fetched from it, no shape depends on its values.

Counted on a CPU, where such an operation costs nothing, by what torch dispatches. On a GPU each of them would hold the
host until all that was queued before is done.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from prefkd.training import run as training_run
from tests.recipes import single_model, two_models
from tests.tiny import make_model

# `item`, `bool()` and `if`; shapes made of values; a copy of all of a tensor to compare; tensors made of Python's
# numbers and lists, which are copied from main memory; a look whether a matrix could be inverted.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "unique_dim", "unique_consecutive")
WAITING += ("bincount", "isin", "equal", "is_nonzero", "lift_fresh", "_linalg_check_errors")
READING = ("tolist", "cpu")  # not dispatched for a tensor in main memory; `numpy` does not take another


class Reads(TorchFunctionMode):
    """Counts calls that copy a tensor into main memory."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if (name := getattr(func, "__name__", "")) in READING:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


class Waits(TorchDispatchMode):
    """Counts operations that would make a host wait for its GPU.

    Whatever is made of numbers counts, even where it would stay in main memory: on a CPU both look the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.reads = Reads(self.found)

    def __enter__(self) -> Self:
        self.reads.__enter__()
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        self.reads.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        by_counts = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in WAITING or by_mask or by_counts:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("worlds")
    for name in ("one", "two"):
        (folder / name).mkdir()
    worlds = {"one": single_model.make_world(folder / "one"), "two": two_models.make_world(folder / "two")}
    make_model(worlds["two"] / "positive", "llama", "byte_level", seed=3)
    settings = (each.format(world=worlds["two"]) for each in MODELS)
    two_models.score(worlds["two"], worlds["two"], *settings)
    return worlds


@pytest.fixture
def waits(monkeypatch) -> Waits:
    """Counts what happens between a batch and the next, in training: `compare`, the loss's backward and the sums."""
    counting, batches = Waits(), training_run.TrainingRun.batches

    def counted(self, collate, split, rows) -> Iterator:
        for batch in batches(self, collate, split, rows):
            if split != "train":
                yield batch
                continue
            with counting:
                yield batch

    monkeypatch.setattr(training_run.TrainingRun, "batches", counted)
    return counting


def terms(*settings: str) -> str:
    return (
        "objective=[{_component_: prefkd.training.terms.tis_dpo},"
        + ",".join(f"{{_component_: prefkd.training.terms.{each}}}" for each in settings)
        + "]"
    )


MODELS = ("contrast.kind=models", "contrast.positive.path={world}/positive", "contrast.negative.path={world}/teacher")
RUNS = {
    # Under a mask, transformers looks at each row of single answers for padding.
    "sft": ("training.attention=varlen",),
    "dpo": (),
    "dpo_distill": (),
    "tis_dpo_distill": (),
    "tis_dpo_distill varlen": ("training.attention=varlen",),
    "tis_dpo_distill scores of models": (
        *("~teacher.path", "teacher.scores={world}/scores", "weights.contrast=scores"),
        *("weights.method=rank_based", "weights.reduce=mean"),
    ),
    "dskd_distill dual_space": (terms("dual_space, answers: both", "cross_entropy", "alm", "uld"),),
    "dskd_distill dual_space_v2": (terms("dual_space_v2, answers: rejected"),),
    "dskd_distill shared": (terms("shared_tokens", "gold", "x_token", "distillm2", "uld, align: parent"),),
    "dskd_distill preferences": (
        terms("align_distil", "dckd", "adpa", "tvkd", "pad", "preference"),
        *(*MODELS, "weights.contrast=uniform"),
    ),
    "dskd_distill same_vocabulary": (
        terms("same_vocabulary", "same_vocabulary_dual_space, answers: both"),
        "student.path={world}/positive",
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_microbatch_waits_for_nothing(worlds, tmp_path, waits, name):
    recipe = name.split()[0]
    helper, world = (two_models, "two") if recipe.endswith("distill") else (single_model, "one")
    steps = ("training.max_steps=1", "training.microbatch_size=2", "training.activation_checkpointing=full")
    settings = (each.format(world=worlds[world]) if "{world}" in each else each for each in RUNS[name])
    helper.run(recipe, worlds[world], tmp_path / "out", *steps, *settings)
    assert not waits.found


def test_a_wait_is_seen(waits):
    with waits:
        mask = torch.tensor([True, False])
        assert torch.ones(2)[mask].sum().item() == 1.0
        if mask.any():
            pass
        assert mask.tolist() == [True, False]
        torch.ones(2).repeat_interleave(mask.long())
    found = {"index": 1, "_local_scalar_dense": 2, "lift_fresh": 1, "tolist": 1, "repeat_interleave": 1}
    assert waits.found == found
