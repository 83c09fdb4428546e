"""Numbers of a step are read once, and what is not finite stops the run before a weight moves."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prefkd.errors import PrefkdError
from prefkd.ranks import Ranks
from prefkd.training.metrics import Outcome, PairSums

ALONE = Ranks(0, 1, torch.device("cpu"))


def batch(*names: str, fillers: int = 0) -> Any:
    counted = torch.ones(len(names))
    counted[len(names) - fillers :] = 0
    return SimpleNamespace(names=list(names), counted=counted)


def test_means_leave_fillers_out():
    sums = PairSums()
    sums.add({"loss": torch.tensor([1.0, 2.0]), "margin": torch.tensor([4.0, 0.0])}, batch("x:1", "x:2"))
    sums.add({"loss": torch.tensor([6.0, 9.0]), "margin": torch.tensor([2.0, 9.0])}, batch("x:3", "x:1", fillers=1))
    assert sums.read(ALONE, 1, torch.tensor(0.5)) == ({"loss": 3.0, "margin": 2.0}, 0.5)
    held_out = sums.held_out(ALONE, 1)
    assert held_out == {"held_out/loss": 3.0, "held_out/margin": 2.0}
    assert held_out.losses is not None and held_out.losses.tolist() == [1.0, 2.0, 6.0]


def test_nothing_was_added():
    assert PairSums().read(ALONE, 1) == ({}, 0.0)
    assert PairSums().held_out(ALONE, 1) == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_its_pairs(value):
    sums = PairSums()
    sums.add({"loss": torch.tensor([1.0, value])}, batch("x:1", "x:2"))
    sums.add({"loss": torch.tensor([value, 1.0])}, batch("y:3", "y:4"))
    expected = r"^the loss is not finite at step 7 on x:2, y:3; look at these rows, or lower the learning rate$"
    with pytest.raises(PrefkdError, match=expected):
        sums.read(ALONE, 7)
    with pytest.raises(PrefkdError, match=expected):
        sums.held_out(ALONE, 7)


def test_all_ranks_name_what_one_has_seen():
    sums = PairSums()
    sums.add({"loss": torch.tensor([1.0])}, batch("x:1"))
    others = {
        "sum": lambda self, values: values + torch.tensor([0.0, 0.0, 1.0]),
        "gather": lambda self, own: [own, ["z:9"]],
    }
    with pytest.raises(PrefkdError, match="at step 2 on z:9;"):
        sums.read(type("Two", (Ranks,), others)(0, 2, torch.device("cpu")), 2)


def test_a_gradient_that_is_not_finite():
    sums = PairSums()
    sums.add({"loss": torch.tensor([1.0])}, batch("x:1"))
    with pytest.raises(PrefkdError, match="the gradient is not finite at step 3, though all losses are"):
        sums.read(ALONE, 3, torch.tensor(float("nan")))


def test_results_are_what_a_reader_looks_for_and_what_has_changed():
    before = {"saturated": 0.0, "accuracy": 0.5, "tokens": 39.0, "chosen_reward": 0.1, "loss": 0.7, "noise": 0.00001}
    after = before | {"loss": 0.6, "chosen_reward": 0.2, "noise": 0.00002}
    rounded = after | {"tokens": 39.5}  # only the folder differs
    outcome = Outcome(
        *({f"held_out/{name}": value for name, value in part.items()} for part in (before, after, rounded))
    )
    names = [name.removeprefix("held_out/") for name in outcome.results()]
    assert names == ["loss", "accuracy", "tokens", "chosen_reward"]
    assert Outcome({}, {}, {}).results() == []
