"""Dual-space distillation: the published numbers, who learns from what, chunks, padding, examples without partner."""

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from prefkd.method.divergences import DIVERGENCES
from prefkd.method.dual_space import (
    DualSpaceProjectors,
    DualSpaceSide,
    DualSpaceTerms,
    dual_space_loss,
    same_vocabulary_loss,
)
from tests.method.largest import Largest

TERMS = [field.name for field in dataclasses.fields(DualSpaceTerms)]
PUBLISHED = {
    "t2s_ce": "t2s_ce_loss",
    "t2s_kd": "t2s_kd_loss",
    "s2t_kd": "s2t_kd_loss",
    "kd": "kd_loss",
    "t2s_accuracy": "t2s_acc",
    "s2t_accuracy": "s2t_acc",
}
SETTINGS = {"divergence": "forward_kl", "temperature": 2.0, "teacher_temperature": 1.5}
LENGTHS = (7, 9)  # of the padded sequences of student and teacher
SIZES = ((11, 6), (13, 8))  # vocabulary and hidden size of student and teacher


def labelled(targets, length, vocabulary, generator):
    """SHIFTED labels: a prompt, then so many targets, then padding."""
    labels = torch.full((len(targets), length), -100)
    for row, count in enumerate(targets):
        start = min(2, length - count)
        labels[row, start : start + count] = torch.randint(vocabulary, (count,), generator=generator)
    return labels


def case(
    targets=((4, 3), (5, 6)),
    seed=0,
    dtype=torch.float64,
    logits=True,
    lengths=LENGTHS,
    sizes=SIZES,
    requires=True,
    hits=True,
):
    """Projectors, student and teacher with random contents; `targets` says how many each example has on each side."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        values = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        return values.requires_grad_() if requires else values

    sides = []
    for counts, length, (vocabulary, size) in zip(targets, lengths, sizes, strict=True):
        shape = (len(counts), length)
        sides.append(
            DualSpaceSide(
                torch.randint(vocabulary, shape, generator=generator),
                labelled(counts, length, vocabulary, generator),
                random(*shape, size),
                random(vocabulary, size),
                random(vocabulary, size),
                random(*shape, vocabulary) if logits else None,
            )
        )
    projectors = DualSpaceProjectors(sizes[0][1], sizes[1][1]).to(torch.promote_types(dtype, torch.float32))
    with torch.no_grad():
        for parameter in projectors.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    if hits:
        let_the_teacher_hit(projectors, *sides)
    return projectors, *sides


def let_the_teacher_hit(projectors, student, teacher):
    """Make the last label of each example what the projected teacher predicts there."""
    for row in (student.labels != -100).any(1).nonzero().flatten().tolist():
        last = (student.labels[row] != -100).nonzero()[-1]
        sides = only(student, [row]), only(teacher, [row])
        for token in range(len(student.head)):
            student.labels[row, last] = sides[0].labels[0, last] = token
            if dual_space_loss(projectors, *sides, **SETTINGS, only_projectors=True).t2s_accuracy:
                break


def only(side, rows):
    """The side with these examples only, in this order."""
    return dataclasses.replace(
        side,
        **{
            name: getattr(side, name)[rows]
            for name in ("input_ids", "labels", "hidden", "logits")
            if getattr(side, name) is not None
        },
    )


def padded(side, columns, front=False):
    """The side with so many columns more, full of rubbish."""
    rubbish = {
        "input_ids": torch.full((len(side.labels), columns), 5),
        "labels": torch.full((len(side.labels), columns), -100),
        "hidden": torch.full((len(side.labels), columns, side.hidden.shape[-1]), 1e3, dtype=side.hidden.dtype),
    }
    if side.logits is not None:
        rubbish["logits"] = torch.full(
            (len(side.labels), columns, side.logits.shape[-1]), math.nan, dtype=side.logits.dtype
        )
    joined = {
        name: torch.cat([more, getattr(side, name)] if front else [getattr(side, name), more], 1)
        for name, more in rubbish.items()
    }
    return dataclasses.replace(side, **joined)


def leaves(projectors, student, teacher):
    """Everything that could get a gradient, by name."""
    tensors = {name: parameter for name, parameter in projectors.named_parameters()}
    for side, name in ((student, "student"), (teacher, "teacher")):
        for part in ("hidden", "embedding", "head", "logits"):
            if getattr(side, part) is not None:
                tensors[f"{name}.{part}"] = getattr(side, part)
    return tensors


def gradients(loss, tensors):
    tensors = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
    found = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True, retain_graph=True)
    return {name: gradient for name, gradient in zip(tensors, found, strict=True) if gradient is not None}


def same(found, expected, **tolerance):
    for name in TERMS:
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name), msg=lambda m, n=name: f"{n}: {m}", **tolerance
        )


# The published numbers


def published_side(values, prefix, names, dtype):
    def read(name):
        value = torch.from_numpy(values[f"{prefix}/in/{name}"])
        return value.to(dtype).requires_grad_() if value.is_floating_point() else value

    return DualSpaceSide(*(read(name) if name else torch.zeros(0) for name in names))


def published_projectors(values, prefix, dtype):
    student_size, teacher_size = values[f"{prefix}/in/proj/t2s_w"].shape
    projectors = DualSpaceProjectors(student_size, teacher_size).to(dtype)
    with torch.no_grad():
        for name, parameter in projectors.named_parameters():
            module, part = name.split(".")
            if f"{prefix}/in/proj/{module}_{part[0]}" in values:
                parameter.copy_(torch.from_numpy(values[f"{prefix}/in/proj/{module}_{part[0]}"]))
    return projectors


def compare_with_published(values, key, found, projectors, student, teacher):
    for term, name in PUBLISHED.items():
        if f"{key}/{name}" in values:
            expected = torch.as_tensor(values[f"{key}/{name}"]).to(found.kd.dtype)
            torch.testing.assert_close(getattr(found, term).detach(), expected, rtol=1e-5, atol=1e-5)
    found.kd.backward()
    for name in [name for name in values if name.startswith(f"{key}/grad/")]:
        part = name.rsplit("/", 1)[1]
        if part in ("hiddens", "student_logits"):
            gradient = (student.hidden if part == "hiddens" else student.logits).grad
        else:
            module, kind = part.split("_")
            gradient = getattr(getattr(projectors, module), "weight" if kind == "w" else "bias").grad
        expected = torch.from_numpy(values[name])
        if gradient is None:
            assert not expected.any()
        else:
            torch.testing.assert_close(gradient, expected.to(gradient.dtype), rtol=1e-5, atol=1e-5)
    for constant in (student.head, student.embedding, teacher.head, teacher.embedding, teacher.hidden, teacher.logits):
        assert constant.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_published_cross_model_attention(golden: Path, dtype, chunk_size):
    values = dict(np.load(golden / "dskd_cma.npz"))
    keys = sorted({name.rsplit("/", 1)[0] for name in values if name.endswith("/t2s_ce_loss")})
    assert {key.split("/")[1] for key in keys} == {*DIVERGENCES, "only_projector"}
    for key in keys:
        prefix, name, *setting = key.split("/")
        temperature, teacher_temperature = setting[0].split("_") if setting else ("T2", "tea1")
        parts = ("input_ids", "label", "hiddens", "student_embed", "student_head", "student_logits")
        student = published_side(values, prefix, parts, dtype)
        parts = (
            "teacher_input_ids",
            "teacher_label",
            "teacher_hiddens",
            "teacher_embed",
            "teacher_head",
            "teacher_logits",
        )
        teacher = published_side(values, prefix, parts, dtype)
        projectors = published_projectors(values, prefix, dtype)
        found = dual_space_loss(
            projectors,
            student,
            teacher,
            divergence=name if setting else "forward_kl",
            temperature=float(temperature[1:]),
            teacher_temperature=float(teacher_temperature[3:]),
            std_over="all",
            only_projectors=not setting,
            chunk_size=chunk_size,
        )
        compare_with_published(values, key, found, projectors, student, teacher)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_published_same_vocabulary(golden: Path, dtype, chunk_size):
    values = dict(np.load(golden / "dskd_same_vocab.npz"))
    keys = sorted({name.rsplit("/", 1)[0] for name in values if name.endswith("/t2s_ce_loss")})
    assert {key.split("/")[1] for key in keys} == set(DIVERGENCES)
    for key in keys:
        prefix, name = key.split("/")
        parts = ("", "label", "hiddens", "", "student_head", "student_logits")
        student = published_side(values, prefix, parts, dtype)
        parts = ("", "label", "teacher_hiddens", "", "teacher_head", "teacher_logits")
        teacher = published_side(values, prefix, parts, dtype)
        projectors = published_projectors(values, prefix, dtype)
        found = same_vocabulary_loss(
            projectors, student, teacher, divergence=name, temperature=2.0, chunk_size=chunk_size
        )
        compare_with_published(values, key, found, projectors, student, teacher)


# Who learns from what


def test_each_term_teaches_what_it_should_and_nothing_else():
    projectors, student, teacher = case()
    terms = dual_space_loss(projectors, student, teacher, **SETTINGS)
    assert 0 < terms.t2s_accuracy < (student.labels != -100).sum()
    tensors = leaves(projectors, student, teacher)
    query, t2s, s2t = ({f"{name}.weight", f"{name}.bias"} for name in ("query", "t2s", "s2t"))
    taught = {
        "t2s_ce": query | t2s,
        "t2s_kd": {"student.logits"},
        "s2t_kd": query | s2t | {"student.hidden"},
        "kd": query | t2s | s2t | {"student.logits", "student.hidden"},
    }
    for term, expected in taught.items():
        found = gradients(getattr(terms, term), tensors)
        assert {name for name, gradient in found.items() if gradient.any()} == expected
        assert set(found) == expected
    assert not terms.t2s_accuracy.requires_grad
    assert not terms.s2t_accuracy.requires_grad


def test_logits_made_here_teach_the_student_and_its_head():
    projectors, student, teacher = case(logits=False)
    terms = dual_space_loss(projectors, student, teacher, **SETTINGS)
    tensors = leaves(projectors, student, teacher)
    assert set(gradients(terms.t2s_kd, tensors)) == {"student.hidden", "student.head"}
    assert not {name for name in gradients(terms.kd, tensors) if name.startswith("teacher")}


def test_one_vocabulary_leaves_the_query_alone():
    projectors, student, teacher = one_vocabulary()
    terms = same_vocabulary_loss(projectors, student, teacher, divergence="js_divergence", temperature=2.0)
    tensors = leaves(projectors, student, teacher)
    t2s, s2t = ({f"{name}.weight", f"{name}.bias"} for name in ("t2s", "s2t"))
    assert set(gradients(terms.t2s_ce, tensors)) == t2s
    assert set(gradients(terms.t2s_kd, tensors)) == {"student.logits"}
    assert set(gradients(terms.s2t_kd, tensors)) == s2t | {"student.hidden"}


def test_a_warm_up_is_the_cross_entropy_alone():
    projectors, student, teacher = case()
    terms = dual_space_loss(projectors, student, teacher, **SETTINGS)
    warm = dual_space_loss(projectors, student, teacher, **SETTINGS, only_projectors=True)
    assert warm.kd == warm.t2s_ce == terms.t2s_ce
    assert warm.t2s_accuracy == terms.t2s_accuracy
    assert warm.t2s_kd == warm.s2t_kd == warm.s2t_accuracy == 0
    assert set(gradients(warm.kd, leaves(projectors, student, teacher))) == {
        f"{module}.{part}" for module in ("query", "t2s") for part in ("weight", "bias")
    }


def test_a_step_moves_every_projector_and_lowers_the_loss():
    projectors, student, teacher = case(requires=False)
    before = [parameter.detach().clone() for parameter in projectors.parameters()]
    optimizer = torch.optim.AdamW(projectors.parameters(), lr=1e-3)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        terms = dual_space_loss(projectors, student, teacher, **SETTINGS)
        terms.kd.backward()
        optimizer.step()
        losses.append((terms.t2s_ce + terms.s2t_kd).item())
    assert losses[-1] < losses[0]
    for old, new in zip(before, projectors.parameters(), strict=True):
        assert not torch.equal(old, new)


def test_gradients_of_the_student_agree_with_finite_differences():
    projectors, student, teacher = case(targets=((2,), (3,)), lengths=(4, 5), logits=False)

    def loss(hidden):
        return dual_space_loss(projectors, dataclasses.replace(student, hidden=hidden), teacher, **SETTINGS).kd

    assert torch.autograd.gradcheck(loss, [student.hidden])


def test_gradients_of_the_projectors_agree_with_finite_differences():
    projectors, student, teacher = case(targets=((2,), (3,)), lengths=(4, 5), requires=False)

    def losses(*parameters):  # which are moved in place
        terms = dual_space_loss(projectors, student, teacher, **SETTINGS)
        return terms.t2s_ce, terms.s2t_kd

    assert torch.autograd.gradcheck(losses, list(projectors.parameters()))


# Padding, examples and their order


@pytest.mark.parametrize("std_over", ["valid", "example"])
@pytest.mark.parametrize("front", [False, True])
def test_padding_changes_nothing(std_over, front):
    projectors, student, teacher = case()
    tensors = leaves(projectors, student, teacher)
    plain = dual_space_loss(projectors, student, teacher, **SETTINGS, std_over=std_over)
    wider = padded(student, 3, front), padded(teacher, 5, front)
    found = dual_space_loss(projectors, *wider, **SETTINGS, std_over=std_over)
    same(found, plain)
    expected = gradients(plain.kd, tensors)
    for name, gradient in gradients(found.kd, tensors).items():
        torch.testing.assert_close(gradient, expected[name])


def test_padding_changes_the_published_scale():
    projectors, student, teacher = case()
    plain = dual_space_loss(projectors, student, teacher, **SETTINGS, std_over="all")
    found = dual_space_loss(projectors, student, padded(teacher, 5), **SETTINGS, std_over="all")
    assert (found.t2s_ce - plain.t2s_ce).abs() > 0.01


def test_without_padding_or_prompt_all_scales_of_one_example_are_one():
    projectors, student, teacher = case(targets=((7,), (9,)))
    plain, *others = (
        dual_space_loss(projectors, student, teacher, **SETTINGS, std_over=over) for over in ("all", "valid", "example")
    )
    for other in others:
        same(other, plain)


def test_a_batch_scaled_by_example_is_the_sum_of_its_examples():
    projectors, student, teacher = case(targets=((4, 3, 1), (5, 6, 2)))
    tensors = leaves(projectors, student, teacher)
    whole = dual_space_loss(projectors, student, teacher, **SETTINGS, std_over="example")
    singles = [
        dual_space_loss(projectors, only(student, [row]), only(teacher, [row]), **SETTINGS, std_over="example")
        for row in range(3)
    ]
    for term in ("t2s_ce", "t2s_kd", "s2t_kd", "kd", "t2s_accuracy"):
        torch.testing.assert_close(getattr(whole, term), sum(getattr(single, term) for single in singles))
    expected = gradients(sum(single.kd for single in singles), tensors)
    for name, gradient in gradients(whole.kd, tensors).items():
        torch.testing.assert_close(gradient, expected[name])


def test_a_batch_of_one_vocabulary_is_the_sum_of_its_examples():
    projectors, student, teacher = one_vocabulary()
    settings = {"divergence": "adaptive_kl", "temperature": 2.0}
    whole = same_vocabulary_loss(projectors, student, teacher, **settings)
    singles = [same_vocabulary_loss(projectors, only(student, [i]), only(teacher, [i]), **settings) for i in range(2)]
    for term in TERMS:
        torch.testing.assert_close(getattr(whole, term), sum(getattr(single, term) for single in singles))
    same(same_vocabulary_loss(projectors, padded(student, 3), padded(teacher, 3), **settings), whole)


def test_the_order_of_examples_does_not_matter():
    projectors, student, teacher = case(targets=((4, 3, 1), (5, 6, 2)))
    order = [2, 0, 1]
    same(
        dual_space_loss(projectors, only(student, order), only(teacher, order), **SETTINGS),
        dual_space_loss(projectors, student, teacher, **SETTINGS),
    )


@pytest.mark.parametrize("std_over", ["valid", "example"])
@pytest.mark.parametrize(("student_targets", "teacher_targets"), [(3, 0), (0, 3), (0, 0)])
def test_an_example_without_a_partner_contributes_nothing(std_over, student_targets, teacher_targets):
    projectors, student, teacher = case(targets=((4, student_targets, 2), (5, teacher_targets, 3)))
    tensors = leaves(projectors, student, teacher)
    found = dual_space_loss(projectors, student, teacher, **SETTINGS, std_over=std_over)
    kept = dual_space_loss(projectors, only(student, [0, 2]), only(teacher, [0, 2]), **SETTINGS, std_over=std_over)
    same(found, kept)
    gradient = gradients(found.kd, tensors)
    expected = gradients(kept.kd, tensors)
    for name in gradient:
        torch.testing.assert_close(gradient[name], expected[name])


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("only_projectors", [False, True])
def test_no_target_at_all_gives_zeros_and_zero_gradients(chunk_size, only_projectors):
    projectors, student, teacher = case(targets=((0, 3), (2, 0)))
    terms = dual_space_loss(
        projectors, student, teacher, **SETTINGS, chunk_size=chunk_size, only_projectors=only_projectors
    )
    assert all(getattr(terms, name) == 0 for name in TERMS)
    for gradient in gradients(terms.kd, leaves(projectors, student, teacher)).values():
        assert (gradient == 0).all()


# Chunks


def one_vocabulary(**options):
    projectors, student, teacher = case(sizes=((11, 6), (11, 8)), lengths=(7, 7), targets=((4, 3), (4, 3)), **options)
    return projectors, student, dataclasses.replace(teacher, labels=student.labels)


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("divergence", ["forward_kl", "adaptive_kl"])
def test_chunks_change_neither_values_nor_gradients(chunk_size, logits, divergence):
    for loss, (projectors, student, teacher) in (
        (dual_space_loss, case(logits=logits)),
        (same_vocabulary_loss, one_vocabulary(logits=logits)),
    ):
        tensors = leaves(projectors, student, teacher)
        plain = loss(projectors, student, teacher, divergence=divergence, temperature=2.0)
        found = loss(projectors, student, teacher, divergence=divergence, temperature=2.0, chunk_size=chunk_size)
        same(found, plain)
        expected, gradient = gradients(plain.kd, tensors), gradients(found.kd, tensors)
        assert set(gradient) == set(expected)
        for name in gradient:
            torch.testing.assert_close(gradient[name], expected[name])


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_logits_made_here_are_those_of_the_head(chunk_size):
    projectors, student, teacher = case(logits=False)
    given = (dataclasses.replace(side, logits=side.hidden @ side.head.T) for side in (student, teacher))
    expected = dual_space_loss(projectors, *given, **SETTINGS)
    found = dual_space_loss(projectors, student, teacher, **SETTINGS, chunk_size=chunk_size)
    same(found, expected)
    tensors = leaves(projectors, student, teacher)
    gradient, wanted = gradients(found.kd, tensors), gradients(expected.kd, tensors)
    assert set(gradient) == set(wanted)
    for name in gradient:
        torch.testing.assert_close(gradient[name], wanted[name])


def large(student_vocabulary, teacher_vocabulary):
    return case(
        targets=((20, 20), (20, 20)),
        lengths=(24, 22),
        sizes=((student_vocabulary, 2), (teacher_vocabulary, 3)),
        logits=False,
        hits=False,
        dtype=torch.float32,
    )


@pytest.mark.parametrize("vocabularies", [(2000, 50), (50, 2000)])
@pytest.mark.parametrize("divergence", sorted(DIVERGENCES))
def test_logits_of_more_than_a_chunk_never_exist_on_either_side(vocabularies, divergence):
    projectors, student, teacher = large(*vocabularies)
    with Largest() as largest:
        dual_space_loss(
            projectors, student, teacher, divergence=divergence, temperature=2.0, chunk_size=5
        ).kd.backward()
    assert largest.elements <= 5 * 2000
    assert projectors.query.weight.grad.any()
    with Largest() as largest:
        dual_space_loss(projectors, student, teacher, divergence=divergence, temperature=2.0).kd.backward()
    assert largest.elements >= 40 * 2000


@pytest.mark.parametrize("vocabularies", [(2000, 50), (50, 2000)])
def test_nothing_as_large_as_logits_waits_for_backward(vocabularies):
    projectors, student, teacher = large(*vocabularies)
    heads = [student.head.data_ptr(), teacher.head.data_ptr()]
    saved = []

    def keep(tensor):
        if tensor.data_ptr() not in heads:
            saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        dual_space_loss(projectors, student, teacher, **SETTINGS, chunk_size=5)
    assert saved
    assert max(saved) < 2000


def test_one_vocabulary_is_chunked_too():
    projectors, student, teacher = large(2000, 2000)
    teacher = dataclasses.replace(student, hidden=torch.randn(*student.labels.shape, 3), head=teacher.head)
    with Largest() as largest:
        same_vocabulary_loss(
            projectors, student, teacher, divergence="js_divergence", temperature=2.0, chunk_size=5
        ).kd.backward()
    assert largest.elements <= 5 * 2000


# Precision, masks and arguments


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_low_precision_is_finite_and_summed_in_float32(dtype, chunk_size):
    exact = case(dtype=torch.float64)
    rough = case(dtype=dtype)
    expected = dual_space_loss(*exact, **SETTINGS)
    found = dual_space_loss(*rough, **SETTINGS, chunk_size=chunk_size)
    assert found.kd.dtype == torch.float32
    torch.testing.assert_close(found.t2s_ce.double(), expected.t2s_ce, rtol=0.05, atol=0)
    torch.testing.assert_close(found.s2t_kd.double(), expected.s2t_kd, rtol=0.05, atol=0)
    for gradient in gradients(found.kd, leaves(*rough)).values():
        assert gradient.isfinite().all()


def test_autocast_leaves_the_attention_in_float32():
    projectors, student, teacher = case(dtype=torch.float32)
    expected = dual_space_loss(projectors, student, teacher, **SETTINGS)
    with torch.autocast("cpu", torch.bfloat16):
        found = dual_space_loss(projectors, student, teacher, **SETTINGS)
    assert found.kd.dtype == torch.float32
    torch.testing.assert_close(found.t2s_ce, expected.t2s_ce, rtol=0.05, atol=0)


@pytest.mark.parametrize("divergence", sorted(DIVERGENCES))
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_a_masked_vocabulary_stays_finite(divergence, chunk_size):
    projectors, student, teacher = case(requires=False)
    student.logits[..., 3] = -math.inf
    teacher.logits[..., 5] = -math.inf
    student.logits.requires_grad_()
    student.hidden.requires_grad_()
    terms = dual_space_loss(projectors, student, teacher, divergence=divergence, temperature=2.0, chunk_size=chunk_size)
    assert all(getattr(terms, name).isfinite() for name in TERMS)
    for gradient in gradients(terms.kd, leaves(projectors, student, teacher)).values():
        assert gradient.isfinite().all()


def test_constant_states_have_no_scale_and_do_no_harm():
    projectors, student, teacher = case(targets=((1,), (1,)), requires=False)
    teacher.hidden.fill_(2.0)
    teacher.embedding.fill_(0.0)
    terms = dual_space_loss(projectors, student, teacher, **SETTINGS)
    assert all(getattr(terms, name).isfinite() for name in TERMS)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_inputs_stay_as_they_are(chunk_size):
    projectors, student, teacher = case()
    fields = [
        field.name for field in dataclasses.fields(DualSpaceSide) if field.name not in ("scale", "cap", "targets")
    ]
    copies = [getattr(side, name).detach().clone() for side, name in itertools.product((student, teacher), fields)]
    dual_space_loss(projectors, student, teacher, **SETTINGS, chunk_size=chunk_size).kd.backward()
    for (side, name), copy in zip(itertools.product((student, teacher), fields), copies, strict=True):
        assert torch.equal(getattr(side, name), copy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"std_over": "padding"}, "std_over is 'padding', but must be one of valid, example, all"),
        ({"divergence": "kl"}, "no divergence is called 'kl'"),
        ({"temperature": 0.0}, "temperature is 0.0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dual_space_loss(*case(), **{**SETTINGS, **options})


def test_different_labels_are_no_shared_vocabulary():
    projectors, student, teacher = one_vocabulary()
    labels = teacher.labels.clone()
    labels[labels != -100] = 0
    with pytest.raises(ValueError, match="different labels"):
        same_vocabulary_loss(
            projectors, student, dataclasses.replace(teacher, labels=labels), divergence="forward_kl", temperature=1.0
        )
