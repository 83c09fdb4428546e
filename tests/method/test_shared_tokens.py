"""Distributions across tokenizers: the published numbers, limits, gradients, and the maps between vocabularies."""

import json
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkd.method.divergences import DIVERGENCES, divergence, generalised_jsd
from prefkd.method.shared_tokens import (
    SharedTokens,
    TokenMap,
    common_pairs,
    find_shared_tokens,
    hybrid_divergence,
    image,
    lumped_divergence,
    make_token_map,
    one_token_parents,
    piece_weights,
    project,
    projected_kl,
    projection_weights,
    renormalised_divergence,
    shared_mass,
)

CLOSE = {"rtol": 1e-5, "atol": 2e-6}  # of numbers that were computed in float32


def cases(path: Path) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    stored = np.load(path)
    for case in sorted({key.split("/")[0] for key in stored}):
        yield (
            case,
            {k.removeprefix(f"{case}/"): torch.from_numpy(stored[k]) for k in stored if k.startswith(f"{case}/")},
        )


def logits(seed: int = 0, sizes=((5, 11), (5, 13)), dtype=torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(2 * torch.randn(*size, generator=generator, dtype=torch.float64)).to(dtype) for size in sizes]


SHARED = SharedTokens(torch.tensor([0, 3, 4, 10]), torch.tensor([2, 12, 0, 7]))


# The shared vocabulary and the parents of one token


def test_shared_tokens_are_one_to_one_and_the_first_id_wins():
    student = [b"a", None, b" b", b"a", b"", b"\xe4", b"c"]
    teacher = [b"c", b" b", b"b", b"\xe4", b" b", b"", None, b"a"]
    found = find_shared_tokens(student, teacher)
    assert list(zip(*map(torch.Tensor.tolist, found), strict=True)) == [(0, 7), (2, 1), (5, 3), (6, 0)]
    found = find_shared_tokens(student, teacher, ends=(1, 6))
    assert (found.student.tolist(), found.teacher.tolist()) == ([0, 1, 2, 5, 6], [7, 6, 1, 3, 0])
    found = find_shared_tokens(student, teacher, ends=(6, 1))  # ends that are also text are a pair of their own
    assert list(zip(*map(torch.Tensor.tolist, found), strict=True)) == [(0, 7), (5, 3), (6, 1)]
    assert [len(ids) for ids in find_shared_tokens([b"a"], [b"b"])] == [0, 0]


@given(
    student=st.lists(st.sampled_from([b"a", b"b", b"ab", b"", None]), max_size=8),
    teacher=st.lists(st.sampled_from([b"a", b"b", b"ab", b"", None]), max_size=8),
)
@settings(max_examples=50, deadline=None)
def test_shared_tokens_have_equal_bytes(student, teacher):
    found = find_shared_tokens(student, teacher)
    for own, other in zip(*map(torch.Tensor.tolist, found), strict=True):
        assert student[own] and student[own] == teacher[other]
        assert student.index(student[own]) == own and teacher.index(teacher[other]) == other
    assert len(found.student) == len({text for text in student if text} & {text for text in teacher if text})


def test_parents_of_one_token_on_both_sides():
    own, other = one_token_parents(torch.tensor([4, 5, 5, 6, 7, 8, 8]), torch.tensor([4, 5, 6, 6, 7, 8]))
    assert (own.tolist(), other.tolist()) == ([0, 4], [0, 4])
    own, other = one_token_parents(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]))
    assert (own.tolist(), other.tolist()) == ([], [])


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=12))
@settings(max_examples=50, deadline=None)
def test_both_sides_of_a_one_token_parent_are_the_same_parent(lengths):
    sides = [
        torch.arange(len(lengths)).repeat_interleave(torch.tensor([pair[side] for pair in lengths])) + 7
        for side in (0, 1)
    ]
    own, other = one_token_parents(*sides)
    expected = [7 + parent for parent, pair in enumerate(lengths) if pair == (1, 1)]
    assert sides[0][own].tolist() == sides[1][other].tolist() == expected


# Shared tokens and the rest


def test_published_renormalised_divergences(golden: Path):
    names = {
        "kl_div": "forward_kl",
        "reverse_kl_div": "reverse_kl",
        "skewed_kl_div": "skewed_forward_kl",
        "skewed_rkl_div": "skewed_reverse_kl",
        "adaptive_kl_div": "adaptive_kl",
    }
    for _, value in cases(golden / "simple_ctkd.npz"):
        shared = SharedTokens(value["shared_student_ids"], value["shared_teacher_ids"])
        for key in [key for key in value if key.endswith("/losses")]:
            name, temperature, _ = key.split("/")
            student = value["student_logits"].requires_grad_()
            found = renormalised_divergence(
                names[name], student, value["teacher_logits"], shared, temperature=float(temperature[1:])
            )
            torch.testing.assert_close(found, value[key], **CLOSE)
            (gradient,) = torch.autograd.grad(found.sum(), student)
            torch.testing.assert_close(gradient, value[f"{name}/{temperature}/grad_student"], **CLOSE)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_lumped_forward_kl_is_its_formula(temperature):
    student, teacher = logits()
    p, q = (values.div(temperature).softmax(-1) for values in (student, teacher))
    p_a, q_a = p[:, SHARED.student], q[:, SHARED.teacher]
    p_r, q_r = 1 - p_a.sum(-1), 1 - q_a.sum(-1)
    expected = (q_a * (q_a / p_a).log()).sum(-1) + q_r * (q_r / p_r).log()
    found = lumped_divergence("forward_kl", student, teacher, SHARED, temperature=temperature)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "name", sorted(DIVERGENCES.keys() - {"adaptive_kl"})
)  # whose shares are constants to its gradient
@pytest.mark.parametrize("form", [lumped_divergence, renormalised_divergence])
def test_gradients_agree_with_finite_differences(name, form):
    student, teacher = logits()
    student.requires_grad_(), teacher.requires_grad_()
    assert torch.autograd.gradcheck(lambda *sides: form(name, *sides, SHARED, temperature=1.5), (student, teacher))


def test_the_gradient_outside_the_shared_tokens():
    """``p_v (1 - q_r / p_r)``, and 0 where shared tokens alone are compared."""
    student, teacher = logits()
    student.requires_grad_()
    rest = [index for index in range(11) if index not in SHARED.student]
    (gradient,) = torch.autograd.grad(lumped_divergence("forward_kl", student, teacher, SHARED).sum(), student)
    p = student.detach().softmax(-1)
    masses = [1 - shared_mass(values, ids) for values, ids in zip((student, teacher), SHARED, strict=True)]
    expected = p * (1 - masses[1] / masses[0]).unsqueeze(-1)
    torch.testing.assert_close(gradient[:, rest], expected[:, rest], rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(renormalised_divergence("forward_kl", student, teacher, SHARED).sum(), student)
    assert (gradient[:, rest] == 0).all()


@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 11),
    name=st.sampled_from(["forward_kl", "reverse_kl", "js_divergence", "skewed_forward_kl", "skewed_reverse_kl"]),
)
@settings(max_examples=60, deadline=None)
def test_lumping_never_makes_a_divergence_larger(seed, count, name):
    student, teacher = logits(seed, sizes=((3, 11), (3, 11)))
    order = torch.randperm(11, generator=torch.Generator().manual_seed(seed))
    whole = divergence(name, student, teacher[:, order.argsort()])
    found = lumped_divergence(
        name,
        student,
        teacher,
        SharedTokens(torch.arange(11)[order][:count].sort().values, order.argsort()[order[:count].sort().values]),
    )
    assert (found <= whole + 1e-8).all() and (found >= -1e-8).all()
    if count == 11:
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-9)


def test_where_all_tokens_are_shared_both_forms_are_the_divergence():
    student, teacher = logits(sizes=((4, 9), (4, 9)))
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    shared = SharedTokens(torch.arange(9), order)
    for name in DIVERGENCES:
        whole = divergence(name, student, teacher[:, order], temperature=2.0)
        for form in (lumped_divergence, renormalised_divergence):
            torch.testing.assert_close(form(name, student, teacher, shared, temperature=2.0), whole, rtol=0, atol=1e-12)


def test_a_side_without_other_tokens_has_almost_nothing_there():
    student, teacher = logits(sizes=((4, 3), (4, 9)))
    student.requires_grad_()
    shared = SharedTokens(torch.arange(3), torch.tensor([1, 5, 8]))
    found = lumped_divergence("forward_kl", student, teacher, shared)
    q, log_p = teacher.softmax(-1)[:, shared.teacher], student.log_softmax(-1)
    rest = 1 - q.sum(-1)
    expected = (q * (q.log() - log_p)).sum(-1) + rest * (rest.log() - math.log(1e-8))
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)
    found.sum().backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "skewed_forward_kl", "js_divergence"])
def test_a_student_that_is_sure_of_shared_tokens_still_learns_of_the_others(name):
    """In float32 1 - sum of p is 0 here; with the sum over the others nothing is lost."""
    student = torch.tensor([[60.0, 0.0, 0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[2.0, 1.0, 3.0, 0.0]])
    found = lumped_divergence(name, student, teacher, SharedTokens(torch.tensor([0, 1]), torch.tensor([0, 1])))
    found.backward()
    wide = student.detach().double().requires_grad_()
    expected = lumped_divergence(name, wide, teacher.double(), SharedTokens(torch.tensor([0, 1]), torch.tensor([0, 1])))
    expected.backward()
    torch.testing.assert_close(found.item(), expected.item(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(student.grad, wide.grad.float(), rtol=1e-4, atol=1e-6)


def test_a_masked_vocabulary_gives_numbers():
    student, teacher = logits()
    student[0, [1, 2, 5, 6, 7, 8, 9]] = -math.inf  # nothing but shared tokens
    student[1, 3] = teacher[2, 0] = -math.inf
    student.requires_grad_()
    for form in (lumped_divergence, renormalised_divergence):
        found = form("forward_kl", student, teacher, SHARED)
        (gradient,) = torch.autograd.grad(found.sum(), student)
        assert found.isfinite().all() and gradient.isfinite().all()


def test_what_is_shared_and_what_is_not_sum_to_one():
    student, _ = logits()
    rest = torch.tensor([index for index in range(11) if index not in SHARED.student])
    both = shared_mass(student, SHARED.student, temperature=3.0) + shared_mass(student, rest, temperature=3.0)
    torch.testing.assert_close(both, torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("form", [lumped_divergence, renormalised_divergence])
def test_a_temperature_that_means_nothing_is_refused(form):
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="must be above 0"):
            form("forward_kl", *logits(), SHARED, temperature=temperature)


# Shared tokens, and the others by rank


def test_published_generalised_jsd(golden: Path):
    stored = np.load(golden / "trl_gold_uld.npz")
    value = {key: torch.from_numpy(stored[key]) for key in stored if key.startswith("gjsd/")}
    mask = value["gjsd/labels"] != -100
    for key in [key for key in value if key.startswith("gjsd/beta")]:
        beta, temperature = (float(part) for part in key.removeprefix("gjsd/beta").split("_T"))
        sides = ((value[f"gjsd/{side}_logits"][mask] / temperature).log_softmax(-1) for side in ("student", "teacher"))
        torch.testing.assert_close(generalised_jsd(*sides, beta=beta).mean(), value[key], **CLOSE)
    with pytest.raises(ValueError, match=r"must lie in 0\.\.1"):
        generalised_jsd(torch.zeros(2), torch.zeros(2), beta=1.5)


def test_published_gold_of_trl(golden: Path):
    """On its "bayesian" groups; those of several tokens are scaled by the probability of the earlier ones."""
    found_cases = [(case, value) for case, value in cases(golden / "trl_gold_uld.npz") if case != "gjsd"]
    assert found_cases
    shared = SharedTokens(torch.arange(0, 40, 2), torch.arange(0, 40, 2))
    share = len(shared.student) / 50
    for _, value in found_cases:
        student = value["in/student_logits"].requires_grad_()
        losses = []
        for row in range(2):
            sides = grouped(value, "student", student, row), grouped(value, "teacher", value["in/teacher_logits"], row)
            p, q = (merged(groups) for groups in zip(*same_groups(*sides), strict=True))
            matched, rest = hybrid_divergence(p.log(), q.log(), shared, beta=0.5)
            losses.append((share * matched + (1 - share) * rest).mean())
        found = torch.stack(losses).mean()
        torch.testing.assert_close(found, value["bayesian/extended/hybrid/loss"], **CLOSE)
        found.backward()
        torch.testing.assert_close(student.grad, value["bayesian/extended/hybrid/grad_student"], **CLOSE)


def grouped(value, side: str, rows: torch.Tensor, row: int) -> dict[int, torch.Tensor]:
    """Character end of each target but the EOS -> (probabilities that predict it, its id)."""
    labels = value[f"in/{side}_labels"][row]
    positions = (labels != -100).nonzero().flatten()[:-1]
    ends = value[f"in/{side}_offsets"][row, positions, 1].tolist()
    return {
        end: (rows[row, at - 1].softmax(-1), int(labels[at])) for end, at in zip(ends, positions.tolist(), strict=True)
    }


def same_groups(own, other):
    """The targets of both sides between neighbouring ends that both have."""
    cuts = [-1, *sorted(own.keys() & other.keys())]
    for start, end in pairwise(cuts):
        yield [[side[at] for at in sorted(side) if start < at <= end] for side in (own, other)]


def merged(groups) -> torch.Tensor:
    """The distribution at the last target of each group, times the probabilities of the earlier ones."""
    return torch.stack([math.prod([p[target] for p, target in group[:-1]]) * group[-1][0] for group in groups])


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("largest", [None, 3])
def test_hybrid_gradients_agree_with_finite_differences(beta, largest):
    student, teacher = logits(sizes=((4, 7), (4, 9)))
    shared = SharedTokens(torch.tensor([0, 3]), torch.tensor([8, 1]))

    def form(student):
        return hybrid_divergence(student.log_softmax(-1), teacher.log_softmax(-1), shared, beta=beta, largest=largest)

    assert torch.autograd.gradcheck(form, student.requires_grad_())


def test_without_shared_tokens_the_hybrid_is_uld():
    student, teacher = (values.log_softmax(-1) for values in logits())
    nothing = SharedTokens(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    matched, rest = hybrid_divergence(student, teacher, nothing)
    p, q = (values.exp().sort(-1, descending=True).values for values in (student, teacher))
    torch.testing.assert_close(rest, (F.pad(p, (0, 2)) - q).abs().sum(-1))
    assert (matched == 0).all()


# X-Token


def spans(chunks: torch.Tensor, rows: torch.Tensor, chunk: tuple[int, int]) -> torch.Tensor:
    """The rows of a chunk (example, index)."""
    return rows[chunk[0]][chunks[chunk[0]] == chunk[1]]


def valid_chunks(value, exact: bool) -> list[tuple[int, int]]:
    allowed = value["in/pair_valid"] & (value["in/pair_is_correct"] | torch.tensor(not exact))
    return [
        (row, chunk)
        for row, chunk in allowed.nonzero().tolist()
        if (value["in/student_chunk"][row] == chunk).any() and (value["in/teacher_chunk"][row] == chunk).any()
    ]


def test_published_projected_kl(golden: Path):
    for _, value in cases(golden / "xtoken.npz"):
        vocabulary = int(value["in/teacher_vocab"])
        weights = value["in/map_weights"].where(value["in/map_indices"] >= 0, 0)
        token_map = TokenMap(value["in/map_indices"], weights)
        teacher = value["in/teacher_logits"][..., :vocabulary]
        for key in [key for key in value if key.startswith("pkl/T")]:
            if not key.endswith("/kl"):
                continue
            temperature, reverse, most, exact = (
                float(part.lstrip("Trevkxact")) for part in key.split("/")[1].split("_")
            )
            kept = teacher.flatten(0, 1).max(0).values.topk(min(int(most), vocabulary)).indices.sort().values
            student = value["in/student_logits"].requires_grad_()
            chunks = valid_chunks(value, bool(exact))
            p, v = [], []
            for chunk in chunks:
                rows = spans(value["in/student_chunk"], student, chunk)
                p.append(project((rows / temperature).softmax(-1), token_map, vocabulary)[:, kept].mean(0))
                rows = spans(value["in/teacher_chunk"], teacher, chunk)
                v.append((rows[:, kept] / temperature).log_softmax(-1).mean(0))
            found = temperature**2 * projected_kl(torch.stack(p), torch.stack(v), reverse=bool(reverse)).mean()
            torch.testing.assert_close(found, value[key], **CLOSE)
            (gradient,) = torch.autograd.grad(found, student)
            torch.testing.assert_close(gradient, value[key.replace("/kl", "/grad_student")], **CLOSE)


@pytest.mark.parametrize(("name", "least"), [("gold", 1.0), ("hkl", 0.6)])
def test_published_gold_and_hkl(golden: Path, name, least):
    for _, value in cases(golden / "xtoken.npz"):
        vocabulary = int(value["in/teacher_vocab"])
        weights = value["in/map_weights"].where(value["in/map_indices"] >= 0, 0)
        shared = common_pairs(TokenMap(value["in/map_indices"], weights), least)
        stored = zip(value[f"{name}/common_student"].tolist(), value[f"{name}/common_teacher"].tolist(), strict=True)
        assert sorted(stored) == list(zip(shared.student.tolist(), shared.teacher.tolist(), strict=True))
        teacher = value["in/teacher_logits"][..., :vocabulary]
        for key in [key for key in value if key.startswith(f"{name}/T") and key.endswith("/loss")]:
            temperature, reverse, most = (float(part.lstrip("Trevu")) for part in key.split("/")[1].split("_"))
            student = value["in/student_logits"].requires_grad_()
            means = [
                torch.stack([
                    (spans(value[f"in/{side}_chunk"], rows, chunk) / temperature).log_softmax(-1).mean(0)
                    for chunk in valid_chunks(value, exact=False)
                ])
                for side, rows in (("student", student), ("teacher", teacher))
            ]  # fmt: skip
            others = [rows.shape[-1] - len(shared.student) for rows in means]
            matched, rest = hybrid_divergence(*means, shared, beta=reverse, largest=min(int(most), *others))
            found = temperature**2 * (matched + rest).mean()
            folder = key.removesuffix("loss")
            torch.testing.assert_close(matched.mean(), value[f"{folder}kl_common"], **CLOSE)
            torch.testing.assert_close(rest.mean(), value[f"{folder}l1_uncommon"], **CLOSE)
            torch.testing.assert_close(found, value[key], **CLOSE)
            (gradient,) = torch.autograd.grad(found, student)
            torch.testing.assert_close(gradient, value[f"{folder}grad_student"], **CLOSE)


def greedy(text: str, vocabulary: list[str]) -> list[int]:
    """The longest token that fits, again and again; a character without a token is left out."""
    found = []
    while text:
        fits = [token for token in vocabulary if text.startswith(token)]
        longest = max(fits, key=len, default="")
        found += [vocabulary.index(longest)] if fits else []
        text = text[len(longest) or 1 :]
    return found


def test_published_projection_weights(golden: Path):
    stored = json.loads((golden / "xtoken_map.json").read_text())
    for count, weights in stored["piece_weights"].items():
        assert piece_weights(int(count)) == pytest.approx(weights, rel=1e-6)
    for case in stored["cases"]:
        student, teacher = case["student_vocab"], case["teacher_vocab"]
        forward = [greedy(token, teacher) for token in student]
        backward = [greedy(token, student) for token in teacher]
        for name, found in (
            ("forward_pass", projection_weights(forward, [])),
            ("both_passes", projection_weights(forward, backward)),
        ):
            named = {f"{own},{other}": weight for (own, other), weight in found.items()}
            assert named == pytest.approx(case[name], rel=1e-6)
        nothing = SharedTokens(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))
        weights = projection_weights(forward, backward)
        token_map = make_token_map(weights, nothing, len(student), width=len(teacher))
        rows = project(torch.eye(len(student)), token_map, len(teacher))
        torch.testing.assert_close(rows, torch.tensor(case["rows_normalised"]), **CLOSE)


def test_a_map_keeps_the_heaviest_and_is_certain_of_shared_tokens():
    weights = {(0, 0): 1.0, (0, 1): 3.0, (0, 2): 0.5, (1, 2): 1.0, (1, 0): 5.0, (3, 1): 2.0}
    shared = SharedTokens(torch.tensor([1]), torch.tensor([2]))
    found = make_token_map(weights, shared, 4, width=2)
    assert found.indices.tolist() == [[1, 0], [2, -1], [-1, -1], [1, -1]]
    torch.testing.assert_close(found.weights, torch.tensor([[0.75, 0.25], [1, 0], [0, 0], [1, 0]]))
    pairs = common_pairs(found, 0.6)
    assert list(zip(*map(torch.Tensor.tolist, pairs), strict=True)) == [(1, 2), (3, 1)]
    sure = TokenMap(
        torch.tensor([[0, 1], [2, -1], [2, -1], [0, 2]]), torch.tensor([[0.6, 0.4], [1, 0], [1, 0], [0.7, 0.3]])
    )
    for least, expected in ((0.6, [(1, 2), (3, 0)]), (1.0, [(1, 2)])):
        assert list(zip(*map(torch.Tensor.tolist, common_pairs(sure, least)), strict=True)) == expected


@pytest.mark.parametrize("reverse", [False, True])
def test_projected_by_the_identity_it_is_a_kl(reverse):
    student, teacher = logits(sizes=((4, 9), (4, 9)))
    identity = TokenMap(torch.arange(9).unsqueeze(1), torch.ones(9, 1))
    projected = project(student.softmax(-1), identity, 9)
    found = projected_kl(projected, teacher.log_softmax(-1), reverse=reverse)
    expected = divergence("reverse_kl" if reverse else "forward_kl", student, teacher)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # but for the published epsilon


@pytest.mark.parametrize("reverse", [False, True])
def test_projected_gradients_agree_with_finite_differences(reverse):
    student, teacher = logits(sizes=((3, 7), (3, 5)))
    token_map = TokenMap(
        torch.tensor([[0, 2], [1, -1], [-1, -1], [4, 3], [3, -1], [0, -1], [2, 0]]),
        torch.tensor([[0.9, 0.1], [1, 0], [0, 0], [0.6, 0.4], [1, 0], [1, 0], [0.7, 0.3]]),
    )

    def form(student):
        return projected_kl(project(student.softmax(-1), token_map, 5), teacher.log_softmax(-1), reverse=reverse)

    assert torch.autograd.gradcheck(form, student.requires_grad_())


def test_tokens_without_a_row_in_a_head_are_left_out():
    token_map = TokenMap(torch.tensor([[1, 2], [0, -1], [2, 0]]), torch.tensor([[0.7, 0.3], [1, 0], [0.6, 0.4]]))
    found = token_map.within(2, 2)
    assert found.indices.tolist() == [[1, -1], [0, -1]]
    torch.testing.assert_close(found.weights, torch.tensor([[0.7, 0], [1, 0]]))
    pairs = SharedTokens(torch.tensor([0, 1, 5]), torch.tensor([7, 0, 1])).within(3, 4)
    assert [ids.tolist() for ids in pairs] == [[1], [0]]


def test_the_image_of_a_map():
    token_map = TokenMap(torch.tensor([[5, 2], [9, -1], [-1, -1]]), torch.tensor([[0.7, 0.3], [1, 0], [0, 0]]))
    found, columns = image(token_map)
    assert found.tolist() == [2, 5, 9] and columns.indices.tolist() == [[1, 0], [2, -1], [-1, -1]]
    p = torch.tensor([[0.5, 0.3, 0.2]])
    torch.testing.assert_close(project(p, columns, 3), project(p, token_map, 10)[:, found])
