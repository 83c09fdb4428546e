"""Preference losses: the published numbers with gradients, finite differences, and the limits that must hold."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from prefkd.method.logprobs import parent_logprobs, token_logprobs
from prefkd.method.preference import dpo_loss, ipo_loss, parent_margin, position_kl, tis_dpo_loss

FOUR = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")


def close(found, expected):
    torch.testing.assert_close(found.detach(), torch.as_tensor(expected, dtype=found.dtype), rtol=1e-9, atol=1e-9)


def four(seed=0, examples=4):
    generator = torch.Generator().manual_seed(seed)
    return [20 * torch.randn(examples, generator=generator, dtype=torch.float64) - 50 for _ in FOUR]


# The published numbers


def test_published_pair_losses(golden: Path):
    stored = np.load(golden / "dpo_tisdpo.npz")
    losses = {
        "dpo": (dpo_loss, {}),
        "cdpo0.1": (dpo_loss, {"label_smoothing": 0.1}),
        "cdpo0.3": (dpo_loss, {"label_smoothing": 0.3}),
        "dpo_reffree": (dpo_loss, {"reference_free": True}),
        "ipo": (ipo_loss, {}),
        "ipo_reffree": (ipo_loss, {"reference_free": True}),
    }
    cases = [key.split("/")[1:4] for key in stored if key.startswith("pref/") and key.endswith("/losses")]
    assert cases
    for name, beta, kind in cases:
        inputs = [torch.from_numpy(stored[f"pref/{name}/{part}"]) for part in FOUR]
        inputs[0].requires_grad_()
        inputs[1].requires_grad_()
        loss, options = losses[kind]
        found = loss(*inputs, beta=float(beta.removeprefix("beta")), **options)
        expected = f"pref/{name}/{beta}/{kind}"
        for values, part in zip(found, ("losses", "chosen_rewards", "rejected_rewards"), strict=True):
            close(values, stored[f"{expected}/{part}"])
        assert not found[1].requires_grad
        assert not found[2].requires_grad
        found[0].sum().backward()
        close(inputs[0].grad, stored[f"{expected}/grad_chosen"])
        close(inputs[1].grad, stored[f"{expected}/grad_rejected"])


def test_published_tis_dpo(golden: Path):
    stored = np.load(golden / "dpo_tisdpo.npz")
    cases = [key.split("/")[1:3] for key in stored if key.startswith("tis/") and key.endswith("/losses")]
    assert cases
    for name, setting in cases:
        with_kl, beta, alpha = setting.split("_")
        margins, divergences, leaves = [], [], []
        for side in ("chosen", "rejected"):
            logits, reference, labels, weights = (
                torch.from_numpy(stored[f"tis/{name}/{side}/{part}"]) for part in ("logits", "ref", "labels", "w")
            )
            leaves.append(logits.requires_grad_())
            tokens, reference_tokens = token_logprobs(logits, labels), token_logprobs(reference, labels)
            close((weights * tokens).sum(-1), stored[f"tis/{name}/{side}/weighted_logps"])
            margins.append(parent_margin(tokens, reference_tokens, weights, labels != -100))
            divergences.append(position_kl(logits, reference, labels, weights))
            close(margins[-1], stored[f"tis/{name}/{side}/margin"])
            close(divergences[-1], stored[f"tis/{name}/{side}/position_kl"])
        kl = {"chosen_kl": divergences[0], "rejected_kl": divergences[1]} if with_kl == "kl1" else {}
        found = tis_dpo_loss(*margins, beta=float(beta[4:]), alpha=float(alpha[5:]), **kl)
        for values, part in zip(found, ("losses", "chosen_rewards", "rejected_rewards"), strict=True):
            close(values, stored[f"tis/{name}/{setting}/{part}"])
        found[0].sum().backward()
        for leaf, side in zip(leaves, ("chosen", "rejected"), strict=True):
            close(leaf.grad, stored[f"tis/{name}/{setting}/grad_{side}"])


def test_published_parent_tis_dpo(golden: Path):
    stored = np.load(golden / "parent_tisdpo.npz")
    cases = [key.split("/")[:2] for key in stored if key.endswith("/losses")]
    assert cases
    for name, beta in cases:
        margins, leaves = [], []
        for side in ("chosen", "rejected"):
            parents, weighted = [], torch.from_numpy(stored[f"{name}/{side}/weights"])
            for model in ("student", "teacher"):
                part = f"{name}/{side}/{model}"
                logits, labels = (torch.from_numpy(stored[f"{part}/{key}"]) for key in ("logits", "labels"))
                leaves.append(logits.requires_grad_())
                ids = parent_ids(labels, stored[f"{part}/parent_ranges"])
                parents.append(parent_logprobs(token_logprobs(logits, labels), ids, weighted.shape[1]))
                close(parents[-1], stored[f"{part}/parent_logps"])
            mask = torch.arange(weighted.shape[1]) < torch.from_numpy(stored[f"{name}/{side}/num_parents"])[:, None]
            margins.append(parent_margin(*parents, weighted, mask))
            close(margins[-1], stored[f"{name}/{beta}/{side}_margin"])
            close((weighted * parents[0]).sum(-1), stored[f"{name}/{beta}/{side}_weighted_logps"])
        found = tis_dpo_loss(*margins, beta=float(beta[4:]))
        for values, part in zip(found, ("losses", "chosen_rewards", "rejected_rewards"), strict=True):
            close(values, stored[f"{name}/{beta}/{part}"])
        found[0].sum().backward()
        close(leaves[0].grad, stored[f"{name}/{beta}/grad_chosen"])
        close(leaves[2].grad, stored[f"{name}/{beta}/grad_rejected"])
        assert leaves[1].grad is None, "the teacher is a constant"
        assert leaves[3].grad is None


def parent_ids(labels: torch.Tensor, ranges: np.ndarray) -> torch.Tensor:
    """Parent of each position from token ranges inside the response; -1 where there is none."""
    ids = torch.full_like(labels, -1)
    for row, spans in enumerate(ranges.tolist()):
        response = int((labels[row] != -100).nonzero()[0])
        for parent, (first, end) in enumerate(spans):
            if first >= 0:
                ids[row, response + first : response + end] = parent
    return ids


# Finite differences


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("reference_free", [False, True])
def test_dpo_gradients_agree_with_finite_differences(label_smoothing, reference_free):
    inputs = [value.requires_grad_() for value in four()]
    options = {"beta": 0.1, "label_smoothing": label_smoothing, "reference_free": reference_free}
    assert torch.autograd.gradcheck(lambda *values: dpo_loss(*values, **options)[0], inputs)


def test_ipo_gradients_agree_with_finite_differences():
    inputs = [value.requires_grad_() for value in four()]
    assert torch.autograd.gradcheck(lambda *values: ipo_loss(*values, beta=0.1)[0], inputs)


def test_tis_dpo_gradients_agree_with_finite_differences():
    inputs = [(value / 20).requires_grad_() for value in four()]

    def loss(chosen, rejected, chosen_kl, rejected_kl):
        options = {"beta": 0.3, "label_smoothing": 0.1, "alpha": 0.7}
        return tis_dpo_loss(chosen, rejected, chosen_kl=chosen_kl, rejected_kl=rejected_kl, **options)[0]

    assert torch.autograd.gradcheck(loss, inputs)


def test_position_kl_gradients_agree_with_finite_differences():
    policy = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(2, 4, 5, dtype=torch.float64)
    labels = torch.tensor([[-100, 1, 2, -100], [-100, -100, 0, 3]])
    weights = torch.rand(2, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda logits: position_kl(logits, reference, labels, weights), policy)


# Limits


def test_equal_policies_lose_log_2():
    same = [torch.tensor([-30.0, 0.0], dtype=torch.float64)] * 4  # a log-probability of exactly 0 is a value
    close(dpo_loss(*same, beta=0.1)[0], torch.full((2,), math.log(2), dtype=torch.float64))
    close(tis_dpo_loss(torch.zeros(2), torch.zeros(2), beta=0.5)[0], torch.full((2,), math.log(2)))


def test_weights_of_zero_lose_log_2_without_a_gradient_even_at_impossible_tokens():
    policy = torch.tensor([[-1.0, -math.inf, -3.0]], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([[-2.0, -1.0, -math.inf]], dtype=torch.float64)
    margin = parent_margin(policy, reference, torch.zeros(1, 3, dtype=torch.float64), torch.ones(1, 3).bool())
    losses, *_ = tis_dpo_loss(margin, torch.zeros(1, dtype=torch.float64), beta=0.1)
    close(losses, [math.log(2)])
    losses.sum().backward()
    assert policy.grad.tolist() == [[0, 0, 0]]


def test_weights_of_one_give_dpo_with_its_gradients():
    tokens = [torch.randn(3, 6, dtype=torch.float64).requires_grad_(i < 2) for i in range(4)]
    sums = [value.sum(-1) for value in tokens]
    ones, mask = torch.ones(3, 6, dtype=torch.float64), torch.ones(3, 6).bool()
    margins = [parent_margin(tokens[i], tokens[i + 2], ones, mask) for i in range(2)]
    for smoothing in (0.0, 0.2):
        plain = dpo_loss(*sums, beta=0.3, label_smoothing=smoothing)
        weighted = tis_dpo_loss(*margins, beta=0.3, label_smoothing=smoothing)
        for one, other in zip(plain, weighted, strict=True):
            close(one, other.detach())
        grads = [torch.autograd.grad(loss[0].sum(), tokens[:2], retain_graph=True) for loss in (plain, weighted)]
        for one, other in zip(*grads, strict=True):
            close(one, other)


def test_one_tokenizer_on_both_sides_gives_token_level_tis_dpo():
    tokens, reference, weights = (torch.randn(2, 5, dtype=torch.float64) for _ in range(3))
    ids = torch.arange(5).expand(2, 5)
    mask = torch.ones(2, 5).bool()
    over_parents = parent_margin(parent_logprobs(tokens, ids, 5), parent_logprobs(reference, ids, 5), weights, mask)
    close(over_parents, (weights * (tokens - reference)).sum(-1))


def test_a_parent_weight_acts_on_each_of_its_tokens():
    tokens = torch.randn(2, 5, dtype=torch.float64)
    ids = torch.tensor([[0, 0, 1, 2, 2], [0, 1, 1, -1, -1]])
    weights = torch.rand(2, 3, dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    spread = weights.gather(1, ids.clamp(min=0)) * (ids >= 0)
    found = parent_margin(parent_logprobs(tokens, ids, 3), torch.zeros(2, 3, dtype=torch.float64), weights, mask)
    close(found, (spread * tokens).sum(-1))


def test_padding_of_parents_takes_no_part_whatever_it_holds():
    policy = torch.tensor([[-1.0, -math.inf]], requires_grad=True)
    margin = parent_margin(
        policy, torch.tensor([[-3.0, math.nan]]), torch.tensor([[0.5, math.nan]]), torch.tensor([[True, False]])
    )
    assert margin.tolist() == [1.0]
    margin.sum().backward()
    assert policy.grad.tolist() == [[0.5, 0.0]]


def test_the_order_of_examples_changes_nothing():
    inputs, order = four(examples=5), torch.tensor([3, 0, 4, 2, 1])
    for loss in (dpo_loss, ipo_loss):
        for straight, mixed in zip(loss(*inputs, beta=0.1), loss(*(v[order] for v in inputs), beta=0.1), strict=True):
            assert torch.equal(straight[order], mixed)


def test_saturated_pairs_stay_finite():
    far = torch.tensor([-1e4, 1e4], dtype=torch.float32, requires_grad=True)
    losses, *_ = tis_dpo_loss(far, -far, beta=0.5, label_smoothing=0.1)
    losses.sum().backward()
    assert losses.isfinite().all()
    close(far.grad, [-0.9, 0.1])


def test_position_kl_ignores_masked_vocabulary_padding_and_other_positions():
    policy = torch.randn(1, 3, 6, dtype=torch.float64)
    reference = torch.randn(1, 3, 6, dtype=torch.float64)
    labels = torch.tensor([[-100, 2, -100]])
    short = position_kl(policy[..., :4], reference[..., :4], labels)
    policy[..., 4:] = reference[..., 4:] = -math.inf
    policy[:, 1:] = math.nan
    policy.requires_grad_()
    found = position_kl(policy, reference, labels)
    close(found, short)
    found.sum().backward()
    assert policy.grad.isfinite().all()
    assert (policy.grad[:, 1:] == 0).all()
    wider = [torch.nn.functional.pad(value.detach(), (0, 0, 0, 2)) for value in (policy, reference)]
    close(position_kl(*wider, torch.nn.functional.pad(labels, (0, 2), value=-100)), short)


def test_position_kl_at_a_target_of_weight_0_is_0_even_if_the_reference_forbids_what_the_policy_allows():
    policy = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(1, 3, 4, dtype=torch.float64)
    reference[0, 0, 1] = -math.inf
    labels, weights = torch.tensor([[-100, 2, 3]]), torch.tensor([[0.0, 0.0, 1.0]])
    found = position_kl(policy, reference, labels, weights)
    close(found, position_kl(policy, reference, labels.masked_fill(weights == 0, -100)))
    found.sum().backward()
    assert found.isfinite().all() and policy.grad.isfinite().all()


def test_position_kl_of_equal_models_is_zero():
    logits = torch.randn(2, 4, 7, dtype=torch.float64, requires_grad=True)
    found = position_kl(logits, logits.detach(), torch.randint(7, (2, 4)))
    assert found.tolist() == [0.0, 0.0]
    found.sum().backward()
    assert logits.grad.abs().max() < 1e-15


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"label_smoothing is 0\.5"):
        dpo_loss(*four(), beta=0.1, label_smoothing=0.5)
    for loss in (dpo_loss, ipo_loss):
        with pytest.raises(ValueError, match=r"beta is -0\.1"):
            loss(*four(), beta=-0.1)
    with pytest.raises(ValueError, match="beta is 0"):
        tis_dpo_loss(torch.zeros(1), torch.zeros(1), beta=0)
    with pytest.raises(ValueError, match="give both or neither"):
        tis_dpo_loss(torch.zeros(1), torch.zeros(1), beta=0.1, chosen_kl=torch.zeros(1))
