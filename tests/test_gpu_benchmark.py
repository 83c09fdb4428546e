"""The measurement of a GPU runs as a whole on a CPU, on tiny models; its numbers mean nothing there."""

import json
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "benchmarks" / "gpu"


def test_every_part_runs(tmp_path):
    command = [sys.executable, str(FOLDER), "--smoke", "--out", str(tmp_path / "out")]
    ended = subprocess.run(command, text=True, capture_output=True)
    assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["errors"] == {}
    assert found["results"]["environment"]["card"]
    assert found["results"]["agreement"] == {"tis_dpo_distill": 0.0}
    for runs in ("training", "small_card", "teachers"):
        for run in found["results"][runs].values():
            assert run.get("processed_tokens_per_second", run.get("seconds")) > 0
    assert set(found["results"]["small_card"]) == {"live", "score", "scores"}


def test_what_there_is_no_time_for_is_left_out_and_said(tmp_path):
    command = [sys.executable, str(FOLDER), "--minutes", "0", "--out", str(tmp_path / "out")]
    ended = subprocess.run(command, text=True, capture_output=True)
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert ended.returncode == 0 and set(found["results"]) == {"arguments"}
    assert len(found["errors"]) == 9 and all("left out" in error for error in found["errors"].values())
