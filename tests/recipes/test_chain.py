"""The whole chain on tiny models: killed while it scores, gone on, repeated, changed at its end."""

import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoModelForCausalLM

from prefkd.cli.main import main
from prefkd.training.publish import try_it
from tests.processes import ForkedStage
from tests.tiny import make_model, write_pairs

PAIRS = 120
CHAIN = """
output_dir: runs
values:
  data: {source: pairs.jsonl, held_out_source: held_out.jsonl}
  training: {batch_size: 4, microbatch_size: 4, max_steps: 2, precision: float32, sample_answers: 0}
stages:
  dpo:
    recipe: dpo
    config: empty.yaml
    overrides: {model: {path: teacher}, data: "${values.data}", lora: {rank: 2}, training: "${values.training}"}
  score:
    recipe: score
    config: empty.yaml
    overrides:
      student: {path: student}
      teacher: {path: teacher, dtype: float32}
      data: ${values.data}
      contrast:
        kind: models
        positive: {path: teacher, adapter: "${stages.dpo.output_dir}/adapter", dtype: float32}
        negative: {path: teacher, dtype: float32}
      pairs_per_shard: 4
      microbatch_size: 1
  tis_dpo_distill:
    recipe: tis_dpo_distill
    config: empty.yaml
    overrides:
      student: {path: student}
      teacher: {scores: "${stages.score.output_dir}/scores"}
      data: ${values.data}
      weights: {contrast: scores}
      training: ${values.training}
"""


@pytest.fixture
def world(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("prefkd.cli.pipeline.subprocess", SimpleNamespace(Popen=ForkedStage))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    make_model(Path("student"), "qwen2", "metaspace", seed=1)
    make_model(Path("teacher"), "llama", "byte_level", seed=2)
    pairs = write_pairs(Path("held_out.jsonl"), 30).read_text(encoding="utf-8")
    copies = (pairs.replace("Question", f"Question {copy}, part") for copy in range(PAIRS // 30))
    Path("pairs.jsonl").write_text("".join(copies), encoding="utf-8")
    Path("empty.yaml").write_text("{}")
    Path("chain.yaml").write_text(CHAIN)
    return tmp_path


def test_chain(world, capfd):
    scores = Path("runs/score/scores")
    process = ForkedStage([sys.executable, "-m", "prefkd", "pipeline", "chain.yaml"], start_new_session=True)
    while not list(scores.glob("train/*.parquet")):
        assert os.waitpid(process.pid, os.WNOHANG) == (0, 0), capfd.readouterr()
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    capfd.readouterr()
    scored = {path: path.stat().st_mtime_ns for path in scores.glob("train/*.parquet")}
    assert 0 < len(scored) < PAIRS // 4

    assert main(["pipeline", "chain.yaml"]) == 0
    printed = capfd.readouterr().out
    assert "runs: unfinished, resumes" in printed
    assert "(1 of 2)" in printed  # score and tis_dpo_distill
    assert {path: path.stat().st_mtime_ns for path in scored} == scored
    assert len(list(scores.glob("train/*.parquet"))) == PAIRS // 4
    AutoModelForCausalLM.from_pretrained("runs/tis_dpo_distill/student")
    assert printed.rstrip().endswith(try_it(Path("runs/tis_dpo_distill/student")))

    assert main(["pipeline", "chain.yaml"]) == 0
    assert "nothing to do" in capfd.readouterr().out

    # Another weight reads the same scores.
    assert main(["pipeline", "chain.yaml", "stages.tis_dpo_distill.overrides.weights.method=rank_based"]) == 0
    assert "(1 of 1)" in capfd.readouterr().out
    assert Path("runs/tis_dpo_distill.before-1/student").is_dir()
