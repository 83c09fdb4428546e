"""Large objects reach a worker process, inherited or sent."""

import os
import pickle

import multiprocess
import pytest
from datasets import Dataset

from prefkd.data.workers import Shared, available_cores, same_environment


@pytest.mark.parametrize(("method", "inherited"), [("fork", True), ("spawn", False)])
def test_a_shared_object_is_inherited_or_sent(monkeypatch, method, inherited):
    monkeypatch.setattr(multiprocess, "get_start_method", lambda: method)
    shared = Shared({"large": "x" * 10_000})
    message = pickle.dumps(shared)
    received = pickle.loads(message)
    assert (len(message) < 1000) == inherited
    assert (received is shared) == inherited
    assert received.value == shared.value


def test_there_is_a_core():
    assert available_cores() >= 1


def test_mapping_in_two_processes_leaves_the_environment(monkeypatch):
    environment = os.environ
    with same_environment():
        Dataset.from_dict({"number": [*range(8)]}).map(dict, num_proc=2, load_from_cache_file=False)
        assert os.environ is not environment  # else there is nothing to restore any more
    assert os.environ is environment
