"""Divergences: the published numbers with gradients, finite differences, and what stays finite where those do not."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkd.method.divergences import DIVERGENCES, divergence

NAMES = sorted(DIVERGENCES)


def two(seed=0, shape=(3, 7), scale=2.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [
        (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
        for _ in range(2)
    ]


def by_hand(name, z, other, skew=0.1, alpha=0.5):
    """The formulas on lists of probabilities, one position."""
    p, q = z.softmax(-1).tolist(), other.softmax(-1).tolist()

    def kl(a, b):
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))

    def mix(a, b, share):
        return [share * x + (1 - share) * y for x, y in zip(a, b, strict=True)]

    if name == "adaptive_kl":
        head = tail = cumulative = 0.0
        for x, y in sorted(zip(q, p, strict=True)):
            cumulative += x
            head, tail = (head, tail + abs(x - y)) if cumulative <= alpha else (head + abs(x - y), tail)
        return (head * kl(q, p) + tail * kl(p, q)) / (head + tail)
    return {
        "forward_kl": lambda: kl(q, p),
        "reverse_kl": lambda: kl(p, q),
        "skewed_forward_kl": lambda: kl(q, mix(q, p, skew)),
        "skewed_reverse_kl": lambda: kl(p, mix(p, q, skew)),
        "js_divergence": lambda: (kl(q, mix(p, q, 0.5)) + kl(p, mix(p, q, 0.5))) / 2,
    }[name]()


# Values


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_published_divergences_with_gradients(golden: Path, dtype):
    stored = np.load(golden / "divergences.npz")
    setting_of = re.compile(r"([^/]+)/([^/]+)/(T[\d.]+_tea[\d.]+_[01])/none")  # other keys have other options
    cases = [found.groups() for key in stored if (found := setting_of.fullmatch(key))]
    assert {name for _, name, _ in cases} == set(NAMES)
    for case, name, setting in cases:
        temperature, teacher_temperature, used = setting.split("_")
        student, teacher = (
            torch.from_numpy(stored[f"{case}/{side}_logits"]).to(dtype).requires_grad_()
            for side in ("student", "teacher")
        )
        found = divergence(
            name,
            student,
            teacher,
            temperature=float(temperature[1:]),
            teacher_temperature=float(teacher_temperature[3:]) if used == "1" else 1.0,
        )
        assert found.dtype == dtype
        total = found[torch.from_numpy(stored[f"{case}/label"]) != -100].sum()
        total.backward()
        expected = f"{case}/{name}/{setting}"
        for values, part in (
            (found, "none"),
            (total, "sum"),
            (student.grad, "grad_student"),
            (teacher.grad, "grad_teacher"),
        ):
            if f"{expected}/{part}" in stored:
                published = torch.from_numpy(stored[f"{expected}/{part}"]).to(dtype)
                torch.testing.assert_close(values.detach(), published, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("option", [{}, {"skew": 0.0}, {"skew": 0.6}, {"skew": 1.0}, {"alpha": 0.1}, {"alpha": 0.9}])
def test_each_is_its_formula(name, option):
    student, teacher = two()
    options = {"adaptive_alpha" if key == "alpha" else key: value for key, value in option.items()}
    found = divergence(name, student, teacher, temperature=2.0, teacher_temperature=1.5, **options)
    expected = [by_hand(name, z / 2, other / 3, **option) for z, other in zip(student, teacher, strict=True)]
    # The published e = 1e-9 of the JS divergence is in no formula of the paper.
    close = {"rtol": 0, "atol": 1e-7 if name == "js_divergence" else 1e-12}
    torch.testing.assert_close(found.detach(), torch.tensor(expected, dtype=torch.float64), **close)


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 30), temperature=st.floats(0.3, 5))
@settings(max_examples=20, deadline=None)
def test_none_is_negative_and_all_are_zero_between_equals(name, seed, scale, temperature):
    student, teacher = two(seed, scale=scale)
    assert (divergence(name, student, teacher, temperature=temperature) > -1e-8).all()
    assert (divergence(name, student, student, temperature=temperature).abs() < 1e-12).all()


def test_the_skewed_and_the_js_divergence_are_bounded():
    student = torch.tensor([[200.0, -200.0]])
    teacher = torch.tensor([[-200.0, 200.0]])
    skewed = [divergence(name, student, teacher).item() for name in ("skewed_forward_kl", "skewed_reverse_kl")]
    assert skewed == pytest.approx([math.log(10)] * 2)
    assert divergence("js_divergence", student, teacher).item() == pytest.approx(math.log(2))
    assert divergence("forward_kl", student, teacher).item() == pytest.approx(400)


@pytest.mark.parametrize("name", NAMES)
def test_positions_do_not_depend_on_each_other(name):
    student, teacher = two(shape=(2, 4, 7))
    whole = divergence(name, student, teacher)
    assert whole.shape == (2, 4)
    torch.testing.assert_close(divergence(name, student[1, 2], teacher[1, 2]), whole[1, 2])


# Gradients


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_both_sides_agree_with_finite_differences(name):
    student, teacher = two(shape=(2, 5))
    if name == "adaptive_kl":  # its mixture is a constant in the gradient, so both sides are held together
        weights = adaptive_share(student, teacher)
        found = torch.autograd.grad(divergence(name, student, teacher).sum(), [student, teacher])
        forward, reverse = (divergence(kl, student, teacher) for kl in ("forward_kl", "reverse_kl"))
        expected = torch.autograd.grad((weights * forward + (1 - weights) * reverse).sum(), [student, teacher])
        torch.testing.assert_close(found, expected)
        return
    assert torch.autograd.gradcheck(lambda *both: divergence(name, *both, temperature=1.7), [student, teacher])


def adaptive_share(student, teacher):
    """Share of the forward KL in adaptive_kl, from its value."""
    forward, reverse, mixed = (divergence(kl, student, teacher) for kl in ("forward_kl", "reverse_kl", "adaptive_kl"))
    return ((mixed - reverse) / (forward - reverse)).detach()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equal_distributions_give_zero_and_no_gradient(name, dtype):
    student, _ = two(dtype=dtype)
    teacher = student.detach().clone().requires_grad_()
    found = divergence(name, student, teacher)
    assert found.abs().max() < 1e-6
    found.sum().backward()
    for side in (student, teacher):
        assert side.grad.isfinite().all()
        assert side.grad.abs().max() < 1e-6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", ["student", "teacher", "both", "different"])
def test_a_masked_vocabulary_stays_finite(name, where):
    logits = {"student": two()[0].detach(), "teacher": two()[1].detach()}
    if where != "teacher":
        logits["student"][:, 2] = -math.inf
    if where != "student":
        logits["teacher"][:, 4 if where == "different" else 2] = -math.inf
    sides = [side.requires_grad_() for side in logits.values()]
    found = divergence(name, *sides, temperature=2.0)
    assert found.isfinite().all()
    found.sum().backward()
    for side in sides:
        assert side.grad.isfinite().all()
        assert (side.grad[side.isneginf()] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_what_both_sides_mask_might_as_well_not_exist(name):
    short = two()
    long = [torch.nn.functional.pad(side.detach(), (0, 3), value=-math.inf) for side in short]
    torch.testing.assert_close(divergence(name, *long), divergence(name, *short))


def test_what_one_side_masks_is_left_out_of_the_sum():
    student, teacher = (side.detach() for side in two(shape=(7,)))
    student[3] = -math.inf
    p, q = student.softmax(-1), teacher.softmax(-1)
    rest = torch.arange(7) != 3
    expected = (q * (q / p).log())[rest].sum()
    torch.testing.assert_close(divergence("forward_kl", student, teacher), expected)


@pytest.mark.parametrize("name", NAMES)
def test_extreme_logits_stay_finite(name):
    student = torch.tensor([[1e4, -1e4, 0, 3]], requires_grad=True)
    teacher = torch.tensor([[-1e5, 100.0, -1e5, -1e5]], requires_grad=True)
    found = divergence(name, student, teacher)
    found.sum().backward()
    assert found.isfinite().all()
    assert student.grad.isfinite().all()
    assert teacher.grad.isfinite().all()


# Arguments


@pytest.mark.parametrize("name", NAMES)
def test_inputs_stay_as_they_are(name):
    student, teacher = two()
    copies = student.detach().clone(), teacher.detach().clone()
    divergence(name, student, teacher, temperature=2.0).sum().backward()
    assert torch.equal(student, copies[0])
    assert torch.equal(teacher, copies[1])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("kl", {}, "no divergence is called 'kl'; there are forward_kl"),
        ("forward_kl", {"temperature": 0.0}, "temperature is 0.0"),
        ("forward_kl", {"teacher_temperature": -1.0}, "teacher_temperature is -1.0"),
        ("skewed_forward_kl", {"skew": 1.5}, "skew is 1.5"),
        ("adaptive_kl", {"adaptive_alpha": -0.1}, "adaptive_alpha is -0.1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        divergence(name, *two(), **options)


def test_two_vocabularies_are_refused():
    with pytest.raises(ValueError, match="7 and 8 entries"):
        divergence("forward_kl", torch.zeros(1, 7), torch.zeros(1, 8))
