"""Run something in several processes that train together, without the seconds that torchrun takes to start each."""

import gc
import os
import pickle
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prefkd.cli.main import main

TIMEOUT = 300  # seconds
GRACE = 10  # seconds that the others have once one has failed, which may be waiting for it


def fork() -> int:
    """`os.fork` for a process that has trained with others before.

    What such a training leaves behind, gloo's connections for instance, waits for its threads when it is collected, and
    in the child there are none. So it is collected before, and what is left is never collected in the child.
    """
    gc.collect()
    child = os.fork()
    if not child:
        gc.freeze()
    return child


def run_processes(action: Callable[[], Any], *, processes: int = 2, nodes: int = 1) -> list[Any]:
    """What `action` returns in each of some processes, forks of this one with the environment that torchrun gives them.

    Args:
        nodes: The machines that they take themselves to be on, equally many on each.
    """
    if torch.cuda.is_available():
        pytest.skip("a process that has used a GPU cannot be forked")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        children = {}
        for rank in range(processes):
            local_size = processes // nodes
            environment = {
                "RANK": rank,
                "WORLD_SIZE": processes,
                "LOCAL_RANK": rank % local_size,
                "LOCAL_WORLD_SIZE": local_size,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            children[rank] = _start(action, environment, Path(folder, str(rank)))
        results = _wait(children, Path(folder))
    failures = [trace for trace, _ in results.values() if trace]
    assert not failures, "\n".join(failures)
    return [results[rank][1] for rank in children]


def _start(action: Callable[[], Any], environment: dict[str, Any], result: Path) -> int:
    child = fork()
    if child:
        return child
    code = 1
    try:
        os.environ.update({name: str(value) for name, value in environment.items()})
        try:
            answer = "", action()
        except BaseException:
            answer = traceback.format_exc(), None
        result.with_suffix(".part").write_bytes(pickle.dumps(answer))
        result.with_suffix(".part").rename(result)
        code = 0
    finally:
        os._exit(code)  # pytest goes on in the parent alone


def _wait(children: dict[int, int], folder: Path) -> dict[int, tuple[str, Any]]:
    """The traceback, if it failed, and the result of each process; those that are not done in time are killed."""
    end = time.monotonic() + TIMEOUT
    results: dict[int, tuple[str, Any]] = {}
    while waiting := [rank for rank in children if rank not in results]:
        late = time.monotonic() > end
        for rank in waiting:
            if late:
                os.kill(children[rank], signal.SIGKILL)
            if not os.waitpid(children[rank], 0 if late else os.WNOHANG)[0]:
                continue
            written = folder / str(rank)
            results[rank] = (f"process {rank} {'took too long' if late else 'died'}", None)
            if written.exists():
                results[rank] = pickle.loads(written.read_bytes())
            if results[rank][0]:
                end = min(end, time.monotonic() + GRACE)
        time.sleep(0.01)
    return results


class ForkedStage:
    """What `subprocess.Popen` gives for a command of prefkd, as a fork of this process, which has imported everything.

    The tests that start the command itself run their stages as users do.
    """

    def __init__(self, command: list[str], pass_fds: tuple[int, ...] = (), start_new_session: bool = False):
        assert command[:3] == [sys.executable, "-m", "prefkd"]
        self.pid = fork()
        if not self.pid:
            code = 1
            try:
                if start_new_session:
                    os.setsid()
                code = main(command[3:])
            finally:
                os._exit(code)

    def wait(self, timeout: float | None = None) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)
