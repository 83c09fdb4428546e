"""Joining processes: how long they wait for each other, and what is set for a GPU."""

import threading
from contextlib import nullcontext
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from prefkd.errors import PrefkdError
from prefkd.ranks import join_ranks, worker
from tests.processes import run_processes


def _timeouts() -> list[timedelta]:
    with join_ranks("cpu") as ranks:
        groups = [dist.group.WORLD, ranks.in_background().group]
        found = [group._get_backend(torch.device("cpu")).options._timeout for group in groups if group is not None]
        ranks.wait()
        return found


def test_ranks_wait_for_hours_for_a_slow_one():
    """Those of the training, and those of the thread that writes checkpoints."""
    for timeouts in run_processes(_timeouts):
        assert len(timeouts) == 2 and min(timeouts) >= timedelta(hours=6)


@pytest.mark.parametrize("backend", ["gloo", "cpu:gloo,cuda:nccl"])
def test_nccl_gets_the_same_patience(monkeypatch, backend):
    """Its own would be ten minutes, within which rank 0 has not tokenized a large data set."""
    asked = {}

    def init(*names, timeout):
        asked.update(names=names, timeout=timeout)
        raise InterruptedError

    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1" if "SIZE" in name else "0")
    monkeypatch.setattr(dist, "init_process_group", init)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    with pytest.raises(InterruptedError), join_ranks("cuda" if "nccl" in backend else "cpu"):
        pass
    assert asked["names"] == (backend,) and asked["timeout"] >= timedelta(hours=6)


@pytest.mark.parametrize(
    ("device", "processes", "fails", "leaves"),
    [
        ("cuda", 2, False, True),
        ("cuda", 2, True, False),
        ("cuda", 1, True, True),
        ("cpu", 2, True, True),
    ],
)
def test_a_rank_that_fails_alone_does_not_wait_for_the_others(monkeypatch, device, processes, fails, leaves):
    """They wait in a layer for this one, and would not come to the end of NCCL, which is a meeting of all."""
    left = []
    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, str(processes) if "SIZE" in name else "0")
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: processes)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: left.append(True))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: processes)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    expected = pytest.raises(ZeroDivisionError) if fails else nullcontext()
    with expected, join_ranks(device):
        assert not (fails and 1 / 0)
    assert left == [True] * leaves


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("WORLD_SIZE", "abc", "^WORLD_SIZE is 'abc' in the environment, not a number: start several processes with"),
        ("MASTER_PORT", "", "^MASTER_PORT is '' in the environment"),
        ("LOCAL_RANK", "-1", "^LOCAL_RANK is '-1' in the environment"),
        ("RANK", "5", "^RANK is 5 in the environment, and WORLD_SIZE is 2, but processes are counted from 0"),
        ("LOCAL_RANK", "2", "^LOCAL_RANK is 2 in the environment, and LOCAL_WORLD_SIZE is 2"),
    ],
)
def test_an_environment_that_torchrun_does_not_make(monkeypatch, name, value, said):
    numbers = {"RANK": 0, "LOCAL_RANK": 0, "MASTER_PORT": 0, "LOCAL_WORLD_SIZE": 2, "WORLD_SIZE": 2}
    for variable, number in (numbers | {"MASTER_ADDR": "localhost", name: value}).items():
        monkeypatch.setenv(variable, str(number))
    with pytest.raises(PrefkdError, match=said):
        join_ranks("cpu").__enter__()


@pytest.mark.parametrize(("device", "uses_cudnn"), [("cuda", False), ("cpu", True)])
def test_attention_on_a_gpu_makes_no_plan_for_each_shape(monkeypatch, device, uses_cudnn):
    before = torch.backends.cuda.cudnn_sdp_enabled()
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name in ("init_process_group", "destroy_process_group"):  # this torch may be one without NCCL
        monkeypatch.setattr(dist, name, lambda *_, **__: None)
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        with join_ranks(device):
            assert torch.backends.cuda.cudnn_sdp_enabled() is uses_cudnn
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def test_a_thread_works_on_the_gpu_of_its_process(monkeypatch):
    seen = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: seen.append((device, threading.get_ident())))
    for device in (torch.device("cuda", 3), torch.device("cpu")):
        with worker(device) as thread:
            thread.submit(lambda: seen.append(("work", threading.get_ident()))).result()
    (chosen, where), (_, first), (_, _) = seen
    assert chosen == torch.device("cuda", 3) and where == first != threading.get_ident()
