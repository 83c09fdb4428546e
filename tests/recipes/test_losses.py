"""Losses by name through the command line: what they are on paper, what must not change them, and what is refused."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prefkd.method.preference import wpo_weights
from tests.processes import run_processes
from tests.recipes import single_model, two_models
from tests.recipes.single_model import answer_logprobs, encode, load_model, read_rows
from tests.recipes.test_resume import assert_bitwise, killer, names

NAME = "loss={{_component_: prefkd.method.preference.{}, {}}}"


def loss(name: str, settings: str = "beta: 0.1") -> str:
    return NAME.format(name, settings)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return single_model.make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def pair_world(tmp_path_factory) -> Path:
    return two_models.make_world(tmp_path_factory.mktemp("pair_world"))


def log_probs(lm: torch.nn.Module, world: Path) -> tuple[Tensor, Tensor]:
    """(2, n) log-probs and lengths of all answers, by other means than prefkd's."""
    each = [
        [answer_logprobs(lm, *encode(world, row["prompt"], row[answer])) for row in read_rows(world / "pairs.jsonl")]
        for answer in ("chosen", "rejected")
    ]
    return (
        torch.stack([torch.stack([values.sum() for values in side]) for side in each]),
        torch.tensor([[len(values) for values in side] for side in each]),
    )


def log_sigmoid(value: Tensor) -> Tensor:
    return F.logsigmoid(value)


def bco(rewards: Tensor, seen: list[float]) -> Tensor:
    seen.append(rewards.mean().item())
    delta = sum(seen) / len(seen)
    return -log_sigmoid(rewards[0] - delta) - log_sigmoid(delta - rewards[1])


def difference(values: Tensor) -> Tensor:
    return values[0] - values[1]


def log_odds(mean: Tensor) -> Tensor:
    return mean - torch.log1p(-mean.exp())


# From log-probs, log-ratios and lengths, (2, n) each, and what has been seen in earlier steps, to a mean loss.
ON_PAPER = {
    "hinge": ((loss("hinge_loss"),), lambda p, r, n, _: (1 - 0.1 * (r[0] - r[1])).clamp(min=0)),
    "nca": (
        (loss("nca_loss"),),
        lambda p, r, n, _: -log_sigmoid(0.1 * r[0]) - (log_sigmoid(-0.1 * r[0]) + log_sigmoid(-0.1 * r[1])) / 2,
    ),
    "sigmoid_norm": (
        (loss("sigmoid_norm_loss", "beta: 2.0"),),
        lambda p, r, n, _: -log_sigmoid(2 * difference(r / n)),
    ),
    "simpo": (
        (loss("simpo_loss", "beta: 2.0, gamma_ratio: 0.5"),),
        lambda p, r, n, _: -log_sigmoid(2 * ((p / n)[0] - (p / n)[1]) - 1),
    ),
    "orpo": (
        (loss("orpo_loss", "weight: 0.1"), "nll_weight=1"),
        lambda p, r, n, _: -(p / n)[0] - 0.1 * log_sigmoid(log_odds((p / n)[0]) - log_odds((p / n)[1])),
    ),
    "cpo": ((loss("cpo_loss"),), lambda p, r, n, _: -log_sigmoid(0.1 * (p[0] - p[1]))),
    "rpo": (("nll_weight=0.5",), lambda p, r, n, _: -log_sigmoid(0.1 * (r[0] - r[1])) - 0.5 * p[0] / n[0]),
    "bco": ((loss("bco_loss"),), lambda p, r, n, seen: bco(0.1 * r, seen)),
    "aot": (
        (loss("aot_loss"),),
        lambda p, r, n, _: -log_sigmoid(0.1 * (difference(p).sort()[0] - difference(p - r).detach().sort()[0])),
    ),
    "aot_unpaired": (
        (loss("aot_unpaired_loss"),),
        lambda p, r, n, _: -log_sigmoid(0.1 * (r[0].sort()[0] - r[1].sort()[0])),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ON_PAPER)
def test_the_loss_is_that_of_the_paper(world, tmp_path, kind):
    """Three steps of gradient descent on all pairs in microbatches, written down once more from whole logits."""
    overrides, on_paper = ON_PAPER[kind]
    settings = ("training.batch_size=12", "training.microbatch_size=5", "training.epochs=3", "optimizer.lr=0.01")
    metrics = single_model.run("dpo", world, tmp_path / "out", *settings, *overrides)
    model, seen = load_model(world / "model"), []
    with torch.no_grad():
        start, lengths = log_probs(model, world)
    for step in (1, 2, 3):
        policy, _ = log_probs(model, world)
        expected = on_paper(policy, policy - start, lengths, seen).mean()
        model.zero_grad()
        expected.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9).item()
        assert metrics[step]["loss"] == pytest.approx(expected.item(), rel=1e-4)
        assert metrics[step]["gradient_norm"] == pytest.approx(norm, rel=2e-3)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.01 * parameter.grad
    if kind == "bco":
        assert metrics[3]["delta"] == pytest.approx(sum(seen) / 3, rel=1e-3, abs=1e-6)


# What remembers steps, or depends on all pairs of one.
REMEMBERING = {
    "bco": (loss("bco_loss"),),
    "aot_unpaired": (loss("aot_unpaired_loss"),),
    "dynamic_beta": ("dynamic_beta={}",),
    "wpo": ("wpo=true",),
    "long_answers": ("long_answer_weight=0.2", "nll_weight=0.1"),
    "refresh": ("refresh={every: 2, alpha: 0.6}",),
}


def test_the_reference_follows_the_model(world, tmp_path):
    """TR-DPO, written down once more: five steps on all pairs, the reference refreshed after the second and fourth."""
    settings = ("training.batch_size=12", "training.microbatch_size=5", "training.epochs=5", "optimizer.lr=0.01")
    metrics = single_model.run("dpo", world, tmp_path / "out", *settings, *REMEMBERING["refresh"])
    model, reference = load_model(world / "model"), load_model(world / "model")
    for step in range(1, 6):
        with torch.no_grad():
            start, _ = log_probs(reference, world)
        expected = -log_sigmoid(0.1 * difference(log_probs(model, world)[0] - start)).mean()
        assert metrics[step]["loss"] == pytest.approx(expected.item(), rel=1e-4)
        model.zero_grad()
        expected.backward()
        with torch.no_grad():
            for weight, copy in zip(model.parameters(), reference.parameters(), strict=True):
                weight -= 0.01 * weight.grad
                if step % 2 == 0:
                    copy.copy_(0.6 * weight + 0.4 * copy)


def test_pairs_weigh_what_the_model_would_write(world, tmp_path):
    """At the start each pair loses ln 2, times its weight, here from whole logits."""
    settings = ("training.batch_size=12", "training.microbatch_size=5", "training.max_steps=1", "training.chunk_size=3")
    metrics = single_model.run("dpo", world, tmp_path / "out", "wpo=true", *settings)
    model, weights = load_model(world / "model"), []
    for row in read_rows(world / "pairs.jsonl"):
        weight = 1.0
        for answer in ("chosen", "rejected"):
            before, after = encode(world, row["prompt"], row[answer])
            labels = torch.tensor([[-100] * len(before) + after])
            with torch.no_grad():
                weight *= wpo_weights(model(torch.tensor([before + after])).logits, labels).item()
        weights.append(weight)
    assert metrics[1]["loss"] == pytest.approx(math.log(2) * sum(weights) / 12, rel=1e-4)


SLOW = ("training.epochs=2", "optimizer.lr=0.003")


@pytest.mark.parametrize("kind", REMEMBERING)
def test_microbatches_and_ranks_change_nothing(world, tmp_path, kind):
    overrides = (*SLOW, *REMEMBERING[kind])
    plain = (tmp_path / "plain", single_model.run("dpo", world, tmp_path / "plain", *overrides))
    small = (*overrides, "training.microbatch_size=1")
    alone = single_model.run("dpo", world, tmp_path / "alone", *small)
    single_model.assert_same_run(plain, (tmp_path / "alone", alone), 5e-5)
    if kind in ("aot_unpaired", "dynamic_beta", "refresh"):
        two, _ = run_processes(lambda: single_model.run("dpo", world, tmp_path / "two", *small))
        single_model.assert_same_run(plain, (tmp_path / "two", two), 5e-5)


CENTRED = (loss("apo_zero_loss"), "centre=true", *SLOW)
TERM_ALONE = "objective=[{_component_: prefkd.training.terms.dpo}]"


@pytest.mark.parametrize("recipe", ["dpo_distill", "tis_dpo_distill"])
def test_a_centred_teacher_can_be_the_reference(pair_world, tmp_path, recipe):
    run = partial(two_models.run, recipe, pair_world)
    plain = run(tmp_path / "plain", *CENTRED)
    small = run(tmp_path / "small", *CENTRED, "training.microbatch_size=1")
    two_models.assert_same_run((tmp_path / "plain", plain), (tmp_path / "small", small), 5e-5)
    assert abs(plain[-1]["kappa"]) > 0.01
    # Without the offset the rewards of both answers lie around 0.
    last = plain[-1]
    without = run(tmp_path / "without", loss("dpo_loss"), *SLOW)[-1]
    assert abs(last["chosen_reward"] + last["rejected_reward"]) < abs(
        without["chosen_reward"] + without["rejected_reward"]
    )


@pytest.mark.parametrize("name", ["hinge_loss", "robust_loss", "exo_loss", "discopop_loss", "dpo_loss"])
def test_losses_of_the_difference_take_a_teacher_and_margins(pair_world, tmp_path, name):
    whole = two_models.run("dpo_distill", pair_world, tmp_path / "whole", loss(name, "beta: 0.01"), *SLOW)
    uniform = ("weights.contrast=uniform", loss(name, "beta: 0.01"), *SLOW)
    weighted = two_models.run("tis_dpo_distill", pair_world, tmp_path / "weighted", *uniform)
    shared = [{key: line[key] for key in own} for own, line in zip(whole, weighted, strict=True)]
    two_models.assert_same_run((tmp_path / "whole", whole), (tmp_path / "weighted", shared), 5e-5)
    assert all(math.isfinite(line["loss"]) for line in whole[1:])


def test_lengths_are_parents_on_both_sides(pair_world, tmp_path):
    sums = loss("sigmoid_norm_loss", "beta: 2.0")
    means = (loss("dpo_loss", "beta: 2.0"), "average_logprobs=true")
    one = two_models.run("dpo_distill", pair_world, tmp_path / "one", sums)
    other = two_models.run("dpo_distill", pair_world, tmp_path / "other", *means)
    for left, right in zip(one, other, strict=True):  # rewards differ, as one is of sums
        for key in left.keys() & {"loss", "held_out/loss", "gradient_norm"}:
            assert left[key] == pytest.approx(right[key], rel=1e-5)


def test_the_student_can_be_the_reference(pair_world, tmp_path):
    metrics = two_models.run("dpo_distill", pair_world, tmp_path / "out", loss("nca_loss"), "reference=student")
    assert metrics[1]["loss"] == pytest.approx(2 * math.log(2), rel=1e-5)


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("dpo", (loss("bco_loss"), "dynamic_beta=null")),
        ("dpo", ("dynamic_beta={}",)),
        ("dpo_distill", CENTRED[:2]),
        ("tis_dpo_distill", ("reference=student", *REMEMBERING["refresh"])),
        ("dskd_distill", (TERM_ALONE, "reference=student", *REMEMBERING["refresh"])),
    ],
)
def test_a_run_goes_on_with_what_its_loss_remembers(world, pair_world, tmp_path, recipe, overrides):
    run = single_model.run if recipe == "dpo" else two_models.run
    folder = world if recipe == "dpo" else pair_world
    settings = ("training.epochs=2", "training.checkpoint_every=2", "optimizer.lr=0.003", *overrides)
    whole = run(recipe, folder, tmp_path / "whole", *settings)
    with pytest.raises(SystemExit):
        run(recipe, folder, tmp_path / "out", *settings, killer(3, "SIGTERM"))
    assert "step_00000003" in names(tmp_path / "out")
    assert_bitwise((tmp_path / "whole", whole), (tmp_path / "out", run(recipe, folder, tmp_path / "out", *settings)))


MISTAKES = [
    ("dpo_distill", (loss("nca_loss"),), "set reference: student, or centre: true"),
    ("tis_dpo_distill", (loss("bco_loss"),), "set reference: student, or centre: true"),
    ("dpo_distill", (loss("simpo_loss", "beta: 2.0, gamma_ratio: 0.5"),), "simpo_loss compares with no reference"),
    ("tis_dpo_distill", (loss("aot_loss"),), "aot_loss sorts the reference's differences"),
    ("tis_dpo_distill", (loss("ipo_loss"),), "ipo_loss compares means, which weighted margins are not"),
    ("dpo", (loss("sigmoid_norm_loss"), "average_logprobs=true"), "sigmoid_norm_loss divides by the lengths itself"),
    ("dpo", (loss("bco_loss", "beta: 0.1, delta: 0.0"),), "loss.delta: the recipe itself passes it"),
    ("dpo", (loss("exo_loss", "beta: 0.1, label_smoothing: 0.0"),), "label_smoothing is 0.0, but must be above 0"),
    ("dpo", (loss("f_divergence_loss", "beta: 0.1, divergence: kl"),), "loss.divergence: 'kl' is not one of"),
    ("dpo", (loss("cpo_loss"), "centre=true"), "centre: cpo_loss compares with no reference"),
    ("dpo", ("average_logprobs=true", "centre=true"), "centre: does not go with average_logprobs"),
    ("dpo", (loss("nca_loss"), "dynamic_beta={}"), "dynamic_beta: needs a loss of the difference"),
    ("dpo", ("dynamic_beta={left_out: 1.0}",), "dynamic_beta.left_out: 1.0 is not a share"),
    ("dpo", ("long_answer_weight=2",), "long_answer_weight: 2.0 is not between 0 and 1"),
    ("dpo", ("nll_weight=-1",), "nll_weight: -1.0 would make the chosen answers less likely"),
    ("dpo", (loss("aot_loss"), "wpo=true"), "wpo: weighs each pair apart"),
    ("dpo", (loss("tis_dpo_loss"),), "loss.chosen_margin: missing"),
    ("dpo", (loss("cpo_loss"), "refresh={}"), "refresh: cpo_loss compares with no reference; remove it"),
    ("dpo_distill", ("refresh={}",), "refresh: the teacher is the reference, and does not learn; set"),
    ("dpo", ("refresh={}", "training.keep_best=loss"), "refresh: held-out metrics against another reference cannot be"),
    ("dpo", ("refresh={every: 0}",), "refresh.every: 0 is not a number of steps"),
    ("dpo", ("refresh={alpha: 1.5}",), "refresh.alpha: 1.5 is not a share of the model"),
]


@pytest.mark.parametrize(("recipe", "overrides", "message"), MISTAKES)
def test_mistakes_are_one_line(world, pair_world, tmp_path, capsys, recipe, overrides, message):
    run, folder = (single_model.run, world) if recipe == "dpo" else (two_models.run, pair_world)
    run(recipe, folder, tmp_path / "out", *overrides, code=2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
