"""One process that torchrun has started trains as one on a GPU does: split over itself alone, weights cast by FSDP."""

import signal
from functools import partial
from pathlib import Path

import pytest

from tests.processes import run_processes
from tests.recipes import single_model, two_models
from tests.tiny import SPEEDS

SETTINGS = ("training.precision=bfloat16", "training.microbatch_size=2")
STORED = ("training.checkpoint_every=1", "training.async_checkpoints=true")


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worlds")
    for name in ("one", "two"):
        (folder / name).mkdir()
    return single_model.make_world(folder / "one"), two_models.make_world(folder / "two")


def test_it_answers_prompts_and_resumes(worlds, tmp_path):
    """Its answers are those of a process without FSDP, in float32, where nothing is rounded."""
    world, _ = worlds
    asked = ("training.sample_answers=2", "training.sample_tokens=8")
    single_model.run("sft", world, tmp_path / "plain", *asked)
    run_processes(lambda: single_model.run("sft", world, tmp_path / "split", *asked), processes=1)
    answers = [(tmp_path / name / "samples.jsonl").read_text() for name in ("plain", "split")]
    assert answers[0] == answers[1] and answers[0]


@pytest.mark.parametrize("overrides", [(), ("lora={rank: 4}", "student.quantization=nf4")], ids=["all", "qlora"])
def test_it_resumes_exactly(worlds, tmp_path, overrides):
    _, world = worlds
    settings = (*SETTINGS, *STORED, *overrides)
    killer = "metric_logger={_component_: tests.faults.killing.Killer, step: 2, name: SIGTERM}"

    def run(name: str, *more: str) -> list[dict]:
        return run_processes(partial(start, tmp_path / name, *settings, *more), processes=1)[0]

    def start(out: Path, *settings: str) -> list[dict]:
        try:
            return two_models.run("dpo_distill", world, out, *settings)
        except SystemExit as end:
            assert end.code == 128 + signal.SIGTERM
            return []

    whole = run("whole")
    assert run("out", killer) == []
    again = run("out")
    without = [[{k: v for k, v in line.items() if k not in SPEEDS} for line in lines] for lines in (whole, again)]
    assert without[0] == without[1]
