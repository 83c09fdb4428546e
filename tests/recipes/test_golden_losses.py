"""Ten steps of every training recipe on tiny models give the losses that are written down in golden_losses.txt.

A change that moves no behaviour moves none of these numbers. On the kind of machine named in the file's first line they
are equal to the last digit, elsewhere to 1e-5. To write the file again, set PREFKD_WRITE_GOLDEN_LOSSES=1 and run this
file with `pytest -n 0`; its diff then says in a review what a change has moved.
"""

import os
import platform
from pathlib import Path

import pytest
import torch

from tests.recipes import single_model, two_models

FILE = Path(__file__).with_name("golden_losses.txt")
MACHINE = f"torch {torch.__version__}, {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
STEPS = ("training.max_steps=10", "training.epochs=4", "training.evaluate_every=5", "optimizer.lr=0.001")

SCORES = "teacher.scores={scores}"
RUNS = {
    "sft": ("sft",),
    "sft lora": ("sft", "lora={rank: 4}"),
    "dpo": ("dpo",),
    "dpo reversed ipo": (
        "dpo",
        "data.reverse=true",
        "average_logprobs=true",
        "loss._component_=prefkd.method.preference.ipo_loss",
    ),
    "dpo_distill": ("dpo_distill",),
    "dpo_distill scores": ("dpo_distill", "~teacher.path", SCORES),
    "tis_dpo_distill": ("tis_dpo_distill",),
    "tis_dpo_distill student": ("tis_dpo_distill", "reference=student", "weights.method=rank_based"),
    "tis_dpo_distill scores": ("tis_dpo_distill", "~teacher.path", SCORES, "weights.contrast=scores"),
    "dskd_distill": ("dskd_distill",),
}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("worlds")
    for name in ("one", "two"):
        (folder / name).mkdir()
    two = two_models.make_world(folder / "two")
    scores = two_models.score(two, folder / "scored")
    return {"one": single_model.make_world(folder / "one"), "two": two, "scores": scores}


def losses(name: str, worlds: dict[str, Path], out: Path) -> list[float]:
    """The loss of each step, then the held-out losses before, between and after."""
    recipe, *overrides = RUNS[name]
    helper, world = (single_model, "one") if recipe in ("sft", "dpo") else (two_models, "two")
    overrides = [override.replace("{scores}", str(worlds["scores"])) for override in overrides]
    metrics = helper.run(recipe, worlds[world], out, *STEPS, *overrides)
    held_out = [line["held_out/loss"] for line in metrics if "held_out/loss" in line]
    return [line["loss"] for line in metrics[1:]] + held_out


def read_golden() -> tuple[str, dict[str, list[float]]]:
    machine, *lines = FILE.read_text(encoding="utf-8").splitlines()
    named = (line.split(": ") for line in lines)
    return machine, {name: [float(value) for value in values.split()] for name, values in named}


@pytest.mark.parametrize("name", RUNS)
def test_losses_are_the_golden_ones(worlds, tmp_path, name):
    found = losses(name, worlds, tmp_path / "out")
    assert len(found) == 10 + 3
    if os.environ.get("PREFKD_WRITE_GOLDEN_LOSSES"):
        known = read_golden()[1] if FILE.exists() else {}
        known[name] = found
        rows = (f"{run}: {' '.join(map(repr, known[run]))}" for run in RUNS if run in known)
        FILE.write_text("\n".join([MACHINE, *rows]) + "\n", encoding="utf-8")
    machine, golden = read_golden()
    assert golden.keys() == RUNS.keys() or os.environ.get("PREFKD_WRITE_GOLDEN_LOSSES")
    assert found == (golden[name] if machine == MACHINE else pytest.approx(golden[name], rel=1e-5))
