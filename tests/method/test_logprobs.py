"""Log-probabilities: the published numbers, the naive formula, gradients, masks and precision."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefkd.method.divergences import generalised_jsd
from prefkd.method.head_passes import EAGER, FUSED
from prefkd.method.logprobs import bounded_logits, linear_token_logprobs, parent_logprobs, token_logprobs
from tests.method.largest import Largest


def naive(hidden, head_weight, targets):
    return (hidden @ head_weight.T).log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def case(tokens=13, width=6, vocabulary=17, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator, dtype=torch.float64).to(dtype)
    head_weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64).to(dtype)
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    return hidden.requires_grad_(), head_weight.requires_grad_(), targets


# token_logprobs


def test_token_logprobs_are_the_published_ones(golden: Path):
    stored = np.load(golden / "dpo_tisdpo.npz")
    names = {key.split("/")[1] for key in stored if key.startswith("logps/")}
    assert names
    for name in sorted(names):
        prefix = f"logps/{name}/"
        value = {key.removeprefix(prefix): torch.from_numpy(stored[key]) for key in stored if key.startswith(prefix)}
        logits = value["logits"].requires_grad_()
        found = token_logprobs(logits, value["labels"])
        counts = (value["labels"][:, 1:] != -100).sum(-1)
        torch.testing.assert_close(found.sum(-1), value["sum"], rtol=0, atol=1e-9)
        torch.testing.assert_close(found.sum(-1) / counts, value["mean"], rtol=0, atol=1e-9)
        weighted = (value["weights"] * found).sum(-1)
        torch.testing.assert_close(weighted, value["weighted_sum"], rtol=0, atol=1e-9)
        torch.testing.assert_close(weighted / counts, value["weighted_mean"], rtol=0, atol=1e-9)
        found.sum().backward()
        torch.testing.assert_close(logits.grad, value["grad"], rtol=0, atol=1e-9)


def test_a_label_is_predicted_one_position_earlier_and_position_0_never():
    logits = torch.randn(1, 4, 5, dtype=torch.float64)
    labels = torch.tensor([[3, -100, 0, 4]])
    expected = logits.log_softmax(-1)
    found = token_logprobs(logits, labels)
    assert found[0].tolist() == [0, 0, expected[0, 1, 0].item(), expected[0, 2, 4].item()]


def test_logits_outside_targets_may_be_anything():
    logits = torch.randn(2, 5, 7, dtype=torch.float64)
    labels = torch.tensor([[-100, -100, 2, 3, -100], [5, -100, -100, 6, -100]])
    clean = logits.clone().requires_grad_()
    token_logprobs(clean, labels).sum().backward()
    for filler in (-math.inf, math.nan, math.inf):
        dirty = logits.clone()
        dirty[0, [0, 3, 4]] = filler
        dirty[1, [0, 1, 3, 4]] = filler
        dirty.requires_grad_()
        found = token_logprobs(dirty, labels)
        assert torch.equal(found, token_logprobs(logits, labels))
        found.sum().backward()
        assert torch.equal(dirty.grad, clean.grad)


def test_a_masked_vocabulary_and_a_certain_token_are_no_padding():
    logits = torch.full((1, 3, 4), -math.inf, dtype=torch.float64)
    logits[0, 0, 2] = 7.0  # one possible token: log-probability exactly 0
    logits[0, 1, :2] = torch.tensor([1.0, 2.0])
    logits.requires_grad_()
    found = token_logprobs(logits, torch.tensor([[-100, 2, 0]]))
    torch.testing.assert_close(found, torch.tensor([[0, 0, -math.log1p(math.e)]], dtype=torch.float64))
    found.sum().backward()
    assert logits.grad.isfinite().all()
    assert (logits.grad[0, 0] == 0).all()


def test_large_logits_in_low_precision_are_stable():
    logits = torch.tensor([[[300.0, -300.0], [0, 0]]], dtype=torch.bfloat16, requires_grad=True)
    found = token_logprobs(logits, torch.tensor([[-100, 1]]))
    assert found.dtype == torch.float32
    assert found.tolist() == [[0.0, -600.0]]
    found.sum().backward()
    assert logits.grad.tolist() == [[[-1, 1], [0, 0]]]


def test_padding_and_the_order_of_examples_change_nothing():
    logits = torch.randn(3, 5, 7, dtype=torch.float64)
    labels = torch.tensor([[-100, 1, 2, 3, -100], [-100, -100, 0, 0, 6], [-100, 4, -100, -100, -100]])
    found = token_logprobs(logits, labels)
    wider = torch.cat([logits, torch.randn(3, 2, 7, dtype=torch.float64)], dim=1)
    padded = token_logprobs(wider, torch.nn.functional.pad(labels, (0, 2), value=-100))
    assert torch.equal(padded[:, :5], found)
    assert (padded[:, 5:] == 0).all()
    order = torch.tensor([2, 0, 1])
    assert torch.equal(token_logprobs(logits[order], labels[order]), found[order])


def test_no_target_at_all_gives_zeros_and_a_zero_gradient():
    logits = torch.randn(2, 3, 4, requires_grad=True)
    found = token_logprobs(logits, torch.full((2, 3), -100))
    found.sum().backward()
    assert (found == 0).all()
    assert (logits.grad == 0).all()


# linear_token_logprobs


@pytest.mark.parametrize("chunk_size", [1, 4, 13, 100])
def test_chunked_gradients_agree_with_finite_differences(chunk_size):
    hidden, head_weight, targets = case()
    assert torch.autograd.gradcheck(
        lambda *inputs: linear_token_logprobs(*inputs, targets, chunk_size=chunk_size), (hidden, head_weight)
    )


@pytest.mark.parametrize("frozen", ["nothing", "head", "hidden", "both"])
def test_chunked_values_and_gradients_are_the_naive_ones(frozen):
    hidden, head_weight, targets = case(tokens=50, vocabulary=9000)  # more than one stripe
    hidden.requires_grad_(frozen not in ("hidden", "both"))
    head_weight.requires_grad_(frozen not in ("head", "both"))
    found = linear_token_logprobs(hidden, head_weight, targets, chunk_size=7)
    expected = naive(hidden, head_weight, targets)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    learning = [tensor for tensor in (hidden, head_weight) if tensor.requires_grad]
    assert found.requires_grad == bool(learning)
    if learning:
        grad = torch.randn(50, dtype=torch.float64)
        grads = torch.autograd.grad(found, learning, grad)
        for one, other in zip(grads, torch.autograd.grad(expected, learning, grad), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_one_graph_serves_two_backward_passes():
    hidden, head_weight, targets = case()
    found = linear_token_logprobs(hidden, head_weight, targets, chunk_size=5).sum()
    first = torch.autograd.grad(found, (hidden, head_weight), retain_graph=True)
    second = torch.autograd.grad(found, (hidden, head_weight))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("hidden_dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("head_dtype", [torch.bfloat16, torch.float32])
def test_low_precision_inputs_are_summed_in_float32(hidden_dtype, head_dtype):
    hidden, _, targets = case(tokens=40, width=64, vocabulary=500, dtype=hidden_dtype)
    _, head_weight, _ = case(tokens=40, width=64, vocabulary=500, dtype=head_dtype)
    found = linear_token_logprobs(hidden, head_weight, targets, chunk_size=16)
    expected = naive(hidden.double(), head_weight.double(), targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)
    grads = torch.autograd.grad(found.sum(), (hidden, head_weight))
    for one, other, tensor in zip(
        grads, torch.autograd.grad(expected.sum(), (hidden, head_weight)), (hidden, head_weight), strict=True
    ):
        assert one.dtype == tensor.dtype
        torch.testing.assert_close(one, other, rtol=2**-7, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_does_no_harm(dtype):
    hidden, head_weight, targets = case(dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = linear_token_logprobs(hidden, head_weight, targets, chunk_size=5)
        grads = torch.autograd.grad(found.sum(), (hidden, head_weight))
    assert found.dtype == dtype
    expected = naive(hidden, head_weight, targets)
    torch.testing.assert_close(found, expected)
    for one, other in zip(grads, torch.autograd.grad(expected.sum(), (hidden, head_weight)), strict=True):
        torch.testing.assert_close(one, other)


def test_confident_and_extreme_tokens_are_stable():
    hidden = torch.tensor([[200.0], [-200.0]], requires_grad=True)
    head_weight = torch.tensor([[1.0], [-1.0], [0.5]], requires_grad=True)
    found = linear_token_logprobs(hidden, head_weight, torch.tensor([0, 0]), chunk_size=1)
    assert found.tolist() == [0.0, -400.0]
    found.sum().backward()
    torch.testing.assert_close(hidden.grad, torch.tensor([[0.0], [2.0]]))
    torch.testing.assert_close(head_weight.grad, torch.tensor([[-200.0], [200.0], [0.0]]))


def test_the_small_gradients_of_confident_tokens_keep_their_digits():
    hidden = torch.tensor([[4.0, 0.1], [-4.0, 0.2]], requires_grad=True)
    head_weight = torch.tensor([[3.0, 0.5], [-1.0, 0.25], [0.5, -0.75]], requires_grad=True)
    targets = torch.tensor([0, 1])
    found = linear_token_logprobs(hidden, head_weight, targets, chunk_size=1)
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, head_weight)]
    grads = torch.autograd.grad(found.sum(), (hidden, head_weight))
    expected = torch.autograd.grad(naive(*exact, targets).sum(), exact)
    assert expected[0].abs().max() < 0.03
    for one, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=0)


def test_no_tokens_give_no_logprobs_and_zero_gradients():
    hidden, head_weight, targets = case(tokens=0)
    found = linear_token_logprobs(hidden, head_weight, targets, chunk_size=4)
    assert found.shape == (0,)
    found.sum().backward()
    assert hidden.grad.shape == (0, 6)
    assert (head_weight.grad == 0).all()


@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.5, 3.0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_passes_for_a_compiler_say_the_same(dtype, scale, cap):
    hidden, head_weight, targets = case(dtype=dtype)
    upstream = torch.linspace(-1, 2, 13, dtype=torch.float64)
    ways = []
    for passes in (EAGER, FUSED):
        how = {"chunk_size": 4, "scale": scale, "cap": cap, "passes": passes}
        found = linear_token_logprobs(hidden, head_weight, targets, **how)
        ways.append((found, *torch.autograd.grad((found * upstream).sum(), [hidden, head_weight])))
        assert torch.equal(linear_token_logprobs(hidden.detach(), head_weight.detach(), targets, **how), found)
    for one, other in zip(*ways, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_wrong_chunk_sizes_are_refused():
    hidden, head_weight, targets = case()
    with pytest.raises(ValueError, match="chunk_size is 0"):
        linear_token_logprobs(hidden, head_weight, targets, chunk_size=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_more_than_a_chunk_never_exist(dtype):
    hidden, head_weight, targets = case(tokens=64, width=2, vocabulary=1000, dtype=dtype)
    with Largest() as largest:
        linear_token_logprobs(hidden, head_weight, targets, chunk_size=4).sum().backward()
    assert largest.elements <= 4 * 1000


# parent_logprobs


@given(st.integers(1, 3), st.integers(1, 6), st.data())
def test_parents_sum_their_tokens(examples, positions, data):
    ids = data.draw(
        st.lists(
            st.lists(st.integers(-2, 3), min_size=positions, max_size=positions), min_size=examples, max_size=examples
        )
    )
    values = torch.randn(examples, positions, dtype=torch.float64)
    found = parent_logprobs(values, torch.tensor(ids), 4)
    expected = [
        [sum(v for v, p in zip(row, row_ids, strict=True) if p == parent) for parent in range(4)]
        for row, row_ids in zip(values.tolist(), ids, strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_tokens_in_no_parent_take_no_part():
    values = torch.tensor([[math.nan, 1.0, 2.0, -math.inf]], requires_grad=True)
    found = parent_logprobs(values, torch.tensor([[-1, 0, 0, -100]]), 2)
    assert found.tolist() == [[3.0, 0.0]]
    found.sum().backward()
    assert values.grad.tolist() == [[0, 1, 1, 0]]


def test_parents_of_everything_sum_to_the_sequence():
    logits = torch.randn(2, 6, 9, dtype=torch.float64)
    labels = torch.tensor([[-100, -100, 3, 4, 5, 8], [-100, 1, 2, 8, -100, -100]])
    ids = torch.tensor([[-1, -1, 0, 0, 1, 2], [-1, 0, 0, 1, -1, -1]])
    tokens = token_logprobs(logits, labels)
    torch.testing.assert_close(parent_logprobs(tokens, ids, 3).sum(-1), tokens.sum(-1))


# A scale and a soft cap

BOUNDS = [(0.125, None), (1.0, 2.0), (0.5, 3.0), (3.0, 1.5)]
FAMILIES = {
    "gemma2": (1.0, 30.0),
    "gemma2_cap2": (1.0, 2.0),
    "granite": (1 / 8, None),
    "cohere": (0.0625, None),
    "minicpm3": (1.0, None),  # its head's input is scaled before
}


def test_published_logits_of_models_that_scale_or_cap(golden: Path):
    stored = np.load(golden / "softcap.npz")
    cases = sorted({key.split("/")[0] for key in stored})
    assert cases
    for case, (family, (scale, cap)) in itertools.product(cases, FAMILIES.items()):
        prefix = f"{case}/{family}/"
        value = {key.removeprefix(prefix): torch.from_numpy(stored[key]) for key in stored if key.startswith(prefix)}
        hidden, head = value["head_input"].requires_grad_(), value["head"].requires_grad_()
        torch.testing.assert_close(
            bounded_logits(hidden @ head.T, scale=scale, cap=cap), value["logits"], rtol=0, atol=1e-10
        )
        found = linear_token_logprobs(hidden[:-1], head, value["ids"][1:], chunk_size=2, scale=scale, cap=cap)
        torch.testing.assert_close(found, value["target_logps"], rtol=0, atol=1e-10)
        found.sum().backward()
        torch.testing.assert_close(hidden.grad, value["grad_head_input"], rtol=0, atol=1e-10)
        if family in (
            "granite",
            "minicpm3",
        ):  # elsewhere the head is the embedding, whose own gradient is in the number
            torch.testing.assert_close(head.grad, value["grad_head"], rtol=0, atol=1e-10)


def test_published_divergences_of_two_bounded_heads(golden: Path):
    stored = np.load(golden / "softcap.npz")
    tested = 0
    for key in [key for key in stored if "/chunked/beta" in key and key.endswith("/loss_mean")]:
        case, _, name, _ = key.split("/")
        value = {part: torch.from_numpy(stored[f"{case}/chunked/in/{part}"]) for part in
                 ("student_hidden", "teacher_hidden", "student_head", "teacher_head", "mask")}  # fmt: skip
        beta, *bounds, temperature = (
            None if part == "None" else float(part)
            for part in name.replace("beta", "").replace("scale", "").replace("cap", "").replace("T", "").split("_")
        )
        hidden, head = value["student_hidden"].requires_grad_(), value["student_head"].requires_grad_()
        states = {"student": hidden @ head.T, "teacher": value["teacher_hidden"] @ value["teacher_head"].T}
        logprobs = [
            (bounded_logits(states[side], scale=scale, cap=cap) / temperature).log_softmax(-1)
            for side, scale, cap in zip(states, bounds[:2], bounds[2:], strict=True)
        ]
        mask = value["mask"].bool()
        found = generalised_jsd(*logprobs, beta=beta)[mask].mean()
        torch.testing.assert_close(found.item(), stored[key].item(), rtol=1e-5, atol=1e-6)
        found.backward()
        for which, gradient in (("grad_hidden", hidden.grad), ("grad_head", head.grad)):
            expected = torch.from_numpy(stored[key.replace("loss_mean", which)])
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
        tested += 1
    assert tested


@pytest.mark.parametrize(("scale", "cap"), BOUNDS)
@pytest.mark.parametrize("chunk_size", [1, 4, 100])
def test_bounded_gradients_agree_with_finite_differences(scale, cap, chunk_size):
    hidden, head_weight, targets = case()
    how = {"chunk_size": chunk_size, "scale": scale, "cap": cap}
    assert torch.autograd.gradcheck(
        lambda *inputs: linear_token_logprobs(*inputs, targets, **how), (hidden, head_weight)
    )


@pytest.mark.parametrize(("scale", "cap"), BOUNDS)
@pytest.mark.parametrize("frozen", ["nothing", "head", "hidden"])
def test_bounded_values_and_gradients_are_the_naive_ones(scale, cap, frozen):
    hidden, head_weight, targets = case(tokens=50, vocabulary=9000)  # more than one stripe
    hidden.requires_grad_(frozen != "hidden")
    head_weight.requires_grad_(frozen != "head")
    found = linear_token_logprobs(hidden, head_weight, targets, chunk_size=7, scale=scale, cap=cap)
    logits = bounded_logits(hidden @ head_weight.T, scale=scale, cap=cap)
    expected = logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    learning = [tensor for tensor in (hidden, head_weight) if tensor.requires_grad]
    grad = torch.randn(50, dtype=torch.float64)
    grads = torch.autograd.grad(found, learning, grad, retain_graph=True)
    for one, other in zip(grads, torch.autograd.grad(expected, learning, grad), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    again = torch.autograd.grad(found, learning, grad)
    assert all(torch.equal(one, other) for one, other in zip(grads, again, strict=True))


def test_a_cap_that_is_far_away_is_none():
    hidden, head_weight, targets = case()
    plain = linear_token_logprobs(hidden, head_weight, targets, chunk_size=5)
    far = linear_token_logprobs(hidden, head_weight, targets, chunk_size=5, cap=1e9)
    torch.testing.assert_close(far, plain, rtol=0, atol=1e-12)


def test_log_probs_have_a_bound_under_a_cap():
    """``-(2c + log V)``, whatever the states are."""
    hidden, head_weight, targets = case()
    found = linear_token_logprobs(1e4 * hidden, head_weight, targets, chunk_size=5, cap=2.0)
    assert (found >= -(4 + math.log(17))).all() and found.min() < -3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bounded_gradients_in_lower_precision(dtype):
    """Near the cap: in bfloat16 its slope would be 0 or 1 %."""
    hidden, head_weight, targets = case(dtype=dtype, width=6)
    with torch.no_grad():
        hidden.mul_(4)
    found = linear_token_logprobs(hidden, head_weight, targets, chunk_size=5, cap=4.0)
    found.sum().backward()
    wide = [tensor.detach().double().requires_grad_() for tensor in (hidden, head_weight)]
    expected = linear_token_logprobs(*wide, targets, chunk_size=5, cap=4.0)
    expected.sum().backward()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-2
    for one, other in zip((hidden, head_weight), wide, strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=tolerance, atol=tolerance)
