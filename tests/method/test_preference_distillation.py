"""Preference-aware distillation: the published numbers, finite differences, and what each loss must not depend on."""

import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkd.method import preference_distillation as pd
from prefkd.method.divergences import divergence, generalised_jsd
from prefkd.method.preference import dpo_loss

FORMS = {
    "aligndistil": "adaptive",
    "theorem1": "constant_mixture",
    "theorem1_contrast": "constant",
    "theorem1_adaptive": "adaptive_mixture",
}


def load(golden, name):
    return {key: torch.from_numpy(np.asarray(value)) for key, value in np.load(golden / name).items()}


def close(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=tolerance, atol=tolerance)


def cases(stored, part="") -> list[str]:
    """Prefixes `c0`, or `c0/name` where a part of the name is asked for."""
    names = {"/".join(key.split("/")[: 1 + bool(part)]) for key in stored}
    return sorted(name for name in names if part in name)


def masked_mean(values, mask):
    return (values * mask).sum(-1) / mask.sum(-1)


def test_align_distil_is_the_published_one(golden):
    stored = load(golden, "aligndistil.npz")
    seen = 0
    for case in cases(stored):
        positive, negative, mask = (stored[f"{case}/in/{name}"] for name in ("dpo_logits", "reference_logits", "mask"))
        for key in sorted({key.split("/")[1] for key in stored if key.startswith(f"{case}/") and "/in/" not in key}):
            kind, beta, strength, temperature = re.fullmatch(r"(\w+)_b([\d.]+)_([\d.]+)_T([\d.]+)", key).groups()
            student = stored[f"{case}/in/student_logits"].clone().requires_grad_()
            how = {"beta": float(beta), "strength": float(strength), "temperature": float(temperature)}
            losses = pd.align_distil_loss(student, positive, negative, form=FORMS[kind], **how) * mask
            close(losses, stored[f"{case}/{key}/per_token"] * mask, 1e-5)
            loss = masked_mean(losses, mask).mean()
            close(loss, stored[f"{case}/{key}/loss_len_norm"], 1e-5)
            close(losses.sum(-1).mean(), stored[f"{case}/{key}/loss_sum"], 1e-5)
            loss.backward()
            close(student.grad, stored[f"{case}/{key}/grad_len_norm"], 1e-5)
            seen += 1
    assert seen >= 10


def test_the_advantage_and_the_kl_of_dckd_are_the_published_ones(golden):
    stored = load(golden, "adpa.npz")
    for case in cases(stored):
        positive, negative = (stored[f"{case}/in/{name}_teacher_probs"].log() for name in ("dpo", "reference"))
        mask = stored[f"{case}/in/labels_shifted"] != -100
        for name, loss in {
            "adpa": lambda student, p=positive, n=negative: pd.advantage_loss(student.log_softmax(-1), p, n),
            "dckd_kl": lambda student, p=positive: divergence("forward_kl", student, p),
        }.items():
            student = stored[f"{case}/in/student_logits"].clone().requires_grad_()
            value = loss(student)[mask].mean()
            close(value, stored[f"{case}/{name}/loss"])
            value.backward()
            close(student.grad, stored[f"{case}/{name}/grad_student"])


def test_margins_of_two_published_lists_are_advantages_where_both_have_a_token(golden):
    """The published code makes up what a list lacks; the cache stores both models on the same tokens instead."""
    for case in json.loads((golden / "adpa_topk.json").read_text())["cases"]:
        lists = {name: dict(zip(*case[name].values(), strict=True)) for name in ("dpo", "reference", "margin")}
        both = lists["dpo"].keys() & lists["reference"].keys() & lists["margin"].keys()
        assert both
        for token in both:
            advantage = math.log(lists["dpo"][token] / lists["reference"][token])
            assert lists["margin"][token] == pytest.approx(advantage, rel=1e-6)


def test_tvkd_is_the_published_one(golden):
    """There the value after the last target is that of the next column, whatever it is."""
    stored = load(golden, "tvkd.npz")
    inputs = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")
    for case in cases(stored):
        logprobs, mask = stored[f"{case}/in/teacher_probs"].log(), stored[f"{case}/in/valid_mask"]
        for key in sorted({key.split("/")[1] for key in stored if key.startswith(f"{case}/") and "/in/" not in key}):
            beta, tau, gamma, alpha = map(float, re.findall(r"[\d.]+", key))
            values = pd.state_values(logprobs, temperature=tau, scale=alpha)
            after = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
            sums = (after * mask).sum(1)
            close(sums, stored[f"{case}/{key}/value_sum"])
            policy = [stored[f"{case}/in/{name}"].clone().requires_grad_() for name in inputs]
            chosen, rejected = sums.chunk(2)
            how = {"chosen_value": chosen, "rejected_value": rejected, "beta": beta, "gamma": gamma}
            losses, chosen_rewards, rejected_rewards = pd.tvkd_loss(*policy, **how)
            close(losses.mean(), stored[f"{case}/{key}/loss_mean"])
            rewards = torch.cat([chosen_rewards, rejected_rewards]) - (1 - gamma) * sums
            close(rewards, stored[f"{case}/{key}/reward"])
            losses.sum().backward()
            for name, value in zip(("chosen", "rejected"), policy, strict=False):
                gradient = stored[f"{case}/{key}/grad_{name}"]
                # of the mean, as the key's loss is
                close(value.grad / len(value), gradient)


def test_pad_is_the_published_one(golden):
    stored = load(golden, "pad.npz")
    for case in cases(stored, "/n"):
        teacher = 10 * stored[f"{case}/teacher_scores"]
        if f"{case}/student_log_rankings" in stored:
            found = pd.ranking_logprobs(10 * stored[f"{case}/student_mean_logps"])
            close(found, stored[f"{case}/student_log_rankings"])
        for name, form in (("pd", "published"), ("rd", "ranking")):
            student = stored[f"{case}/student_mean_logps"].clone().requires_grad_()
            losses = pd.pad_loss(10 * student, teacher, form=form)
            close(losses, stored[f"{case}/{name}/losses"])
            losses.sum().backward()
            close(student.grad, stored[f"{case}/{name}/grad_student"])


GAPS = {"v2_fixed": None, "v2_adaptive": (0.02, 0.03), "v2_adaptive_big": (0.5, 0.5)}


@pytest.mark.parametrize("kind", GAPS)
def test_distillm2_is_the_published_one(golden, kind):
    stored = load(golden, "distillm2.npz")
    for case in cases(stored):
        student = stored[f"{case}/in/student_logits"].clone().requires_grad_()
        log_p, log_q = student[:, :-1].log_softmax(-1), stored[f"{case}/in/teacher_logits"][:, :-1].log_softmax(-1)
        labels = stored[f"{case}/in/labels_unshifted"][:, 1:]
        mask = labels != -100
        skews = 0.1, 0.1
        if GAPS[kind] is not None:
            p, q = (
                masked_mean(values.gather(-1, labels.clamp_min(0)[..., None])[..., 0], mask)
                for values in (log_p, log_q)
            )
            adapted = pd.adapted_skew(q, p, GAPS[kind][0]), pd.adapted_skew(p, q, GAPS[kind][1])
            skews = tuple(values[:, None].expand(mask.shape) for values in adapted)
        forward = masked_mean(pd.skewed_forward_kl(log_p, log_q, skews[0]), mask)
        reverse = masked_mean(pd.skewed_reverse_kl(log_p, log_q, skews[1]), mask)
        close(forward, stored[f"{case}/{kind}/skl"])
        close(reverse, stored[f"{case}/{kind}/srkl"])
        chosen, rejected = forward[:2], reverse[2:]
        gradual = pd.distillm2_loss(chosen, rejected, balance=1 + min(1, 2 * 30 / 100) / 2)
        close(gradual, stored[f"{case}/{kind}/pair_losses_gradual_30_of_100"])
        losses = pd.distillm2_loss(chosen, rejected)
        close(losses, stored[f"{case}/{kind}/pair_losses"])
        losses.sum().backward()
        close(student.grad, stored[f"{case}/{kind}/grad_student"])


def test_gkd_of_the_same_code_is_the_generalised_jsd(golden):
    stored = load(golden, "distillm2.npz")
    for case in cases(stored):
        sides = [stored[f"{case}/in/{name}_logits"][:, :-1].log_softmax(-1) for name in ("student", "teacher")]
        mask = stored[f"{case}/in/labels_unshifted"][:, 1:] != -100
        for name in ("skl", "srkl"):
            close(masked_mean(generalised_jsd(*sides, beta=0.9), mask), stored[f"{case}/gkd/{name}"])


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_gradients_agree_with_finite_differences():
    student, positive, negative = draw(2, 5, seed=1).requires_grad_(), draw(2, 5, seed=2), draw(2, 5, seed=3)
    q, other = positive.log_softmax(-1), negative.log_softmax(-1)
    checks = [
        *(lambda z, form=form: pd.align_distil_loss(z, positive, negative, form=form) for form in FORMS.values()),
        lambda z: pd.advantage_loss(z.log_softmax(-1), q, other),
        lambda z: pd.skewed_forward_kl(z.log_softmax(-1), q, 0.3),
        *(lambda z, form=form: pd.pad_loss(z, positive, form=form) for form in ("published", "js", "ranking")),
    ]
    for loss in checks:
        assert torch.autograd.gradcheck(loss, student)


def test_the_mixture_of_the_skewed_reverse_kl_is_a_constant():
    student, teacher = draw(3, 5, seed=1).requires_grad_(), draw(3, 5, seed=2).log_softmax(-1)
    fixed = student.detach().log_softmax(-1)

    def loss(z):
        log_mixture = (0.1 * fixed.exp() + 0.9 * teacher.exp()).log()
        log_p = z.log_softmax(-1)
        return (log_p.exp() * (log_p - log_mixture)).sum()

    (expected,) = torch.autograd.grad(loss(student), student)
    (found,) = torch.autograd.grad(pd.skewed_reverse_kl(student.log_softmax(-1), teacher).sum(), student)
    close(found, expected)


def test_equal_teachers_leave_pi_plus_as_the_target():
    positive = draw(4, 6)
    target, factor = pd.align_distil_target(positive, positive, beta=0.1)
    close(target, positive)
    close(factor, torch.full((4,), 0.1 / 1e-3, dtype=torch.float64))
    assert not pd.advantage_loss(draw(4, 6, seed=2).log_softmax(-1), positive, positive).any()


@given(st.integers(0, 1000), st.floats(0.1, 5), st.floats(0.5, 4))
@settings(max_examples=20, deadline=None)
def test_align_distil_does_not_depend_on_the_constant_of_logits(seed, shift, strength):
    student, positive, negative = (draw(3, 6, seed=seed + i) for i in range(3))
    one = pd.align_distil_loss(student, positive, negative, strength=strength)
    other = pd.align_distil_loss(student + shift, positive.log_softmax(-1), negative - shift, strength=strength)
    close(one, other, 1e-8)
    assert (one >= -1e-12).all()


@given(st.integers(0, 1000), st.floats(-3, 3))
@settings(max_examples=20, deadline=None)
def test_pad_depends_on_differences_alone_and_is_symmetric_for_two_answers(seed, shift):
    student, teacher = draw(3, 2, seed=seed), draw(3, 2, seed=seed + 1)
    for form in ("published", "js", "ranking"):
        one = pd.pad_loss(student, teacher, form=form)
        close(pd.pad_loss(student + shift, teacher, form=form), one, 1e-8)
        close(pd.pad_loss(student.flip(-1), teacher.flip(-1), form=form), one, 1e-8)
    for form in ("published", "js"):
        close(pd.pad_loss(student, student, form=form), torch.zeros(3, dtype=torch.float64))
        assert (pd.pad_loss(student, teacher, form=form) >= -1e-12).all()


def test_values_at_temperature_one_are_nothing_and_leave_dpo():
    values = pd.state_values(draw(4, 7).log_softmax(-1), temperature=1.0)
    close(values, torch.zeros(4, dtype=torch.float64))
    inputs = [draw(4, seed=i) for i in range(4)]
    found = pd.tvkd_loss(*inputs, chosen_value=values, rejected_value=values, beta=0.3)
    for left, right in zip(found, dpo_loss(*inputs, beta=0.3), strict=True):
        close(left, right)


def test_impossible_tokens_change_nothing():
    """A masked vocabulary: values and gradients are those without these tokens."""
    sides = [draw(3, 5, seed=i) for i in range(3)]
    wide = [torch.cat([values, torch.full((3, 2), -torch.inf, dtype=torch.float64)], -1) for values in sides]
    for loss in (
        pd.align_distil_loss,
        lambda s, p, n: pd.advantage_loss(*(values.log_softmax(-1) for values in (s, p, n))),
        lambda s, p, n: pd.skewed_forward_kl(s.log_softmax(-1), p.log_softmax(-1)),
        lambda s, p, n: pd.skewed_reverse_kl(s.log_softmax(-1), p.log_softmax(-1)),
    ):
        one, other = sides[0].clone().requires_grad_(), wide[0].clone().requires_grad_()
        values = loss(one, *sides[1:]), loss(other, *wide[1:])
        close(values[1], values[0])
        values[0].sum().backward()
        values[1].sum().backward()
        close(other.grad[:, :5], one.grad)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda z: pd.align_distil_loss(z, z, z, beta=0.0), "beta is 0.0"),
        (lambda z: pd.align_distil_loss(z, z, z, strength=-1.0), "strength is -1.0"),
        (lambda z: pd.align_distil_loss(z, z, z, form="x"), "form is 'x'"),
        (lambda z: pd.pad_loss(z, z, form="x"), "form is 'x'"),
        (lambda z: pd.ranking_logprobs(draw(1, 6)), "there are 6 answers"),
        (lambda z: pd.skewed_forward_kl(z, z, 1.0), "skew is 1.0"),
        (lambda z: pd.distillm2_loss(z, z, balance=3.0), "balance is 3.0"),
        (lambda z: pd.state_values(z, temperature=0.0), "temperature is 0.0"),
        (lambda z: pd.tvkd_loss(z, z, z, z, chosen_value=z, rejected_value=z, beta=0.1, gamma=2.0), "gamma is 2.0"),
    ],
)
def test_settings_that_make_no_sense(call, text):
    with pytest.raises(ValueError, match=text):
        call(draw(3))
