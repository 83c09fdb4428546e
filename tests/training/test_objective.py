"""How terms are put together, without a model: what is divided by what, and a term of a user's own."""

import textwrap
from dataclasses import replace

import pytest
import torch

from prefkd.data.batches import StepCounts
from prefkd.data.vocabulary import Vocabularies
from prefkd.method import baselines
from prefkd.method.divergences import divergence
from prefkd.method.dual_space import DualSpaceProjectors
from prefkd.models.logprob_model import TokenStates
from prefkd.training import terms as terms
from prefkd.training.objective import Objective
from prefkd.training.signals import Signals, term, with_implied

B, P = 3, 4
STEP = StepCounts(pairs=10, tokens=(40, 60), parents=(20, 25))


def states(lengths: tuple[int, ...], vocabulary: int, hidden: int, seed: int) -> TokenStates:
    """Random states in float64; the head is not the embedding."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    ids = torch.randint(vocabulary, (2, sum(lengths)), generator=generator)
    return TokenStates(
        inputs=ids[0],
        targets=ids[1],
        parents=torch.cat([torch.arange(length) + P * answer for answer, length in enumerate(lengths)]),
        hidden=draw(sum(lengths), hidden).requires_grad_(),
        embedding=draw(vocabulary, hidden),
        head=draw(vocabulary, hidden).requires_grad_(),
        lengths=lengths,
        chunk_size=2,
    )


@pytest.fixture
def signals() -> Signals:
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(P) < torch.tensor([[4, 2, 3], [1, 4, 2]])[:, :, None]
    policy, reference, weights = (-torch.rand(3, 2, B, P, generator=generator, dtype=torch.float64) * mask).unbind()
    torch.manual_seed(0)
    return Signals(
        policy=policy.requires_grad_(),
        parent_mask=mask,
        student=states((4, 2, 3, 5, 4, 2), vocabulary=11, hidden=4, seed=1),
        reference=reference,
        weights=-weights,
        teacher_logprobs=reference,
        teacher=states((3, 2, 5, 4, 4, 3), vocabulary=13, hidden=6, seed=2),
        projectors=DualSpaceProjectors(4, 6).double(),
        vocabularies=Vocabularies(tuple("abcdefghijk"), tuple("abcdefghijklm")),
    )


@term(unit="token")
def ones(signals: Signals, scale: float = 1.0):
    return torch.full((signals.policy.shape[1],), scale), {"margin": torch.ones(signals.policy.shape[1])}


def named(name: str, **settings) -> dict:
    return {"_component_": f"tests.training.test_objective.{name}", **settings}


def shipped(name: str, **settings) -> dict:
    return {"_component_": f"prefkd.training.terms.{name}", **settings}


@pytest.mark.parametrize(("answers", "tokens"), [("chosen", 40), ("rejected", 60), ("both", 100)])
def test_a_sum_over_tokens_is_divided_by_those_of_the_step(signals, answers, tokens):
    """The mean over 10 pairs of a step is then the sum over all pairs divided by all tokens."""
    losses, metrics = Objective([named("ones", weight=3.0, answers=answers, scale=2.0)])(signals, STEP)
    torch.testing.assert_close(losses, torch.full((B,), 3 * 2 * 10 / tokens, dtype=torch.float64), check_dtype=False)
    torch.testing.assert_close(metrics["ones"], torch.full((B,), 2 * 10 / tokens))


def test_weights_count_in_terms_that_compare_two_answers_and_in_all_where_there_is_one(signals):
    weight = torch.tensor([0.0, 1.0, 2.0])
    for rejected, factor in ((25, 1.0), (0, weight)):
        step = replace(STEP, parents=(20, rejected))
        for one in ({"pair_weight": 1.0}, {"pair_weight": weight}):
            losses, metrics = Objective([named("ones")])(replace(signals, **one), step)
            own = factor if one["pair_weight"] is weight else 1.0
            torch.testing.assert_close(losses.float(), torch.full((B,), 10 / 40) * own)
            torch.testing.assert_close(metrics["ones"], torch.full((B,), 10 / 40) * own)


def test_names_stay_apart(signals):
    components = [named("ones"), named("ones"), shipped("dpo")]
    _, metrics = Objective(components)(signals, STEP)
    assert {"ones", "ones 2", "dpo", "margin", "ones 2 margin", "dpo margin", "accuracy"} <= metrics.keys()
    assert str(Objective([*components, shipped("alm", weight=0.5)])) == "1 ones + 1 ones 2 + 1 dpo + 0.5 alm"


def test_needs_follow_from_needs():
    assert with_implied(["weights", "projectors"]) == {"weights", "reference", "projectors", "teacher_states"}
    assert Objective([shipped("cross_entropy")]).needs == set()
    needs = {"weights", "reference", "margin", "teacher_logprobs"}
    assert Objective([shipped("tis_dpo"), shipped("alm")]).needs == needs


def test_cross_entropy_and_alm_are_sums_over_parents(signals):
    both = replace(signals, sides=(0, 1))
    torch.testing.assert_close(terms.cross_entropy(both), -signals.policy.sum((0, 2)))
    per_parent = [
        baselines.alm_loss(
            signals.policy[side, pair, p].view(1, 1),
            signals.reference[side, pair, p].view(1, 1),
            torch.ones(1, 1, dtype=torch.bool),
            temperature=5.0,
        )
        for side, pair, p in signals.parent_mask.nonzero().tolist()
    ]
    torch.testing.assert_close(terms.alm(both, temperature=5.0).sum(), torch.stack(per_parent).sum())


def test_uld_in_chunks_is_uld_of_the_whole(signals):
    values = terms.uld(replace(signals, sides=(1,)))
    for pair in range(B):
        student, teacher = signals.student.answers()[B + pair], signals.teacher.answers()[B + pair]
        logits, labels = zip(*((side.logits()[None], side.targets[None]) for side in (student, teacher)), strict=True)
        torch.testing.assert_close(values[pair], baselines.uld_loss(*logits, *labels))


def test_same_vocabulary_is_a_divergence_at_each_target(signals):
    """A head may have rows beyond the tokens, which the other model's has not."""
    other = replace(
        states((4, 2, 3, 5, 4, 2), vocabulary=13, hidden=6, seed=3),
        targets=signals.student.targets,
    )
    values = terms.same_vocabulary(replace(signals, teacher=other), "js_divergence", temperature=2.0)
    each = divergence("js_divergence", signals.student.logits(), other.logits()[:, :11], temperature=2.0)
    torch.testing.assert_close(values, torch.stack([part.sum() for part in each[:9].split([4, 2, 3])]))


@pytest.mark.parametrize("name", ["dual_space", "uld"])
def test_gradients_reach_the_student_and_not_the_teacher(signals, name):
    getattr(terms, name)(signals)
    losses, _ = Objective([shipped(name)])(signals, STEP)
    losses.sum().backward()
    chosen, rejected = signals.student.hidden.grad[:9], signals.student.hidden.grad[9:]
    assert (chosen != 0).any(-1).sum() >= 7 and not rejected.any()
    assert signals.student.head.grad is not None or name == "dual_space"
    assert signals.teacher.hidden.grad is None or not signals.teacher.hidden.grad.any()


def test_the_example_of_the_documentation_works(signals):
    example = textwrap.dedent(terms.__doc__.partition("names it:\n\n")[2])
    found: dict = {}
    exec(example, found)
    values = found["entropy"](signals, floor=1.0)
    assert values.shape == (B,) and found["entropy"].unit == "token"
    logprobs = signals.student.logits()[:4].log_softmax(-1)
    torch.testing.assert_close(values[0], (1 + (logprobs.exp() * logprobs).sum(-1)).clamp_min(0).sum())
