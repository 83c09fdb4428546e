"""DSKD v2: the published numbers, and projectors that make heads agree."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from prefkd.method.dual_space_v2 import ExactTerms, exact_dual_space_loss, head_map, label_map
from prefkd.method.shared_tokens import SharedTokens


@pytest.fixture
def stored(golden):
    return {key: torch.from_numpy(np.asarray(value)) for key, value in np.load(golden / "dskd_v2.npz").items()}


@pytest.fixture
def meta(golden):
    return json.loads((golden / "dskd_v2_meta.json").read_text())


def close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=tolerance, atol=tolerance)


def test_the_first_projector_is_the_published_one(stored):
    """Rows of shared tokens of the teacher's head are the pseudo-inverse of what is stored of it."""
    names = sorted({key.split("/")[0] for key in stored if key.startswith("i")})
    assert names
    for name in names:
        pinv = stored[f"{name}/teacher_head_pinv"].double()
        teacher_head = torch.linalg.pinv(pinv).T
        student_head = stored[f"{name}/student_head"].double()
        if f"{name}/student_overlap" in stored:
            student_head = student_head[stored[f"{name}/student_overlap"]]
        close(head_map(student_head, teacher_head, ridge=0.0), stored[f"{name}/t2s_w"].double())
        # s2t is the student's head through the pseudo-inverse of the teacher's.
        close(head_map(teacher_head, student_head, ridge=0.0), pinv.T @ student_head)


def terms_at(stored, case, own, other, labels, **how) -> tuple[ExactTerms, dict[str, torch.Tensor]]:
    """The losses at pairs of (row, position), and the leaves that get gradients."""
    take = {key: stored[f"{case}/in/{key}"] for key in ("student_logits", "hiddens", "t2s_w")}
    leaves = {key: value.clone().requires_grad_() for key, value in take.items()}
    student_head, teacher_head = stored[f"{case}/in/student_head"], stored[f"{case}/in/teacher_head"]
    t2s = F.linear(F.linear(stored[f"{case}/in/teacher_hiddens"][other], leaves["t2s_w"]), student_head)
    s2t = F.linear(F.linear(leaves["hiddens"][own], stored[f"{case}/in/s2t_w"]), teacher_head)
    teacher_logits = stored[f"{case}/in/teacher_logits"][other]
    found = exact_dual_space_loss(
        leaves["student_logits"][own], teacher_logits, t2s, s2t, labels, temperature=2.0, **how
    )
    return found, leaves


def check(stored, prefix, found, leaves, places, denominator, only_agreement):
    """The published code divides t2s_kd by the places that count, and all else by `denominator`."""
    t2s_kd = found.t2s_kd / (found.agreement if only_agreement else places)
    close(found.t2s_ce / denominator, stored[f"{prefix}/t2s_ce_loss"])
    close(t2s_kd, stored[f"{prefix}/t2s_kd_loss"])
    close(found.s2t_kd / denominator, stored[f"{prefix}/s2t_kd_loss"])
    close(found.agreement / denominator, stored[f"{prefix}/t2s_agreement"])
    loss = (found.t2s_ce + found.s2t_kd) / denominator + t2s_kd
    close(loss, stored[f"{prefix}/kd_loss"])
    loss.backward()
    for name, leaf in leaves.items():
        close(leaf.grad, stored[f"{prefix}/grad/{name}"])


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl"])
def test_the_losses_on_one_vocabulary_are_the_published_ones(stored, meta, name):
    cases = sorted({key.split("/")[0] for key in stored if key.startswith("v")})
    for case in cases:
        places = (stored[f"{case}/in/label"] != -100).nonzero(as_tuple=True)
        labels = stored[f"{case}/in/teacher_logits"].argmax(-1)[places]
        # The threshold of the published code: everywhere if more agree than that.
        only = meta[case]["t2s_agreement_threshold"] >= stored[f"{case}/{name}/t2s_agreement"].item()
        found, leaves = terms_at(stored, case, places, places, labels, divergence_name=name, only_agreement=only)
        check(stored, f"{case}/{name}", found, leaves, len(labels), meta[case]["denom"], only)


def pieces(ids, vocabulary) -> tuple[list[int], list[str]]:
    targets = [position for position, token in enumerate(ids.tolist()) if token >= 0]
    return targets, [vocabulary[ids[position]] for position in targets]


def same_text(own: list[str], other: list[str]) -> list[tuple[int, int]]:
    """Pairs of equal tokens after equal text."""
    ends = [{"".join(tokens[:i]): i for i in range(len(tokens))} for tokens in (own, other)]
    return [(ends[0][text], ends[1][text]) for text in ends[0].keys() & ends[1].keys()
            if own[ends[0][text]] == other[ends[1][text]]]  # fmt: skip


@pytest.mark.parametrize("only", [True, False])
@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl"])
def test_the_losses_at_aligned_tokens_are_the_published_ones(stored, meta, name, only):
    vocabularies = [meta["eta"][f"{side}_vocab"] for side in ("student", "teacher")]
    own, other = [], []
    for row in range(len(stored["eta/in/label"])):
        at, tokens = pieces(stored["eta/in/label"][row], vocabularies[0])
        other_at, other_tokens = pieces(stored["eta/in/teacher_label"][row], vocabularies[1])
        for i, j in sorted(same_text(tokens, other_tokens)):
            own.append((row, at[i]))
            other.append((row, other_at[j]))
    own, other = (tuple(torch.tensor(places).T) for places in (own, other))
    ids = [[side.index(token) for token in vocabularies[0] if token in vocabularies[1]] for side in vocabularies]
    labels = label_map(SharedTokens(*map(torch.tensor, ids)), len(vocabularies[1]))
    labels = labels[stored["eta/in/teacher_logits"][other].argmax(-1)]
    found, leaves = terms_at(stored, "eta", own, other, labels, divergence_name=name, only_agreement=only)
    check(stored, f"eta/threshold{int(only)}/{name}", found, leaves, len(labels), len(labels), only)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_head_that_reads_the_other_space_says_the_same():
    """A larger space holds all that a smaller one says."""
    large, way = draw(40, 9, seed=1), draw(9, 5, seed=2)
    small, states = large @ way, draw(7, 5, seed=3)
    weight = head_map(large, small)
    close(F.linear(F.linear(states, weight), large), F.linear(states, small), 1e-4)


def test_a_head_without_full_rank_can_be_inverted():
    head = torch.cat([draw(20, 3), draw(20, 3)], 1)  # the same columns twice
    weight = head_map(head, draw(20, 4, seed=1))
    assert weight.isfinite().all() and weight.abs().max() < 10


def test_a_label_that_the_student_lacks_teaches_nothing_there():
    student, t2s = draw(3, 5, seed=1).requires_grad_(), draw(3, 5, seed=2).requires_grad_()
    s2t = draw(3, 6, seed=4).requires_grad_()
    how = {"divergence_name": "forward_kl", "temperature": 2.0}
    found = exact_dual_space_loss(student, draw(3, 6, seed=3), t2s, s2t, torch.tensor([-100, 2, 1]), **how)
    (found.t2s_ce + found.t2s_kd).backward()
    assert not t2s.grad[0].any() and t2s.grad[1:].any(1).all()
    assert found.agreement <= 2 and s2t.grad is None


def test_gradients_agree_with_finite_differences():
    t2s = draw(3, 5, seed=2).requires_grad_()
    others = draw(3, 5, seed=1).requires_grad_(), draw(3, 6, seed=3), draw(3, 6, seed=4).requires_grad_()
    labels = others[0].argmax(-1)

    def loss(student, t2s, s2t, part):
        return exact_dual_space_loss(
            student, others[1], t2s, s2t, labels, divergence_name="reverse_kl", temperature=1.5, only_agreement=False
        )[part]

    assert torch.autograd.gradcheck(lambda z: loss(others[0], z, others[2], 0), t2s)
    assert torch.autograd.gradcheck(lambda z: loss(z, t2s, others[2], 1), others[0])
    assert torch.autograd.gradcheck(lambda z: loss(others[0], t2s, z, 2), others[2])
