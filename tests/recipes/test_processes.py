"""One process and several, over which the weights are split, are the same run: losses of ten steps and weights."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.processes import run_processes
from tests.recipes import single_model, two_models
from tests.recipes.two_models import assert_same_metrics
from tests.tiny import make_model

# Steps of 5, 5 and 2 pairs, so that a process has nothing to do now and then. At so small a rate random models stay
# comparable over all steps.
SETTINGS = (
    *("training.epochs=4", "training.max_steps=10", "training.batch_size=5", "training.microbatch_size=2"),
    *("training.evaluate_every=5", "optimizer={_component_: torch.optim.AdamW, lr: 1e-4}"),
    "lr_schedule.num_warmup_steps=0",
)
SHORT = (*SETTINGS, "training.max_steps=2")


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> dict[str, Path]:
    """The models of both kinds of recipe, and a teacher broad enough to be quantized and compared in size."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ("single", "two", "broad")}
    single_model.make_world(folders["single"])
    two_models.make_world(folders["two"])
    two_models.make_world(folders["broad"])
    sizes = {"hidden_size": 128, "intermediate_size": 512, "head_dim": 32, "num_hidden_layers": 6}
    make_model(folders["broad"] / "teacher", "llama", "byte_level", seed=2, **sizes, initializer_range=0.08)
    return folders


def runner(recipe: str, worlds: dict[str, Path], kind: str = "two") -> Any:
    """Runs a recipe in a folder with some settings."""
    if recipe.endswith("distill"):
        return partial(two_models.run, recipe, worlds[kind])
    return partial(single_model.run, recipe, worlds["single"])


def assert_same(one: tuple[Path, list[dict]], other: tuple[Path, list[dict]]) -> None:
    assert_same_metrics(one[1], other[1], 1e-5)
    left, right = trained(one[0]), trained(other[0])
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert (value - right[name]).norm() <= 1e-4 * value.norm(), name


def trained(out: Path) -> dict[str, torch.Tensor]:
    """All weights that a run has written."""
    files = list(out.rglob("*.safetensors"))
    assert files
    return {f"{path.name} {name}": value for path in files for name, value in load_file(path).items()}


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("sft", ()),
        ("dpo", ("lora={}",)),
        ("dpo_distill", ()),
        ("tis_dpo_distill", ("reference=student",)),
        ("dskd_distill", ()),
    ],
)
def test_two_processes_are_one(worlds, tmp_path, recipe, overrides):
    start, settings = runner(recipe, worlds), (*SETTINGS, *overrides)
    one = start(tmp_path / "one", *settings)
    two, _ = run_processes(lambda: start(tmp_path / "two", *settings))
    assert len(one) == 11
    assert_same((tmp_path / "one", one), (tmp_path / "two", two))


@pytest.fixture(scope="module")
def short(worlds, tmp_path_factory) -> tuple[Path, list[dict]]:
    """Two steps of dskd_distill, which asks most of a teacher, in one process."""
    out = tmp_path_factory.mktemp("runs") / "short"
    return out, runner("dskd_distill", worlds)(out, *SHORT)


@pytest.mark.parametrize(
    ("processes", "nodes", "overrides"),
    [
        (2, 1, ("teacher.placement=shard", "teacher.cpu_offload=true", "training.cpu_offload=true")),
        (1, 1, ("training.cpu_offload=true",)),
        (4, 2, ("training.shard_over=node", "teacher.placement=shard")),
    ],
)
def test_how_models_are_split_changes_nothing(worlds, short, tmp_path, processes, nodes, overrides):
    start, out = runner("dskd_distill", worlds), tmp_path / "out"
    found, *_ = run_processes(lambda: start(out, *SHORT, *overrides), processes=processes, nodes=nodes)
    assert_same(short, (out, found))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and PREFKD_TEST_GPU=1")
def test_offloading_from_a_gpu_changes_nothing(worlds, tmp_path):
    start = runner("sft", worlds)
    one = start(tmp_path / "one", *SHORT)
    two = start(tmp_path / "two", *SHORT, "training.cpu_offload=true", options=("--nproc-per-node=1",))
    assert_same_metrics(one, two, 1e-4)


def test_a_quantised_teacher_is_split(worlds, tmp_path, capfd):
    start = runner("tis_dpo_distill", worlds, "broad")
    nf4 = (*SHORT, "teacher.quantization=nf4")
    one = start(tmp_path / "one", *nf4)
    two, _ = run_processes(lambda: start(tmp_path / "two", *nf4, "teacher.placement=shard"))
    printed = " ".join(capfd.readouterr().out.split())
    assert "split over 2 processes" in printed
    assert printed.count("log-probs off by") == 1  # of the whole one: the CPU would take minutes for a large model
    # The scales, which are quantized too, are those of other blocks.
    assert two[0]["held_out/loss"] == pytest.approx(one[0]["held_out/loss"], rel=1e-2)


@pytest.mark.parametrize("recipe", ["tis_dpo_distill", "dskd_distill"])
def test_an_int8_teacher_beside_a_split_student(worlds, tmp_path, capfd, recipe):
    start, settings = runner(recipe, worlds, "broad"), (*SHORT, "teacher.dtype=bfloat16")
    exact = start(tmp_path / "exact", *settings)
    capfd.readouterr()
    found, _ = run_processes(lambda: start(tmp_path / "out", *settings, "teacher.quantization=int8"))
    printed = " ".join(capfd.readouterr().out.split())
    before, after = map(float, sizes(printed))
    assert after < 0.56 * before
    error = float(printed.split("log-probs off by ")[1].split()[0])
    # beta = 0.1 times the error of a difference of two answers of some tens of tokens.
    for left, right in zip(found, exact, strict=True):
        for name in left.keys() & {"loss", "held_out/loss"}:
            assert left[name] == pytest.approx(right[name], abs=0.1 * 60 * error)


def sizes(printed: str) -> tuple[str, str]:
    """What stands before the arrow in "1.1 -> 0.6 MiB", and what stands behind it."""
    before, _, after = printed.split("int8, ")[1].partition(" -> ")
    return before, after.partition(" MiB")[0]
