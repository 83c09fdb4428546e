"""ULD, MinED and ALM: the published numbers, finite differences, invariances, and the map between two vocabularies."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkd.method.baselines import alm_loss, min_ed_loss, minimal_edit_vocabulary_map, uld_loss
from prefkd.method.divergences import divergence
from prefkd.method.edit_distance import match_tokens


def padded(tensor, columns, value):
    """(B, S, ...) with so many columns more, at the end."""
    more = tensor.new_full((len(tensor), columns, *tensor.shape[2:]), value)
    return torch.cat([tensor, more], 1)


# ULD


def uld_case(seed=0, counts=((3, 1, 4), (2, 3, 4)), dtype=torch.float64):
    """Logits and SHIFTED labels of student and teacher; `counts` says how many targets each example has."""
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(3, 6, 7, generator=generator), torch.randn(3, 5, 9, generator=generator)]
    labels = [torch.full((3, 6), -100), torch.full((3, 5), -100)]
    for side, vocabulary in zip(range(2), (7, 9), strict=True):
        for row, count in enumerate(counts[side]):
            labels[side][row, 1 : 1 + count] = torch.randint(vocabulary, (count,), generator=generator)
    return [*(values.to(dtype).requires_grad_() for values in logits), *labels]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_published_uld(golden: Path, dtype):
    stored = np.load(golden / "uld.npz")
    cases = [key.split("/")[0] for key in stored if key.endswith("/uld_loss")]
    assert cases
    for case in cases:
        student, teacher = (
            torch.from_numpy(stored[f"{case}/in/{side}_logits"]).to(dtype) for side in ("student", "teacher")
        )
        labels = (torch.from_numpy(stored[f"{case}/in/{name}"]) for name in ("label", "teacher_label"))
        found = uld_loss(student.requires_grad_(), teacher.requires_grad_(), *labels)
        torch.testing.assert_close(found.item(), stored[f"{case}/uld_loss"].item(), rtol=1e-6, atol=0)
        found.backward()
        expected = torch.from_numpy(stored[f"{case}/grad_student"]).to(dtype)
        torch.testing.assert_close(student.grad, expected, rtol=1e-5, atol=1e-6)
        assert teacher.grad is None


def test_uld_pairs_targets_by_their_number():
    student, teacher, student_labels, teacher_labels = uld_case()
    expected = torch.zeros((), dtype=torch.float64)
    for row in range(3):
        places = zip(
            *((labels[row] != -100).nonzero().flatten() for labels in (student_labels, teacher_labels)), strict=False
        )
        for s, t in places:
            p, q = (
                [0.0] * (9 - len(values)) + sorted(values)
                for values in (student[row, s].softmax(-1).tolist(), teacher[row, t].softmax(-1).tolist())
            )
            expected += sum(abs(x - y) for x, y in zip(p, q, strict=True))
    torch.testing.assert_close(uld_loss(student, teacher, student_labels, teacher_labels), expected)


def test_uld_ignores_which_token_is_likely():
    student, teacher, *labels = uld_case()
    found = uld_loss(student, teacher, *labels)
    shuffled = uld_loss(student[..., torch.randperm(7)], teacher[..., torch.randperm(9)], *labels)
    torch.testing.assert_close(shuffled, found)
    torch.testing.assert_close(uld_loss(teacher, student, *labels[::-1]), found)  # symmetric
    wider = torch.nn.functional.pad(student, (0, 4), value=-math.inf)  # tokens that never come
    torch.testing.assert_close(uld_loss(wider, teacher, *labels), found)


@given(seed=st.integers(0, 10**6), counts=st.tuples(*[st.tuples(*[st.integers(0, 4)] * 3)] * 2))
@settings(max_examples=20, deadline=None)
def test_uld_of_a_batch_is_the_sum_of_its_examples_whatever_the_padding(seed, counts):
    case = uld_case(seed, counts)
    found = uld_loss(*case)
    singles = [uld_loss(*(part[row : row + 1] for part in case)) for row in range(3)]
    torch.testing.assert_close(found, sum(singles))
    assert 0 <= found <= 2 * sum(map(min, *counts))
    wider = (padded(part, 2, math.nan if part.is_floating_point() else -100) for part in case)
    torch.testing.assert_close(uld_loss(*wider), found)


def test_uld_gradients_agree_with_finite_differences():
    student, *rest = uld_case()
    assert torch.autograd.gradcheck(lambda logits: uld_loss(logits, *rest), [student])


def test_uld_is_zero_and_still_between_equals():
    student, _, labels, _ = uld_case()
    found = uld_loss(student, student.detach(), labels, labels)
    assert found == 0
    found.backward()
    assert (student.grad == 0).all()


def test_uld_without_targets_is_zero_with_a_zero_gradient():
    student, teacher, *labels = uld_case(counts=((0, 2, 0), (3, 0, 0)))
    uld_loss(student, teacher, *labels).backward()
    assert (student.grad == 0).all()


def test_uld_is_finite_where_a_vocabulary_is_masked():
    student, teacher, *labels = uld_case()
    masked = student.detach().clone()
    masked[..., 2] = -math.inf
    masked.requires_grad_()
    found = uld_loss(masked, teacher.masked_fill(torch.arange(9) == 3, -math.inf), *labels)
    found.backward()
    assert found.isfinite()
    assert masked.grad.isfinite().all()


# MinED

STUDENT_TOKENS = ["<s>", "Ġthe", "Ġcat", "s", "Ġsat", "Ġun", "believ", "able", ".", "the"]
TEACHER_TOKENS = ["<s>", "▁the", "▁cats", "▁sat", "▁un", "be", "liev", "able", ".", "▁cat", "!", "▁the"]


def min_ed_case(dtype=torch.float64):
    """Two examples: `the cats sat .` and `unbelievable .`, the last target being what comes after."""
    generator = torch.Generator().manual_seed(0)
    student_ids = torch.tensor([[0, 1, 2, 3, 4, 8], [0, 5, 6, 7, 8, 0]])
    teacher_ids = torch.tensor([[0, 1, 2, 3, 8], [4, 5, 6, 7, 8]])
    return {
        "student_logits": torch.randn(2, 6, 10, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(),
        "teacher_logits": torch.randn(2, 5, 12, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(),
        "student_labels": torch.tensor([[-100, 2, 3, 4, 8, 0], [-100, 6, 7, 8, 0, -100]]),
        "teacher_labels": torch.tensor([[-100, 2, 3, 8, 0], [5, 6, 7, 8, 0]]),
        "student_input_ids": student_ids,
        "teacher_input_ids": teacher_ids,
        "student_tokens": STUDENT_TOKENS,
        "teacher_tokens": TEACHER_TOKENS,
        "teacher_to_student": minimal_edit_vocabulary_map(STUDENT_TOKENS, TEACHER_TOKENS),
        "temperature": 2.0,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_published_min_ed(golden: Path, dtype):
    stored = np.load(golden / "mined.npz")
    meta = json.loads((golden / "mined_meta.json").read_text())
    cases = [key.split("/")[0] for key in stored if key.endswith("/kd_loss")]
    assert cases
    for case in cases:
        student, teacher = (
            torch.from_numpy(stored[f"{case}/in/{side}_logits"]).to(dtype) for side in ("student", "teacher")
        )
        labels = (torch.from_numpy(stored[f"{case}/in/{name}"]) for name in ("label", "teacher_label"))
        found = min_ed_loss(
            student.requires_grad_(),
            teacher.requires_grad_(),
            *labels,
            student_input_ids=torch.from_numpy(stored[f"{case}/in/input_ids"]),
            teacher_input_ids=torch.from_numpy(stored[f"{case}/in/teacher_input_ids"]),
            student_tokens=meta["student_vocab"],
            teacher_tokens=meta["teacher_vocab"],
            teacher_to_student=torch.from_numpy(stored["map/tea2stu"]),
            temperature=2.0,
        )
        torch.testing.assert_close(found.item(), stored[f"{case}/kd_loss"].item(), rtol=1e-6, atol=0)
        found.backward()
        expected = torch.from_numpy(stored[f"{case}/grad_student"]).to(dtype)
        torch.testing.assert_close(student.grad, expected, rtol=1e-5, atol=1e-6)
        assert teacher.grad is None


def test_min_ed_is_forward_kl_where_tokens_agree_and_certainty_elsewhere():
    case = min_ed_case()
    student, teacher, labels = case["student_logits"], case["teacher_logits"], case["student_labels"]
    # ids of the student, each with the first of the teacher's that the map takes there
    lenders = {0: 0, 1: 1, 2: 2, 3: 5, 4: 3, 5: 4, 6: 6, 7: 7, 8: 8}
    first_of = case["teacher_to_student"].tolist()
    assert lenders == {own: first_of.index(own) for own in range(10) if own in first_of}
    # Student position -> teacher position. `s` at (0, 3) meets `cats`, which the map takes to `cat`; `un` at (1, 1)
    # meets both `un` and `be`.
    agree = {(0, 1): 1, (0, 2): 2, (0, 4): 3, (0, 5): 4, (1, 2): 2, (1, 3): 3, (1, 4): 4}
    expected = torch.zeros((), dtype=torch.float64)
    for row, position in (labels != -100).nonzero().tolist():
        other = agree.get((row, position))
        logits = torch.full((10,), -1e5, dtype=torch.float64)
        if other is None:
            logits[labels[row, position]] = 100.0
        else:
            for own, theirs in lenders.items():
                logits[own] = teacher[row, other, theirs]
        expected += divergence("forward_kl", student[row, position], logits, temperature=2.0).detach()
    torch.testing.assert_close(min_ed_loss(**case), expected)


def test_min_ed_gradients_agree_with_finite_differences():
    case = min_ed_case()
    student = case.pop("student_logits")
    assert torch.autograd.gradcheck(lambda logits: min_ed_loss(student_logits=logits, **case), [student])


def test_min_ed_of_a_batch_is_the_sum_of_its_examples_whatever_the_padding():
    case = min_ed_case()
    found = min_ed_loss(**case)
    batched = [
        name
        for name in case
        if name.startswith(("student_", "teacher_")) and not name.endswith(("tokens", "to_student"))
    ]
    singles = [min_ed_loss(**{**case, **{name: case[name][row : row + 1] for name in batched}}) for row in range(2)]
    torch.testing.assert_close(found, sum(singles))
    fill = {"logits": math.nan, "labels": -100, "ids": 3}
    wider = {name: padded(case[name], 2, fill[name.rsplit("_", 1)[1]]) for name in batched}
    torch.testing.assert_close(min_ed_loss(**{**case, **wider}), found)


@pytest.mark.parametrize("side", ["student_labels", "teacher_labels"])
def test_min_ed_skips_an_example_without_a_partner(side):
    case = min_ed_case()
    first = {
        name: value[:1] if isinstance(value, torch.Tensor) and value.dim() > 1 else value
        for name, value in case.items()
    }
    case[side][1] = -100
    torch.testing.assert_close(min_ed_loss(**case), min_ed_loss(**first))
    case[side][0] = -100
    found = min_ed_loss(**case)
    assert found == 0
    found.backward()
    assert (case["student_logits"].grad == 0).all()


def test_min_ed_is_zero_where_the_student_is_the_teacher():
    case = min_ed_case()
    case |= {
        name.replace("student", "teacher"): value.detach() if name.endswith("logits") else value
        for name, value in case.items()
        if name.startswith("student")
    }
    case["teacher_to_student"] = torch.arange(10)
    found = min_ed_loss(**case)
    assert found.abs() < 1e-12


def test_min_ed_is_finite_where_a_vocabulary_is_masked():
    case = min_ed_case()
    student, teacher = case["student_logits"].detach().clone(), case["teacher_logits"].detach().clone()
    student[..., 2] = teacher[..., 8] = -math.inf
    found = min_ed_loss(**{**case, "student_logits": student.requires_grad_(), "teacher_logits": teacher})
    found.backward()
    assert found.isfinite()
    assert student.grad.isfinite().all()


def test_min_ed_of_tokenizers_with_more_tokens_than_their_heads():
    case = min_ed_case()
    expected = min_ed_loss(**case)
    case["teacher_to_student"][10] = 10  # `!`, which lends to nobody and is in neither text
    case["teacher_to_student"] = torch.cat([case["teacher_to_student"], torch.tensor([9, 11])])
    case |= {"student_tokens": [*STUDENT_TOKENS, "!", "?"], "teacher_tokens": [*TEACHER_TOKENS, "▁a", "?"]}
    assert min_ed_loss(**case) == expected


def test_a_map_to_an_id_below_0_is_refused():
    case = min_ed_case()
    case["teacher_to_student"][3] = -1
    with pytest.raises(ValueError, match="names an id below 0"):
        min_ed_loss(**case)


def test_no_baseline_changes_its_inputs():
    for loss, case in ((uld_loss, dict(enumerate(uld_case()))), (min_ed_loss, min_ed_case())):
        tensors = {name: value for name, value in case.items() if isinstance(value, torch.Tensor)}
        copies = {name: value.detach().clone() for name, value in tensors.items()}
        (loss(**case) if loss is min_ed_loss else loss(*case.values())).backward()
        for name, value in tensors.items():
            assert torch.equal(value, copies[name])


# Alignment and vocabulary map


def edit_distance(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        new = [i]
        for j, y in enumerate(b, 1):
            new.append(min(row[j - 1] + (x != y), row[j] + 1, new[-1] + 1))
        row = new
    return row[-1]


def bare(token):
    return token.replace("▁", "").replace("Ġ", "")


def cheapest_path(first, second):
    total = {(0, 0): edit_distance(bare(first[0]), bare(second[0]))}
    for i in range(len(first)):
        for j in range(len(second)):
            if i or j:
                before = [total[move] for move in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if move in total]
                total[i, j] = min(before) + edit_distance(bare(first[i]), bare(second[j]))
    return total[len(first) - 1, len(second) - 1]


words = st.text("ab▁Ġc", max_size=6)


def test_published_alignments(golden: Path):
    meta = json.loads((golden / "mined_meta.json").read_text())
    assert meta["dtw"]
    for case in meta["dtw"]:
        assert match_tokens(case["teacher"], case["student"]) == [tuple(match) for match in case["matches"]]


@given(first=st.lists(words, min_size=1, max_size=6), second=st.lists(words, min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_an_alignment_is_a_cheapest_path(first, second):
    matches = match_tokens(first, second)
    assert matches[0] == (0, 0)
    assert matches[-1] == (len(first) - 1, len(second) - 1)
    steps = [(c - a, d - b) for (a, b), (c, d) in itertools.pairwise(matches)]
    assert set(steps) <= {(1, 1), (1, 0), (0, 1)}
    cost = sum(edit_distance(bare(first[i]), bare(second[j])) for i, j in matches)
    assert cost == cheapest_path(first, second)


def test_the_published_vocabulary_map(golden: Path):
    meta = json.loads((golden / "mined_meta.json").read_text())
    found = minimal_edit_vocabulary_map(meta["student_vocab"], meta["teacher_vocab"])
    assert found.tolist() == [meta["tea2stu"][str(i)] for i in range(len(meta["teacher_vocab"]))]


@given(student=st.lists(words, min_size=1, max_size=12), teacher=st.lists(words, max_size=8))
@settings(max_examples=200, deadline=None)
def test_the_vocabulary_map_finds_the_nearest_token(student, teacher):
    def expected(token):
        same = [i for i, own in enumerate(student) if own.replace("▁", "Ġ") == token.replace("▁", "Ġ")]
        if same:
            return same[0]
        blanks = len(token) - len(bare(token))
        return min(
            range(len(student)),
            key=lambda i: (
                edit_distance(bare(student[i]), bare(token)),
                abs(len(student[i]) - len(bare(student[i])) - blanks),
                i,
            ),
        )

    found = minimal_edit_vocabulary_map(student, teacher)
    assert found.dtype == torch.int64
    assert found.tolist() == [expected(token) for token in teacher]


def test_equally_near_tokens_are_told_apart_by_blanks_then_by_id():
    student = ["bat", "Ġbat", "Ġrat", "rat", "ĠĠ", "Ġ"]
    assert minimal_edit_vocabulary_map(student, ["cat", "▁cat", "▁rat", "▁▁", "▁▁▁", "▁"]).tolist() == [
        0,
        1,
        2,
        4,
        4,
        5,
    ]


# ALM


def alm_case(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (-6 * torch.rand(3, 5, generator=generator, dtype=torch.float64) - 0.01 for _ in range(2))
    mask = torch.arange(5) < torch.tensor([5, 2, 3])[:, None]
    return student.to(dtype).requires_grad_(), teacher.to(dtype).requires_grad_(), mask


@pytest.mark.parametrize("temperature", [1.0, 3.0, 100.0])
def test_alm_is_the_mean_binary_divergence_of_parents(temperature):
    student, teacher, mask = alm_case()
    losses = []
    for a, b in zip(student[mask].tolist(), teacher[mask].tolist(), strict=True):
        p, q = math.exp(a / temperature), math.exp(b / temperature)
        losses.append(q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p)))
    found = alm_loss(student, teacher, mask, temperature=temperature)
    assert found.item() == pytest.approx(sum(losses) / 10)


@pytest.mark.parametrize("temperature", [1.0, 3.0, 100.0])
def test_alm_gradients_agree_with_finite_differences(temperature):
    student, teacher, mask = alm_case()
    teacher = teacher.detach()
    assert torch.autograd.gradcheck(lambda logps: alm_loss(logps, teacher, mask, temperature=temperature), [student])


@given(seed=st.integers(0, 10**6), temperature=st.floats(0.5, 200))
@settings(max_examples=30, deadline=None)
def test_alm_is_never_negative_and_zero_between_equals(seed, temperature):
    student, teacher, mask = alm_case(seed)
    assert alm_loss(student, teacher, mask, temperature=temperature) > 0
    same = alm_loss(student, student, mask, temperature=temperature)
    assert same == 0
    (gradient,) = torch.autograd.grad(same, student)
    assert gradient.abs().max() < 1e-9


def test_the_teacher_of_alm_is_a_constant_and_padding_takes_no_part():
    student, teacher, mask = alm_case()
    found = alm_loss(student, teacher, mask, temperature=2.0)
    found.backward()
    assert teacher.grad is None
    assert (student.grad[~mask] == 0).all()
    dirty = [side.detach().masked_fill(~mask, math.nan) for side in (student, teacher)]
    assert alm_loss(*dirty, mask, temperature=2.0) == found


def test_alm_of_a_batch_is_the_weighted_mean_of_its_examples():
    student, teacher, mask = alm_case()
    singles = [alm_loss(student[[i]], teacher[[i]], mask[[i]], temperature=2.0) for i in range(3)]
    whole = alm_loss(student, teacher, mask, temperature=2.0)
    torch.testing.assert_close(whole * 10, singles[0] * 5 + singles[1] * 2 + singles[2] * 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 100.0])
def test_alm_is_finite_for_certain_and_for_impossible_parents(dtype, temperature):
    edges = torch.tensor([0.0, -1e-9, -1e-6, -1.0, -200.0, -1e5, -math.inf], dtype=dtype)
    student, teacher = (side.contiguous() for side in torch.meshgrid(edges, edges, indexing="ij"))
    student.requires_grad_()
    found = alm_loss(student, teacher, torch.ones_like(student, dtype=torch.bool), temperature=temperature)
    found.backward()
    assert found.isfinite()
    assert student.grad.isfinite().all()


def test_a_student_that_is_too_certain_learns_of_it():
    student = torch.zeros(1, 1, requires_grad=True)
    alm_loss(student, torch.tensor([[-1.0]]), torch.ones(1, 1, dtype=torch.bool), temperature=1.0).backward()
    assert student.grad.item() > 0


def test_no_parents_give_zero_and_a_zero_gradient():
    student, teacher, mask = alm_case()
    found = alm_loss(student, teacher, torch.zeros_like(mask), temperature=1.0)
    found.backward()
    assert found == 0
    assert (student.grad == 0).all()


def test_a_temperature_that_means_nothing_is_refused():
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="must be above 0"):
            alm_loss(*alm_case(), temperature=temperature)
        with pytest.raises(ValueError, match="must be above 0"):
            min_ed_loss(**{**min_ed_case(), "temperature": temperature})
