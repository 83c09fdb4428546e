"""What is kept of distributions: the published losses and packing, and bounds of what is lost."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkd.method.divergences import divergence
from prefkd.method.shared_tokens import SharedTokens, lumped_divergence
from prefkd.method.top_rows import TopRows, keep_top, lumped_rows, pack_ids, rows_of, unpack_ids


def close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=tolerance, atol=tolerance)


def everything(tokens: int) -> SharedTokens:
    return SharedTokens(torch.arange(tokens), torch.arange(tokens))


def draw(*shape, seed=0, scale=2.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_forward_kl_is_the_published_one(golden):
    """The published code takes the rest as 1 - sum, and as one token at every temperature."""
    stored = {key: torch.from_numpy(np.asarray(value)) for key, value in np.load(golden / "topk.npz").items()}
    for case in sorted({key.split("/")[0] for key in stored}):
        ids, logprobs, mask = (stored[f"{case}/in/{name}"] for name in ("ids", "logprobs", "mask"))
        rest = (1 - logprobs.exp().sum(-1)).clamp(1e-8, 1 - 1e-8).log()
        for temperature in (1.0, 2.0):
            student = stored[f"{case}/in/student_logits"].clone().requires_grad_()
            rows = TopRows(
                ids[mask], logprobs[mask], rest[mask], rest[mask] / temperature, temperature, student.shape[-1]
            )
            p, q = lumped_rows(student[mask], rows, shared=everything(student.shape[-1]), temperature=temperature)
            loss = divergence("forward_kl", p, q).sum()
            close(loss, stored[f"{case}/kl/symmetric_uniform/T{temperature}/sum"])
            loss.backward()
            close(student.grad, stored[f"{case}/kl/symmetric_uniform/T{temperature}/grad_student"])


def test_the_lumped_kl_of_adpa_is_the_published_one(golden):
    stored = {key: torch.from_numpy(np.asarray(value)) for key, value in np.load(golden / "adpa.npz").items()}
    for case in ("c0", "c1", "c2", "c3"):
        if f"{case}/dckd_topk/ids" not in stored:
            continue
        student = stored[f"{case}/dckd_topk/student_logits"].clone().requires_grad_()
        valid = stored[f"{case}/dckd_topk/labels_shifted"][0] != -100
        q = stored[f"{case}/dckd_topk/values"]
        rest = (1 - q.sum(-1)).log()
        rows = TopRows(stored[f"{case}/dckd_topk/ids"], q.log(), rest, rest, 1.0, student.shape[-1])
        loss = divergence("forward_kl", *lumped_rows(student[0][valid], rows, shared=everything(rows.tokens))).mean()
        close(loss, stored[f"{case}/dckd_topk/loss"])
        loss.backward()
        close(student.grad, stored[f"{case}/dckd_topk/grad_student"])


def test_ids_are_packed_as_published(golden):
    stored = np.load(golden / "topk.npz")
    for case in sorted({key.split("/")[0] for key in stored.files}):
        ids = stored[f"{case}/in/ids"]
        packed = pack_ids(ids.reshape(-1, ids.shape[-1]), 20)
        assert packed == stored[f"{case}/bitpack/bits5"].tobytes()
        np.testing.assert_array_equal(unpack_ids(packed, ids.shape[-1], 20), ids.reshape(-1, ids.shape[-1]))


@given(st.integers(2, 300000), st.integers(1, 9), st.integers(0, 5), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_packed_ids_come_back(tokens, k, rows, seed):
    ids = np.random.default_rng(seed).integers(tokens, size=(rows, k))
    packed = pack_ids(ids, tokens)
    assert len(packed) == rows * -(-k * max(1, (tokens - 1).bit_length()) // 8)
    np.testing.assert_array_equal(unpack_ids(packed, k, tokens), ids)


@given(
    st.integers(0, 500), st.integers(1, 11), st.sampled_from(["forward_kl", "reverse_kl"]), st.sampled_from([1.0, 2.0])
)
@settings(max_examples=40, deadline=None)
def test_what_is_lost_makes_a_divergence_smaller(seed, k, name, temperature):
    """And nothing is lost where all tokens are kept."""
    student, teacher = draw(3, 12, seed=seed), draw(3, 12, seed=seed + 1)
    whole = divergence(name, student, teacher, temperature=temperature)
    rows = keep_top(teacher, k, 2.0)
    found = divergence(name, *lumped_rows(student, rows, shared=everything(12), temperature=temperature))
    assert (found <= whole + 1e-9).all() and (found >= -1e-9).all()
    all_rows = keep_top(teacher, 12, 2.0)
    close(
        divergence(name, *lumped_rows(student, all_rows, shared=everything(12), temperature=temperature)), whole, 1e-6
    )


def test_kept_tokens_that_are_not_shared_join_the_rest():
    student, teacher = draw(4, 9, seed=1).requires_grad_(), draw(4, 12, seed=2)
    shared = SharedTokens(torch.tensor([0, 3, 5, 8]), torch.tensor([2, 11, 0, 7]))
    found = divergence("forward_kl", *lumped_rows(student, keep_top(teacher, 12, 2.0), shared=shared))
    close(found, lumped_divergence("forward_kl", student, teacher, shared), 1e-6)
    found.sum().backward()
    one = student.grad.clone()
    student.grad = None
    lumped_divergence("forward_kl", student, teacher, shared).sum().backward()
    close(student.grad, one, 1e-6)


def test_logits_have_the_kept_probabilities_and_the_mass_of_the_others():
    teacher = draw(4, 12, seed=2)
    rows = keep_top(teacher, 5, 2.0)
    for temperature in (1.0, 2.0):
        expected, found = ((logits / temperature).softmax(-1) for logits in (teacher, rows.logits(temperature)))
        close(found.gather(-1, rows.ids), expected.gather(-1, rows.ids))
        others = torch.ones_like(teacher).scatter(-1, rows.ids, 0).bool()
        assert found[others].view(4, -1).std(-1).max() < 1e-9


def test_two_models_on_the_tokens_of_one():
    one, other = draw(3, 8, seed=1).log_softmax(-1), draw(3, 8, seed=2).log_softmax(-1)
    rows = keep_top(one, 3, 2.0)
    both = rows_of(other, rows.ids, 2.0)
    _, q, r = lumped_rows(draw(3, 8, seed=3), rows, both, shared=everything(8))
    close(q.exp().sum(-1), torch.ones(3))
    close(r[:, :-1], other.gather(-1, rows.ids))


def test_what_cannot_be_had():
    with pytest.raises(ValueError, match="top_k is 9, but there are 8 tokens"):
        keep_top(draw(2, 8), 9, 2.0)
    with pytest.raises(ValueError, match=r"the scores know 1.0 and 2.0; score again with keep.temperature"):
        keep_top(draw(2, 8), 3, 2.0).cooled(3.0)
