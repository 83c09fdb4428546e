"""The measurement of a GPU runs as a whole on a CPU, on tiny models; its numbers mean nothing there."""

import importlib.util
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks" / "gpu"


def measure(folder: Path, monkeypatch, *arguments: str) -> dict:
    """What is measured with some arguments."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the handlers of the process that tests
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments, "--out", str(folder)])
    load("__main__", monkeypatch).main()
    return json.loads((folder / "results.json").read_text())


def test_every_part_runs(tmp_path, monkeypatch):
    found = measure(tmp_path / "out", monkeypatch, "--smoke")
    assert found["errors"] == {}
    assert found["results"]["environment"]["card"]
    assert found["results"]["agreement.tis_dpo_distill"] == {"largest_difference": 0.0}
    for name in ("training.none", "teachers.nf4", *(f"small_card.{kind}" for kind in ("live", "score", "scores"))):
        run = found["results"][name]
        assert run.get("processed_tokens_per_second", run.get("seconds")) > 0 and "warnings" not in run


def test_parts_that_need_no_models_make_none_and_write_where_they_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.setattr(sys, "argv", ["gpu", "--smoke", "--only", "ceilings,head.compiled"])
    load("__main__", monkeypatch).main()
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["errors"] == {} and set(found["results"]) == {"arguments", "environment", "ceilings", "head.compiled"}


def test_what_there_is_no_time_for_is_left_out_and_said(tmp_path, monkeypatch):
    found = measure(tmp_path / "out", monkeypatch, "--minutes", "0")
    assert set(found["results"]) == {"arguments"}
    assert len(found["errors"]) == 24 and all("left out" in error for error in found["errors"].values())


def load(name: str, monkeypatch) -> Any:
    """A file of benchmarks/gpu, which brings folders of its own to the search path."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = importlib.util.spec_from_file_location(f"gpu_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, f"gpu_{name}", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def study(monkeypatch) -> Any:
    return load("study", monkeypatch)


def test_the_study_runs_and_ends_with_its_table(study, tmp_path, capsys):
    study.run(study.Run(work=tmp_path, rows=("dpo",), seeds=(0,), smoke=True))
    assert "all rows are finished" in capsys.readouterr().out
    assert "| dpo | 1 | " in (tmp_path / "study" / "table_tuned.md").read_text()


def test_pieces_are_small_and_make_the_same_files(study, tmp_path):
    files, pieces = tmp_path / "files", tmp_path / "pieces"
    files.mkdir()
    contents = {"one.gguf": bytes(range(256)) * 100, "pairs.jsonl": b"{}"}
    for name, content in contents.items():
        (files / name).write_bytes(content)
    count = study.cut(files, pieces, size=10_000)
    assert count > 3 and all((pieces / f"{n:02}" / "part").stat().st_size <= 10_000 for n in range(count))
    study.join(pieces, tmp_path / "joined")
    assert {path.name: path.read_bytes() for path in (tmp_path / "joined").iterdir()} == contents
    (pieces / "01" / "part").unlink()
    with pytest.raises(SystemExit, match=rf"01/part is missing or damaged; there are {count} pieces"):
        study.join(pieces, tmp_path / "again")
