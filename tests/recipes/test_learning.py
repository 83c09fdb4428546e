"""What a run says about what it learns: the rate of each step, and that nothing was learned where that is so."""

import pytest
import torch
from safetensors.torch import load_file

from prefkd.errors import PrefkdError
from prefkd.ranks import Ranks
from prefkd.training.display import Display
from prefkd.training.learning import require_learning, weight_sums
from tests.recipes import single_model, two_models

RECIPES = {"sft": single_model, "dpo": single_model, "dpo_distill": two_models, "tis_dpo_distill": two_models}
RECIPES["dskd_distill"] = two_models
WARM_UP = (
    "lr_schedule=transformers.get_constant_schedule_with_warmup",
    "lr_schedule.num_warmup_steps=10",
    "optimizer.lr=1e-3",
    "training.evaluate_every=100",
)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    return {kind: kind.make_world(tmp_path_factory.mktemp("world")) for kind in (single_model, two_models)}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_rate_of_a_step_is_logged_with_it(recipe, worlds, tmp_path, capsys):
    kind = RECIPES[recipe]
    _, *steps = kind.run(recipe, worlds[kind], tmp_path / "out", *WARM_UP, "training.max_steps=3")
    assert [step["lr"] for step in steps] == pytest.approx([0, 1e-4, 2e-4])
    if recipe == "dskd_distill":  # projectors have a rate of their own, 1e-3, which the schedule scales as well
        assert [step["projectors_lr"] for step in steps] == pytest.approx([0, 1e-4, 2e-4])
    printed = " ".join(capsys.readouterr().out.split())
    assert "on one process; the learning rate will reach 0.0002 at most, not the 0.001 of optimizer.lr" in printed


@pytest.mark.parametrize("schedule", ["get_constant_schedule_with_warmup", "get_cosine_schedule_with_warmup"])
def test_a_rate_that_is_reached_is_not_spoken_of(schedule, worlds, tmp_path, capsys):
    warm_up = (*WARM_UP, f"lr_schedule=transformers.{schedule}", "lr_schedule.num_warmup_steps=2")
    single_model.run("sft", worlds[single_model], tmp_path / "out", *warm_up, "training.max_steps=3")
    assert "at most" not in capsys.readouterr().out


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_that_has_learned_nothing_says_so(recipe, worlds, tmp_path, capsys):
    kind = RECIPES[recipe]
    (_, step) = kind.run(recipe, worlds[kind], tmp_path / "out", *WARM_UP, "training.max_steps=1")
    assert step["lr"] == 0
    said = "warning: this run has learned nothing: no weight of the model differs from the start"
    assert said in " ".join(capsys.readouterr().out.split())
    name = "model" if kind is single_model else "student"
    before = load_file(worlds[kind] / name / "model.safetensors")
    after = load_file(tmp_path / "out" / name / "model.safetensors")
    assert all(torch.equal(value, before[key].to(value.dtype)) for key, value in after.items())

    kind.run(recipe, worlds[kind], tmp_path / "more", *WARM_UP, "training.max_steps=2")
    assert "learned nothing" not in capsys.readouterr().out


def test_weights_that_the_last_step_spoils():
    """Without held-out pairs nothing else reads the model after its last step."""
    weight, ranks = torch.nn.Parameter(torch.ones(2, 2)), Ranks(0, 1, torch.device("cpu"))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    start = weight_sums(optimizer, ranks)
    weight.data[0, 0] = torch.inf
    with pytest.raises(PrefkdError, match=r"^the last step made weights that are not finite; lower the learning rate$"):
        require_learning(start, optimizer, ranks, Display(ranks))


REFUSED = {
    ("optimizer.lr=0.0",): "optimizer.lr: 0.0 would stop all learning or spoil the weights; use a positive number, "
    "such as 1e-6",
    ("optimizer={_component_: torch.optim.AdamW, lr: 0.1, betas: [2, 2]}",): "optimizer: torch.optim.AdamW refuses its "
    "arguments: Invalid beta parameter at index 0: 2",
    (
        "optimizer={_component_: torch.optim.AdamW, lr: 0.1, betas: [0.9]}",
    ): "optimizer.betas: [0.9] is not a list of 2 (a number, a number), which torch.optim.AdamW asks for",
    ("optimizer={_component_: torch.optim.LBFGS}",): "optimizer: a step of torch.optim.LBFGS fails (TypeError: ",
    ("optimizer={_component_: torch.optim.SGD, lr: 1e-30}",): "optimizer: a step of torch.optim.SGD changes no weight; "
    "use a larger lr or other settings",
    ("optimizer={_component_: torch.nn.Identity}",): "optimizer: torch.nn.Identity is not an optimizer of torch; ",
    ("lr_schedule={_component_: torch.optim.lr_scheduler.ReduceLROnPlateau}",): "lr_schedule: "
    "torch.optim.lr_scheduler.ReduceLROnPlateau fails at step 1 (",
    (
        "lr_schedule={_component_: torch.optim.lr_scheduler.ConstantLR, factor: 0.0, total_iters: 100000}",
    ): "lr_schedule: torch.optim.lr_scheduler.ConstantLR keeps the learning rate at 0, so nothing would be learned; ",
    ("lr_schedule={_component_: builtins.dict}",): "lr_schedule: builtins.dict ",
    ("optimizer.lr=.nan",): "optimizer.lr: nan is not a number; give one",
    ("training.max_grad_norm=.nan",): "training.max_grad_norm: nan is not a number; give one",
    ("training.seed=-1",): "training.seed: -1 is too small; use 0 or more",
    ("training.batch_size=9999999999",): "training.batch_size: 9999999999 is too large; use 2147483647 or less",
    ("training.epochs=1000000000",): "training.epochs: 1000000000 is too large; use 10000 or less",
    ("metric_logger={_component_: builtins.dict}",): "metric_logger: builtins.dict has no log_dict; name a logger of "
    "torchtune.training.metric_logging",
    ("loss={_component_: torch.zeros}",): "loss: ",
    ("loss.beta=1e308",): "loss: prefkd.method.preference.dpo_loss makes ",
    ("loss.beta=1e-300",): "loss: prefkd.method.preference.dpo_loss has no gradient, so nothing would be learned; ",
}


@pytest.mark.parametrize("overrides", REFUSED, ids=" ".join)
def test_settings_that_teach_nothing_are_refused(overrides, worlds, tmp_path, capsys):
    single_model.run("dpo", worlds[single_model], tmp_path / "out", *overrides, code=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {REFUSED[overrides]}")
    assert not (tmp_path / "out").exists()


WEIGHTS = {
    "weights.parameters={k: 0.0}": "weights.parameters: they make all weights 0, so nothing would be learned; ",
    "weights.parameters={k: -1.0}": "weights.parameters: they make no weight positive, which teaches the opposite; ",
    "weights.parameters={low: -.inf, high: .nan}": "weights.parameters.high: nan is not a number; give one",
    "weights.eos_weight=.inf": "weights.eos_weight: inf leaves nothing to the text; use 1.0",
}


@pytest.mark.parametrize("override", WEIGHTS)
def test_weights_that_teach_nothing_are_refused(override, worlds, tmp_path, capsys):
    two_models.run("tis_dpo_distill", worlds[two_models], tmp_path / "out", override, code=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {WEIGHTS[override]}")


def test_a_rank_that_no_layer_has(worlds, tmp_path, capsys):
    single_model.run("sft", worlds[single_model], tmp_path / "out", "lora={rank: 40}", code=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: lora.rank: 40 is more than the layers of ") and "have, 32 at most" in line
