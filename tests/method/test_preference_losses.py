"""Preference losses by name: published numbers with gradients, finite differences, limits, float32's extremes."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkd.method import preference as p

FOUR = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")
ZERO = torch.zeros(1, dtype=torch.float64)
LENGTHS = {"chosen_length": torch.tensor([7.0, 3, 9, 4]), "rejected_length": torch.tensor([5.0, 8, 2, 6])}
# Those that see h alone, and those that see a and b apart.
BY_DIFFERENCE = {
    "dpo": p.dpo_loss,
    "hinge": p.hinge_loss,
    "robust": p.robust_loss,
    "exo": p.exo_loss,
    "discopop": p.discopop_loss,
    "aot": partial(p.aot_loss, label_smoothing=0.1),
}
APART = {
    "nca": p.nca_loss,
    "bco": partial(p.bco_loss, delta=0.3),
    "sppo": p.sppo_loss,
    "apo_zero": p.apo_zero_loss,
    "apo_down": p.apo_down_loss,
    "dpop": partial(p.dpop_loss, penalty=2.0),
    "forward_kl": partial(p.f_divergence_loss, divergence="forward_kl"),
    "js": partial(p.f_divergence_loss, divergence="js"),
    "alpha": partial(p.f_divergence_loss, divergence="alpha"),
    "aot_unpaired": p.aot_unpaired_loss,
}
ALL = BY_DIFFERENCE | APART


def close(found, expected, tolerance=1e-10):
    expected = torch.as_tensor(expected, dtype=found.dtype)
    torch.testing.assert_close(found.detach(), expected, rtol=tolerance, atol=tolerance)


def check(found, chosen, rejected, stored, key, tolerance=1e-10, sign=1.0):
    """Losses and gradients of their sum against stored ones."""
    losses = found[0]
    gradients = torch.autograd.grad(losses.sum(), (chosen, rejected))
    close(losses, sign * stored[f"{key}/losses"], tolerance)
    for gradient, name in zip(gradients, ("grad_chosen", "grad_rejected"), strict=True):
        close(gradient, sign * stored[f"{key}/{name}"], tolerance)
    assert not found[1].requires_grad and not found[2].requires_grad


def read(stored, folder):
    inputs = [torch.from_numpy(stored[f"{folder}/{name}"]) for name in FOUR]
    return [value.requires_grad_(i < 2) for i, value in enumerate(inputs)]


def cases(stored, part=0):
    found = sorted({key.split("/")[part] for key in stored})
    assert found
    return found


def four(seed=0, examples=4, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return [(scale * torch.randn(examples, generator=generator, dtype=torch.float64)).requires_grad_() for _ in FOUR]


def ratios(a, b=0.0, dtype=torch.float64):
    """Four inputs with given log-ratios."""
    a, b = torch.as_tensor(a, dtype=dtype), torch.as_tensor(b, dtype=dtype)
    a, b = torch.broadcast_tensors(a, b)
    return [a.clone().requires_grad_(), b.clone().requires_grad_(), torch.zeros_like(a), torch.zeros_like(b)]


def slopes(loss, a, b=0.0, **settings):
    inputs = ratios(a, b)
    return torch.autograd.grad(loss(*inputs, **settings)[0].sum(), inputs[:2])


# The published numbers

TRL = {
    "hinge": (p.hinge_loss, {}),
    "robust": (p.robust_loss, "label_smoothing"),
    "exo_pair": (p.exo_loss, "label_smoothing"),
    "nca_pair": (p.nca_loss, {}),
    "bco_pair_delta": (p.bco_loss, "delta"),
    "sppo_hard": (p.sppo_loss, {}),
    "apo_zero": (p.apo_zero_loss, {}),
    "apo_down": (p.apo_down_loss, {}),
    "discopop": (p.discopop_loss, {}),
    "discopop_tau": (p.discopop_loss, "tau"),
    "sigmoid_norm": (p.sigmoid_norm_loss, "lengths"),
    "ipo_norm": (p.ipo_loss, "means"),
    "f_forward_kl": (p.f_divergence_loss, {"divergence": "forward_kl"}),
    "f_js": (p.f_divergence_loss, {"divergence": "js"}),
    "f_alpha": (partial(p.f_divergence_loss, divergence="alpha"), "alpha"),
}


def test_published_losses_of_pairs(golden: Path):
    stored = np.load(golden / "pref_trl.npz")
    keys = {key.rsplit("/", 1)[0] for key in stored if "/beta" in key}
    assert keys
    for key in keys:
        case, beta, name = key.split("/")
        kind = name.rstrip("0123456789.")
        loss, options = TRL[kind]
        inputs = read(stored, case)
        lengths = [torch.from_numpy(stored[f"{case}/tokens_{side}"]).double() for side in ("chosen", "rejected")]
        given = inputs
        if options == "lengths":
            options = dict(zip(("chosen_length", "rejected_length"), lengths, strict=True))
        elif options == "means":
            options, given = {}, [value / lengths[i % 2] for i, value in enumerate(inputs)]
        elif isinstance(options, str):
            options = {options: float(name.removeprefix(kind))}
        # Parts of the published EXO and all of its alpha divergence are in float32.
        tolerance = {"exo_pair": 1e-7, "f_alpha": 2e-5}.get(kind, 1e-10)
        found = loss(*given, beta=float(beta[4:]), **options)
        check(found, *inputs[:2], stored, key, tolerance)


def test_published_losses_of_batches(golden: Path):
    stored = np.load(golden / "pref_trl.npz")
    keys = {key.rsplit("/", 1)[0] for key in stored if "/batch/" in key}
    assert keys
    losses = {"aot": p.aot_loss, "aot_unpaired": p.aot_unpaired_loss}
    for key in keys:
        name, smoothing = key.rsplit("/", 1)[1].split("_ls")
        inputs = read(stored, key.split("/")[0])
        found, *_ = losses[name](*inputs, beta=0.1, label_smoothing=float(smoothing))
        close(found.mean(), stored[f"{key}/loss_mean"])
        for gradient, side in zip(torch.autograd.grad(found.sum(), inputs[:2]), ("chosen", "rejected"), strict=True):
            close(gradient, stored[f"{key}/grad_{side}"])


def test_published_bco_with_its_running_mean(golden: Path):
    stored = np.load(golden / "pref_trl024.npz")
    for case in cases(stored):
        mean, count = 0.0, 0
        for step in range(4):
            key = f"{case}/bco/step{step}"
            inputs = read(stored, key)
            rewards = 0.1 * torch.cat([inputs[0] - inputs[2], inputs[1] - inputs[3]])
            mean, count = p.running_mean(mean, count, rewards.mean().item())
            assert count == stored[f"{key}/count"]
            assert mean == pytest.approx(float(stored[f"{key}/delta"]), abs=1e-7)
            check(p.bco_loss(*inputs, beta=0.1, delta=mean), *inputs[:2], stored, key, 1e-7)


def test_published_losses_of_an_older_release(golden: Path):
    stored = np.load(golden / "pref_trl024.npz")
    losses = {
        "exo_default": (p.exo_loss, 1e-7),
        "ipo_sum": (p.ipo_loss, 1e-10),
        "cdpo0.1": (partial(p.dpo_loss, label_smoothing=0.1), 1e-10),
        "alpha_div_u-0.5": (partial(p.f_divergence_loss, divergence="alpha"), 1e-10),
    }
    for case in cases(stored):
        for name, (loss, tolerance) in losses.items():
            inputs = read(stored, f"{case}/in")
            check(loss(*inputs, beta=0.1), *inputs[:2], stored, f"{case}/{name}", tolerance)


def test_published_losses_without_a_reference(golden: Path):
    stored = np.load(golden / "pref_noref.npz")
    keys = {key.rsplit("/", 1)[0] for key in stored if key.endswith("/losses")}
    assert keys
    for key in keys:
        case, *unit, name = key.split("/")
        folder = "/".join((case, *unit)) if unit else key
        chosen, rejected = (
            torch.from_numpy(stored[f"{folder}/{side}"]).requires_grad_() for side in ("chosen", "rejected")
        )
        zeros = torch.zeros_like(chosen), torch.zeros_like(rejected)
        numbers = {part.rstrip("0123456789."): part for part in name.split("_")}
        value = {part: float(text.removeprefix(part)) for part, text in numbers.items() if text != part}
        tolerance, sign = 1e-10, 1.0
        if name.startswith("simpo_repo"):
            options = {"gamma_ratio": value["ratio"], "label_smoothing": value["ls"], "hinge": "hinge" in name}
            found = p.simpo_loss(chosen, rejected, beta=value["beta"], **options)
        elif name.startswith("simpo_trl"):
            options = {"gamma_ratio": value["gamma"] / value["beta"], "alpha": value["alpha"]}
            found = p.simpo_loss(chosen, rejected, beta=value["beta"], **options)
        elif name.startswith("orpo"):
            found, tolerance, sign = p.orpo_loss(chosen, rejected, weight=value.get("beta", 1.0)), 2e-5, -1.0
        else:
            loss = {
                "cpo_sigmoid": p.cpo_loss,
                "cpo_sigmoid_ls0.1": partial(p.cpo_loss, label_smoothing=0.1),
                # With a reference of 0 these are the ones that have a name.
                "cpo_hinge": lambda *two, beta, zeros=zeros: p.hinge_loss(*two, *zeros, beta=beta),
                "cpo_ipo": lambda *two, beta, zeros=zeros: p.ipo_loss(*two, *zeros, beta=beta),
            }[name]
            found = loss(chosen, rejected, beta=0.1)
        check(found, chosen, rejected, stored, key, tolerance, sign)


def token_case(stored, case):
    """Logits, labels and sums of the stored token-level cases."""
    policy = torch.from_numpy(stored[f"{case}/policy_logits"]).requires_grad_()
    reference = torch.from_numpy(stored[f"{case}/reference_logits"])
    mask = torch.from_numpy(stored[f"{case}/target_mask"]).bool()
    targets = torch.from_numpy(stored[f"{case}/targets"])

    def logprobs(logits):
        return logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0].where(mask, 0)

    return policy, logprobs(policy), logprobs(reference), mask, targets


def check_mean(loss, policy, stored, key):
    close(loss, stored[f"{key}/loss_mean"])
    close(torch.autograd.grad(loss, policy, retain_graph=True)[0], stored[f"{key}/grad_policy_logits"])


def in_front(values, mask):
    """(2, B, T) of the values in the mask, moved to the start of their row."""
    length = int(mask.sum(-1).max())
    rows = [F.pad(row[exists], (0, length - int(exists.sum()))) for row, exists in zip(values, mask, strict=True)]
    return torch.stack(rows).view(2, -1, length)


def test_published_settings_of_token_level(golden: Path):
    stored = np.load(golden / "pref_token.npz")
    for case in cases(stored):
        policy, found, reference, mask, targets = token_case(stored, case)
        exists = in_front(mask, mask)
        sides = [in_front(values, mask) for values in (found, reference)]
        plain = p.dpo_loss(*sides[0].sum(-1), *sides[1].sum(-1), beta=0.1)[0]
        for alpha in (0.0, 0.3, 1.0):
            weights = p.long_answer_weights(exists, alpha, torch.float64)
            inputs = [sum_ for side in sides for sum_ in (weights * side).sum(-1)]
            check_mean(p.dpo_loss(*inputs, beta=0.1)[0].mean(), policy, stored, f"{case}/ld_dpo_alpha{alpha}")
        shifted = F.pad(policy, (0, 0, 0, 1))  # row t of the stored logits predicts label t + 1
        labels = F.pad(targets.where(mask, -100), (1, 0), value=-100)
        chosen, rejected = p.wpo_weights(shifted, labels).chunk(2)
        check_mean((chosen * rejected * plain).mean(), policy, stored, f"{case}/wpo")
        for alpha in (0.5, 1.0):
            nll = -sides[0][0].sum() / exists[0].sum()  # the published code takes the mean over the batch's tokens
            check_mean(plain.mean() + alpha * nll, policy, stored, f"{case}/rpo_alpha{alpha}")


def test_published_beta_dpo(golden: Path):
    stored = np.load(golden / "beta_trdpo.npz")
    for case in cases(stored):
        mean = std = 0.0
        for step in range(3):
            key = f"{case}/beta_dpo/step{step}"
            inputs = read(stored, key)
            h = (inputs[0] - inputs[1] - inputs[2] + inputs[3]).detach()
            mean, std = p.update_gap(mean, std, h)
            assert (mean, std) == pytest.approx((float(stored[f"{key}/gap_mean"]), float(stored[f"{key}/gap_std"])))
            drawn = torch.from_numpy(stored[f"{key}/selected"]).bool()
            beta = p.dynamic_beta(0.1, h[drawn], mean)
            assert beta == pytest.approx(float(stored[f"{key}/beta_used"]), rel=1e-10)
            losses = p.dpo_loss(*inputs, beta=beta)[0]
            close(losses, stored[f"{key}/losses"])
            gradients = torch.autograd.grad(losses[drawn].sum(), inputs[:2])
            for gradient, side in zip(gradients, ("chosen", "rejected"), strict=True):
                close(gradient, stored[f"{key}/grad_{side}_masked_sum"])


def test_published_refresh_of_a_reference(golden: Path):
    stored = np.load(golden / "beta_trdpo.npz")
    for case in cases(stored):
        policy, reference = (torch.from_numpy(stored[f"{case}/trdpo/{name}"]) for name in ("policy", "reference"))
        for alpha in (0.6, 1.0):
            reference = p.refreshed_reference(reference, policy, alpha)
            close(reference, stored[f"{case}/trdpo/after_alpha{alpha}"])


# Finite differences


@pytest.mark.parametrize("name", ALL)
def test_gradients_agree_with_finite_differences(name):
    assert torch.autograd.gradcheck(lambda *values: ALL[name](*values, beta=0.3)[0], four())


@pytest.mark.parametrize(
    "loss",
    [
        partial(p.sigmoid_norm_loss, beta=2.0, **{key: value.double() for key, value in LENGTHS.items()}),
        partial(p.f_divergence_loss, beta=0.3, divergence="alpha", alpha=1.7),
        lambda a, b, *_: p.simpo_loss(a, b, beta=2.0, gamma_ratio=0.3, label_smoothing=0.1, alpha=0.25),
        lambda a, b, *_: p.orpo_loss(-a.exp(), -b.exp()),
        lambda a, b, *_: p.cpo_loss(a, b, beta=0.3),
    ],
)
def test_gradients_of_the_others_agree_with_finite_differences(loss):
    assert torch.autograd.gradcheck(lambda *values: loss(*values)[0], four(3))


# Limits


@pytest.mark.parametrize("name", BY_DIFFERENCE)
@given(offset=st.floats(-50, 50), seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_an_offset_of_a_pair_changes_nothing_where_h_alone_counts(name, offset, seed):
    inputs = four(seed)
    moved = [*inputs[:2], *(value + offset * torch.arange(4) for value in inputs[2:])]
    close(ALL[name](*moved, beta=0.1)[0], ALL[name](*inputs, beta=0.1)[0].detach(), 1e-8)


@pytest.mark.parametrize("name", APART)
def test_the_others_see_it_and_say_so(name):
    inputs = four()
    moved = [*inputs[:2], *(value + 3 * torch.arange(4) for value in inputs[2:])]
    assert not torch.allclose(ALL[name](*moved, beta=0.3)[0], ALL[name](*inputs, beta=0.3)[0])
    assert "apart" in getattr(ALL[name], "func", ALL[name]).needs
    assert all("apart" not in getattr(loss, "func", loss).needs for loss in BY_DIFFERENCE.values())


def test_some_settings_make_dpo():
    inputs = four()
    dpo, *rewards = p.dpo_loss(*inputs, beta=0.3)
    for loss in (
        partial(p.robust_loss, label_smoothing=0.0),
        partial(p.f_divergence_loss, divergence="reverse_kl"),
        partial(p.f_divergence_loss, divergence="alpha", alpha=1),
        partial(p.dpop_loss, penalty=0.0),
        partial(p.sigmoid_norm_loss, chosen_length=torch.ones(4), rejected_length=torch.ones(4)),
    ):
        found = loss(*inputs, beta=0.3)
        for one, other in zip(found, (dpo, *rewards), strict=True):
            close(one, other.detach())
    near = p.f_divergence_loss(*inputs, beta=0.3, divergence="alpha", alpha=1 + 1e-9)[0]
    close(near, dpo.detach(), 1e-7)
    zero = p.f_divergence_loss(*inputs, beta=0.3, divergence="alpha", alpha=0.0)[0]
    close(zero, p.f_divergence_loss(*inputs, beta=0.3, divergence="forward_kl")[0].detach())
    for pair in range(4):  # a batch of one pair has nothing to sort
        alone = [value[pair : pair + 1] for value in inputs]
        for loss in (p.aot_loss, p.aot_unpaired_loss):
            close(loss(*alone, beta=0.3)[0], dpo[pair : pair + 1].detach())


def test_hinge_pulls_lost_pairs_and_leaves_won_ones():
    a, b = slopes(p.hinge_loss, [-1e4, 0.0, 10.0, 11.0], beta=0.1)
    assert a.tolist() == [-0.1, -0.1, 0.0, 0.0] and torch.equal(a, -b)
    close(p.hinge_loss(*ratios([10.0, 0.0, -5.0]), beta=0.1)[0], [0.0, 1.0, 1.5])


def test_robust_never_lets_go():
    a, _ = slopes(p.robust_loss, [2e3], beta=0.1, label_smoothing=0.2)
    close(a, [-0.1 * 0.2 / 0.6])
    assert p.robust_loss(*ratios([1e6]), beta=0.1)[0] < -1e4


def test_exo_rests_where_the_label_is_met_and_where_a_pair_is_lost():
    rest = math.log(0.999 / 1e-3) / 0.1
    a, _ = slopes(p.exo_loss, [rest, -1e4, rest - 5, rest + 5], beta=0.1)
    assert a[0].abs() < 1e-12 and a[1].abs() < 1e-12 and a[2] < 0 < a[3]
    close(p.exo_loss(*ratios([rest]), beta=0.1)[0], [0.0], 1e-12)


def test_discopop_goes_the_wrong_way_around_0():
    a, _ = slopes(p.discopop_loss, [0.0, -0.1186 / 0.1, 0.0720 / 0.1], beta=0.1)
    assert a[0].item() == pytest.approx(0.07843, abs=1e-5)
    assert a[1].abs() < 2e-4 and a[2].abs() < 2e-4


def test_nca_leaves_the_chosen_answer_where_its_reward_is_log_2():
    a, b = slopes(p.nca_loss, [math.log(2) / 0.1, -1e4], 0.0, beta=0.1)
    close(a, [0.0, -0.1])
    close(b, [0.025, 0.025])


def test_bco_takes_its_delta_for_a_constant():
    delta = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    inputs = ratios([1.0], [-2.0])
    losses, *_ = p.bco_loss(*inputs, beta=0.1, delta=delta)
    losses.sum().backward()
    assert delta.grad is None
    close(inputs[0].grad, [-0.1 * torch.sigmoid(torch.tensor(0.4 - 0.1)).item()], 1e-7)
    close(inputs[1].grad, [0.1 * torch.sigmoid(torch.tensor(-0.2 - 0.4)).item()], 1e-7)


def test_sppo_chases_its_targets():
    losses, *_ = p.sppo_loss(*ratios([5.0, 0.0], [-5.0, 0.0]), beta=0.1)
    close(losses, [0.0, 50.0])


def test_apo_is_dead_far_away():
    a, b = slopes(p.apo_zero_loss, [0.0, 1e4, -1e4], [0.0, -1e4, 1e4], beta=0.4)
    close(a, [-0.1, 0.0, 0.0])
    close(b, [0.1, 0.0, 0.0])
    a, b = slopes(p.apo_down_loss, [0.0], 0.0, beta=0.4)
    close(a, [0.0])
    close(b, [0.1])


def test_dpop_pulls_a_chosen_answer_that_has_sunk():
    a, b = slopes(p.dpop_loss, [-1e3, 1e-3], [-1e3, 0.0], beta=0.3)
    assert a[0].item() == pytest.approx(-15.3) and b[0].item() == pytest.approx(0.3)
    assert a[1].item() == pytest.approx(-b[1].item())


def test_simpo_halves_its_pull_where_the_margin_is_reached():
    means = [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (-1.0, -1.3)]
    losses, *_ = p.simpo_loss(*means, beta=2.0, gamma_ratio=0.3)
    close(torch.autograd.grad(losses.sum(), means)[0], [-1.0])


def test_orpo_stays_finite_where_an_answer_is_certain():
    means = [torch.tensor([0.0, -1e4, -math.log(2)], requires_grad=True) for _ in range(2)]
    losses, *_ = p.orpo_loss(*means)
    losses.sum().backward()
    assert losses.isfinite().all() and means[0].grad.isfinite().all()
    close(losses, [math.log(2)] * 3, 1e-6)


def test_aot_pairs_ranks_and_knows_no_order():
    inputs, order = [value.detach() for value in four(examples=6)], torch.tensor([3, 0, 5, 4, 2, 1])
    for loss in (p.aot_loss, p.aot_unpaired_loss):
        straight, *_ = loss(*inputs, beta=0.3)
        mixed, *_ = loss(*(value[order] for value in inputs), beta=0.3)
        close(mixed, straight[order])
        half = [*(value[order] for value in inputs[:2]), *inputs[2:]]
        if loss is p.aot_loss:  # the reference's differences belong to no pair
            close(loss(*half, beta=0.3)[0].sum(), straight.sum())
    policy, reference = inputs[0] - inputs[1], inputs[2] - inputs[3]
    by_rank = -F.logsigmoid(0.3 * (policy.sort().values - reference.sort().values))
    close(p.aot_loss(*inputs, beta=0.3)[0].mean(), by_rank.mean())


@pytest.mark.parametrize("name", ALL)
def test_float32_stays_finite_at_extremes(name):
    for beta in (1e-3, 0.1, 1.0):
        far = torch.tensor([-1e4, -1e3, -90.0, 0.0, 90.0, 1e3, 1e4]) / beta
        for chosen, rejected in ((far, torch.zeros(7)), (torch.zeros(7), far), (far, far.flip(0)), (far, far)):
            inputs = ratios(chosen, rejected, torch.float32)
            losses, *_ = ALL[name](*inputs, beta=beta)
            gradients = torch.autograd.grad(losses.sum(), inputs[:2])
            assert losses.isfinite().all()
            assert all(gradient.isfinite().all() for gradient in gradients)


def test_float32_stays_finite_at_extremes_without_a_reference():
    far = torch.tensor([-1e4, -1e3, -1.0, -1e-7, 0.0])
    for loss in (
        partial(p.simpo_loss, beta=10.0, gamma_ratio=0.5),
        partial(p.simpo_loss, beta=2.0, gamma_ratio=0.5, alpha=0.25),
        partial(p.cpo_loss, beta=0.1),
        p.orpo_loss,
    ):
        inputs = [far.clone().requires_grad_(), far.flip(0).clone().requires_grad_()]
        losses, *_ = loss(*inputs)
        gradients = torch.autograd.grad(losses.sum(), inputs)
        assert losses.isfinite().all() and all(gradient.isfinite().all() for gradient in gradients)


# What goes with a loss


def test_long_answers_count_less_beyond_the_shorter_one():
    mask = torch.tensor([[[True, True, True, True], [True, False, False, False]],
                         [[True, True, False, False], [True, True, True, False]]])  # fmt: skip
    expected = [[[1, 1, 0.25, 0.25], [1, 0, 0, 0]], [[1, 1, 0, 0], [1, 0.25, 0.25, 0]]]
    assert p.long_answer_weights(mask, 0.25).tolist() == expected
    assert torch.equal(p.long_answer_weights(mask, 1.0), mask.float())


def test_a_policy_that_draws_evenly_has_weights_of_1():
    logits, labels = torch.zeros(2, 4, 6), torch.tensor([[-100, 1, 2, -100], [-100, -100, 0, 3]])
    close(p.wpo_weights(logits, labels), [1.0, 1.0], 1e-6)
    assert p.wpo_weights(logits, torch.full_like(labels, -100)).tolist() == [1.0, 1.0]  # answers without a target
    sure = logits.clone()
    sure[..., 1] = 50.0
    assert p.wpo_weights(sure.requires_grad_(), labels)[1] < 1e-6
    assert not p.wpo_weights(sure, labels).requires_grad


def test_an_offset_of_each_parent_is_taken_out():
    chosen, rejected, lengths = torch.tensor([-7.0, -3.0]), torch.tensor([-5.0, -8.0]), torch.tensor([[7.0, 3], [5, 8]])
    kappa = p.offset_per_parent(chosen, rejected, *lengths)
    assert kappa.item() == pytest.approx(-1.0)
    assert p.centred(torch.stack([chosen, rejected]), lengths, kappa).abs().max() < 1e-6
    weightless = torch.tensor([[7.0, 0], [5, 0]])  # all parents of the second pair weigh 0
    assert p.offset_per_parent(chosen, rejected, *weightless).item() == pytest.approx(-1.0)


def test_drawing_pairs_never_runs_out_of_them():
    weights = p.gap_weights(torch.tensor([0.0, 1e3, -1e4, 2.0]), 0.0, 1.0)
    assert sorted(torch.multinomial(weights, 4).tolist()) == [0, 1, 2, 3]
    assert weights.argmax() == 0
    assert p.dynamic_beta(0.1, torch.tensor([-1e3]), 0.0) == 1e-3


def test_mistakes_are_named():
    inputs = [value.detach() for value in four()]
    for loss, settings_, message in (
        (p.robust_loss, {"label_smoothing": 0.5}, r"label_smoothing is 0\.5, but must be at least 0 and below 0\.5"),
        (p.exo_loss, {"label_smoothing": 0.0}, r"label_smoothing is 0\.0, but must be above 0"),
        (p.discopop_loss, {"tau": 0.0}, r"tau is 0\.0"),
        (p.dpop_loss, {"penalty": -1.0}, r"penalty is -1\.0"),
        (p.f_divergence_loss, {"divergence": "kl"}, "divergence is 'kl', but must be reverse_kl"),
    ):
        with pytest.raises(ValueError, match=message):
            loss(*inputs, beta=0.1, **settings_)
    for loss in ALL.values():
        with pytest.raises(ValueError, match="beta is 0"):
            loss(*inputs, beta=0)
    with pytest.raises(ValueError, match=r"alpha is 1\.5"):
        p.long_answer_weights(torch.ones(2, 1, 1).bool(), 1.5)
    with pytest.raises(ValueError, match="hinge has no label_smoothing"):
        p.simpo_loss(*inputs[:2], beta=1.0, gamma_ratio=0.1, hinge=True, label_smoothing=0.1)


# -------------------------------------------------------------------------------------------------- an offset


@settings(max_examples=40, deadline=None)
@given(h=st.floats(-30, 30), m=st.floats(0, 10), beta=st.floats(0.05, 2), smoothing=st.sampled_from([0.0, 0.1]))
def test_an_offset_moves_the_logit(h, m, beta, smoothing):
    """ODPO is DPO of beta h - m, by the definition of the logistic function and by finite differences."""
    chosen = torch.tensor([h], dtype=torch.float64, requires_grad=True)
    offset = torch.tensor([m], dtype=torch.float64)

    def loss(value):
        return p.dpo_loss(value, ZERO, ZERO, ZERO, beta=beta, label_smoothing=smoothing, offset=offset)[0]

    z = beta * h - m
    expected = (1 - smoothing) * np.logaddexp(0, -z) + smoothing * np.logaddexp(0, z)
    close(loss(chosen), [expected], 1e-9)
    [gradient] = torch.autograd.grad(loss(chosen).sum(), chosen)
    step = 1e-5
    numeric = (loss(chosen.detach() + step) - loss(chosen.detach() - step)) / (2 * step)
    close(gradient, numeric, 1e-6)
    tis, *rewards = p.tis_dpo_loss(chosen, ZERO, beta=beta, label_smoothing=smoothing, offset=offset)
    close(tis, loss(chosen), 1e-12)
    close(rewards[0], [beta * h])  # a margin is asked for, and changes no reward


def test_an_offset_of_nothing_is_dpo():
    inputs = four()
    close(p.dpo_loss(*inputs, beta=0.1, offset=0.0)[0], p.dpo_loss(*inputs, beta=0.1)[0], 0)
