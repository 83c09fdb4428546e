"""The state of the generators of random numbers, as a checkpoint has it."""

import torch

from prefkd.training.snapshots import get_random_state, set_random_state


def test_a_run_on_the_cpu_leaves_a_gpu_alone(monkeypatch):
    def fail(*_: object) -> None:
        raise AssertionError("this makes a CUDA context")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", fail)
    monkeypatch.setattr(torch.cuda, "set_rng_state", fail)
    state = get_random_state()
    assert state["cuda"] is None
    set_random_state(state | {"cuda": state["cpu"]})
