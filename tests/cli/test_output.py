"""What the command line prints of libraries' warnings and of errors of the system."""

import errno
import io
import os
import sys
import warnings
from pathlib import Path

import datasets.config
import huggingface_hub.constants
import pytest
from datasets.exceptions import DatasetGenerationError

from prefkd.catalog import hush_libraries
from prefkd.cli.main import main
from prefkd.data.pairs import DataConfig, load_pairs
from prefkd.errors import explain
from tests.tiny import write_pairs


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home without a cache, in which both caches would be made."""
    cache = tmp_path / "home/.cache/huggingface"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "datasets")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(cache))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def failed(path: Path, number: int) -> str | None:
    return explain(OSError(number, os.strerror(number), str(path)))


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.ENOENT])
@pytest.mark.parametrize("part", [".cache", ".cache/huggingface/datasets", ".cache/huggingface/datasets/a.lock"])
def test_a_cache_that_cannot_be_written_to(home, part, number):
    assert failed(home / part, number) == (
        f"{home / part}: {os.strerror(number).lower()}; this is the cache {home}/.cache/huggingface/datasets; set "
        "HF_DATASETS_CACHE (HF_HOME for all caches of Hugging Face) to a folder that can be written to"
    )


def test_the_other_caches_of_hugging_face(home):
    assert failed(home / ".cache/huggingface/hub/a", errno.EROFS) == (
        f"{home}/.cache/huggingface/hub/a: read-only file system; this is the cache {home}/.cache/huggingface; set "
        "HF_HOME to a folder that can be written to"
    )


@pytest.mark.parametrize("command", [["ls"], ["cat", "demo/sft"], ["cat", "nowhere"]])
def test_closed_streams_and_an_ascii_terminal(command, monkeypatch):
    code = 2 if "nowhere" in command else 0
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, None)
    assert main(command) == code
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert main([part.replace("nowhere", "nöwhere") for part in command]) == code


@pytest.mark.parametrize("width", ["0", "1"])
def test_a_terminal_without_width(monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", width)
    assert main(["cp"]) == 2
    assert capsys.readouterr().err == "error: missing: NAME, DEST (`prefkd cp --help` explains)\n"


def test_a_full_disk_behind_the_output(monkeypatch):
    printed = io.StringIO()
    monkeypatch.setattr(sys, "stdout", open("/dev/full", "w"))  # noqa: SIM115
    monkeypatch.setattr(sys, "stderr", printed)
    assert main(["cat", "demo/sft"]) == 2
    assert printed.getvalue() == "error: no space left on device; free some space, or write to another disk\n"


def test_another_folder(home):
    assert failed(home / "out", errno.EROFS) == f"{home}/out: read-only file system; write to another folder"
    assert failed(home, errno.EROFS) == f"{home}: read-only file system; write to another folder"


def test_a_full_disk_under_the_cache_of_data(home, monkeypatch):
    """`datasets` hides the error of the system in one of its own."""

    def full(*_, **__):
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise DatasetGenerationError("An error occurred while generating the dataset") from error

    monkeypatch.setattr("prefkd.data.pairs.Dataset.from_generator", full)
    with pytest.raises(OSError) as found:
        load_pairs(DataConfig(str(write_pairs(home / "pairs.jsonl"))))
    said = explain(found.value)
    assert said is not None and "no space left on device" in said and "set HF_DATASETS_CACHE" in said


SILENT = [
    (FutureWarning, "`gradient_checkpointing_enable` is deprecated and will be removed in v6. Use another instead."),
    (UserWarning, "barrier(): using the device under current context. You can specify `device_id` in ..."),
    (UserWarning, "OptimState8bit does not implement _stable_hash_for_caching. For PT2-compatible tensor ..."),
]
SHOWN = [
    (UserWarning, "Detected call of `lr_scheduler.step()` before `optimizer.step()`."),
    (FutureWarning, "`something_of_a_users_own` is deprecated"),
    (DeprecationWarning, "a term of a user's own is old"),
    (UserWarning, "barrier of another kind"),
]


@pytest.mark.parametrize(("warning", "is_shown"), [(w, False) for w in SILENT] + [(w, True) for w in SHOWN])
def test_only_warnings_for_developers_are_silent(warning, is_shown):
    category, text = warning
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        hush_libraries()
        warnings.warn(text, category, stacklevel=1)
    assert bool(caught) is is_shown
