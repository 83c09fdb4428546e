"""validate and run: in this process, and in several through torchrun."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RUN = ("run", "./toy.py", "--config", "./toy.yaml")
TWO = ("--nproc-per-node", "2")


def test_validate_says_that_all_is_fine(prefkd):
    ended = prefkd("validate", "./toy.py", "--config", "./toy.yaml", "training.steps=3")
    assert (ended.code, ended.out, ended.err) == (0, "./toy.yaml is valid for ./toy.py\n", "")


def test_run_in_this_process(prefkd):
    ended = prefkd(*RUN)
    assert (ended.code, ended.out, ended.err) == (0, "rank - of -: 10 steps\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        (*RUN, "training.steps=3", "~betas"),
        ("run", "./toy.py", "training.steps=3", "--config", "./toy.yaml", "~betas"),
        ("run", "training.steps=3", "--config", "./toy.yaml", "./toy.py"),
        ("run", "--config=./toy.yaml", "./toy.py", "training.steps=3"),
    ],
)
def test_overrides_stand_anywhere(arguments, prefkd):
    assert prefkd(*arguments).out == "rank - of -: 3 steps\n"


def test_recipe_imports_what_lies_beside_it_and_hides_nothing(prefkd):
    Path("own").mkdir()
    Path("own/helper.py").write_text("steps = 7\n")
    Path("own/json.py").write_text("raise RuntimeError('this hides the standard library')\n")
    Path("own/datasets.py").write_text(
        "import sys\nfrom dataclasses import dataclass\nimport json\nimport helper\n\n"
        "@dataclass\nclass Config:\n    steps: int = helper.steps\n\n"
        "def main(config):\n    assert sys.modules[Config.__module__].Config is Config\n"
        "    sys.stdout.write(json.dumps(config.steps))\n"
    )
    Path("empty.yaml").write_text("")
    assert prefkd("run", "own/datasets.py", "--config", "empty.yaml").out == "7"


def test_component_from_a_file_in_the_current_folder(prefkd):
    Path("my_parts.py").write_text("def make(size: int):\n    return size\n")
    assert prefkd("validate", *RUN[1:], "logger=my_parts.make", "logger.size=3").code == 0
    assert "logger.siez" in prefkd("validate", *RUN[1:], "logger=my_parts.make", "logger.siez=3").err


def test_a_mistake_in_the_program_keeps_its_trace(prefkd):
    with pytest.raises(RuntimeError, match="a mistake in the program"):
        prefkd(*RUN, "act=bug")


def test_debug_shows_the_trace_of_a_users_mistake(prefkd, monkeypatch):
    monkeypatch.setenv("PREFKD_DEBUG", "1")
    ended = prefkd(*RUN, "act=user")
    assert ended.code == 2
    assert "Traceback" in ended.err
    assert ended.err.endswith("error: pairs.jsonl, row 3: chosen is empty; delete the row\n")


ALLOC = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


@pytest.mark.parametrize("own", [{}, {ALLOC[0]: "backend:native"}, {ALLOC[1]: "max_split_size_mb:64"}])
def test_memory_of_a_gpu_is_not_lost_in_gaps_unless_told_otherwise(own):
    """The allocator is told before torch is there; the processes of torchrun inherit it."""
    said = (
        "import os, sys; from prefkd.cli.main import main; assert 'torch' not in sys.modules; main(['--version']); "
        f"print({{name: os.environ[name] for name in {ALLOC} if name in os.environ}})"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ALLOC} | own
    ended = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, env=environment)
    assert ended.stdout.splitlines()[1] == str(own or {ALLOC[0]: "expandable_segments:True"})


def start(*arguments: str) -> subprocess.Popen[str]:
    """`prefkd` in a process group of its own, as a terminal starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "prefkd", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Where the tests run in the background, they inherit that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )


def test_two_processes_run_the_same_recipe(folder):
    process = start("run", "./toy.py", *TWO, "--config", "./toy.yaml", "training.steps=3")
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    assert sorted(out.splitlines()) == ["rank 0 of 2: 3 steps", "rank 1 of 2: 3 steps"]


def test_a_users_mistake_in_one_of_two_processes_is_told_once(folder):
    process = start(*RUN, *TWO, "act=user", "acting_rank=1")
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (2, "error: pairs.jsonl, row 3: chosen is empty; delete the row\n")


def test_wrong_config_of_two_processes_is_told_once(folder):
    process = start(*RUN, *TWO, "training.stps=3", "betas=3")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert [line.partition(": ")[0] for line in err.splitlines()] == ["error", "error"]


def test_a_mistake_in_the_program_in_one_of_two_processes(folder):
    process = start(*RUN, *TWO, "act=bug", "acting_rank=1")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert err.count("RuntimeError: a mistake in the program") == 1


def test_a_process_ends_with_its_mistake_whatever_its_threads_wait_for(folder):
    """As one that writes a checkpoint together with the other processes does."""
    process = start(*RUN, *TWO, "act=stuck", "acting_rank=1")
    _, err = process.communicate(timeout=150)
    assert process.returncode == 1
    assert err.count("RuntimeError: a mistake in the program") == 1


@pytest.mark.parametrize("processes", [(), TWO])
def test_interrupt(processes, folder):
    process = start(*RUN, *processes, "act=sleep")
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (130, "error: interrupted\n")


def test_a_signal_to_torchrun_reaches_its_processes(folder):
    """The recipe does not listen, so that it ends at once. A recipe that does is in recipes/test_resume.py."""
    process = start(*RUN, *TWO, "act=sleep")
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.5)
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (128 + signal.SIGUSR1, "")
