"""Terms that distil preferences: once more from whole logits, across tokenizers and on one vocabulary."""

import math
from dataclasses import replace

import pytest
import torch

from prefkd.data.batches import StepCounts
from prefkd.data.vocabulary import Vocabularies
from prefkd.method import preference as losses
from prefkd.method import preference_distillation as method
from prefkd.method.divergences import divergence
from prefkd.training import terms
from prefkd.training.objective import Objective
from prefkd.training.signals import Signals
from tests.training.test_shared_token_terms import ALONE, STUDENT, TEACHER, TOKENIZERS, VOCABULARIES, states

SIDES = {"chosen": 0, "rejected": 1}


@pytest.fixture
def signals() -> Signals:
    mask = torch.tensor([[[1, 1, 1], [1, 1, 0]], [[1, 1, 0], [1, 1, 1]]]).bool()
    generator = torch.Generator().manual_seed(3)
    policy, reference = (-torch.rand(2, 2, 2, 3, generator=generator, dtype=torch.float64) * mask).unbind()
    models = [states(TEACHER, len(TOKENIZERS[1]), 6, seed=seed) for seed in (2, 4, 5)]
    return Signals(
        policy=policy.requires_grad_(),
        parent_mask=mask,
        student=states(STUDENT, len(TOKENIZERS[0]), 4, seed=1),
        reference=reference,
        teacher_logprobs=reference,
        teacher=models[0],
        positive=models[1],
        negative=models[2],
        vocabularies=VOCABULARIES,
    )


@pytest.fixture
def one_vocabulary(signals) -> Signals:
    """The same, but teachers of the student's tokenizer, which is read alike."""
    tokens = len(TOKENIZERS[0])
    models = [replace(states(STUDENT, tokens, 6, seed=seed), targets=signals.student.targets) for seed in (2, 4, 5)]
    names = ("teacher", "positive", "negative")
    vocabularies = Vocabularies.of(TOKENIZERS[0], TOKENIZERS[0])
    return replace(signals, **dict(zip(names, models, strict=True)), vocabularies=vocabularies)


def alone(signals: Signals, pair: int, *models: str, temperature: float = 1.0) -> list[torch.Tensor]:
    """Probabilities of shared tokens and of all others, at the one place of a chosen answer where that is known."""
    own, other = ALONE[pair]
    found = [(signals.student.answers()[pair].logits()[own], VOCABULARIES.shared.student)]
    for model in models:
        logits = getattr(signals, model).answers()[pair].logits()[other].detach()
        found.append((logits, VOCABULARIES.shared.teacher))
    shared = [((logits / temperature).softmax(-1)[ids]) for logits, ids in found]
    return [torch.cat([values, 1 - values.sum(-1, keepdim=True)]) for values in shared]


def logits_alone(signals: Signals, pair: int, model: str) -> torch.Tensor:
    return getattr(signals, model).answers()[pair].logits()[ALONE[pair][1]].detach()


def test_align_distil_of_each_pair(signals):
    """The target is made of the teacher's whole vocabulary, before tokens are put together."""
    values, _ = terms.align_distil(signals, beta=0.2, strength=5.0, temperature=2.0)
    for pair in (0, 1):
        positive, negative = (logits_alone(signals, pair, name) for name in ("positive", "negative"))
        weight = 5 * (positive.softmax(-1) - negative.softmax(-1)).abs().sum() + 1e-3
        target = ((positive + weight * (positive - negative)) / 2).softmax(-1)[VOCABULARIES.shared.teacher]
        q = torch.cat([target, 1 - target.sum(-1, keepdim=True)])
        (p,) = alone(signals, pair)
        torch.testing.assert_close(values[pair], 0.2 / weight * (p * (p / q).log()).sum())


def test_dckd_and_adpa_of_each_pair(signals):
    kl, _ = terms.dckd(signals, temperature=2.0)
    advantage, _ = terms.adpa(signals)
    for pair in (0, 1):
        p, q = alone(signals, pair, "positive", temperature=2.0)
        torch.testing.assert_close(kl[pair], (q * (q / p).log()).sum())
        p, positive, negative = alone(signals, pair, "positive", "negative")
        torch.testing.assert_close(advantage[pair], -(p * (positive / negative).log()).sum())


def test_tvkd_shifts_the_margin_by_values_a_parent(signals):
    losses, logged = terms.tvkd(signals, beta=0.3, gamma=0.6, temperature=3.0, reduce="sum")
    values = torch.zeros(2, 2, dtype=torch.float64)
    for answer, model in enumerate(signals.positive.answers()):
        each = 3 * (model.logits().log_softmax(-1) / 3).logsumexp(-1)
        parents = signals.parent_mask.sum(-1).flatten()[answer]
        values[answer // 2, answer % 2] = each[1:].sum().detach() * parents / len(each)
    h = (signals.policy - signals.reference).sum(-1)
    expected = -torch.nn.functional.logsigmoid(0.3 * (h[0] - h[1]) - 0.4 * (values[0] - values[1]))
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(logged["chosen_value"], values[0])
    _, means = terms.tvkd(signals, temperature=3.0)
    torch.testing.assert_close(means["chosen_value"], values[0] / signals.parent_mask[0].sum(-1))
    plain, _ = terms.dpo(signals, beta=0.3)
    for settings in ({"gamma": 1.0}, {"temperature": 1.0}):
        torch.testing.assert_close(terms.tvkd(signals, beta=0.3, **settings)[0], plain)


def test_preference_losses_by_name(signals):
    """On sums, on means over parents, or with the lengths that a loss divides by itself."""
    parents = signals.parent_mask.sum(-1)
    policy, reference = signals.policy.sum(-1), signals.reference.sum(-1)
    hinge, _ = terms.preference(signals, loss="hinge_loss", settings={"beta": 0.4})
    torch.testing.assert_close(hinge, losses.hinge_loss(*policy, *reference, beta=0.4)[0])
    torch.testing.assert_close(terms.preference(signals)[0], terms.dpo(signals)[0])
    found, _ = terms.preference(signals, loss="ipo_loss", average=True)
    torch.testing.assert_close(found, terms.ipo(signals)[0])
    found, logged = terms.preference(signals, loss="sigmoid_norm_loss", settings={"beta": 2.0})
    lengths = {"chosen_length": parents[0], "rejected_length": parents[1]}
    expected, chosen, _ = losses.sigmoid_norm_loss(*policy, *reference, beta=2.0, **lengths)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(logged["chosen_reward"], chosen)


def test_pad_compares_means_of_parents(signals):
    losses, logged = terms.pad(signals, beta=4.0, form="js")
    parents = signals.parent_mask.sum(-1)
    p, q = (
        torch.sigmoid(4 * (values.sum(-1) / parents)[0] - 4 * (values.sum(-1) / parents)[1])
        for values in (signals.policy, signals.teacher_logprobs)
    )
    expected = torch.zeros(2, dtype=torch.float64)
    for left, right in ((p, q), (1 - p, 1 - q)):
        m = (left + right) / 2
        expected = expected + (left * (left / m).log() + right * (right / m).log()) / 2
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(logged["ranking_agreement"], ((p > 0.5) == (q > 0.5)).float())


def test_distillm2_is_a_mean_over_the_targets_of_each_answer(signals):
    losses, logged = terms.distillm2(signals, skew=0.2, balance=0.5)
    for pair in (0, 1):
        p, q = alone(signals, pair, "teacher")
        forward = (q * (q / (0.2 * q + 0.8 * p)).log()).sum() / len(STUDENT[pair])
        torch.testing.assert_close(logged["forward_kl"][pair], forward.detach())
        torch.testing.assert_close(losses[pair].detach(), 1.5 * forward.detach() + 0.5 * logged["reverse_kl"][pair])


def test_on_one_vocabulary_they_are_the_published_formulas(one_vocabulary):
    signals = one_vocabulary
    lengths = [len(answer) for answer in STUDENT]
    tokens = len(TOKENIZERS[0])  # rows of a head beyond them are not tokens, and lie in the bucket of all others
    fits = {
        name: replace(getattr(signals, name), head=getattr(signals, name).head[:tokens])
        for name in ("student", "teacher", "positive", "negative")
    }
    signals = replace(signals, **fits, sides=(0, 1))
    p, q, positive, negative = (model.logits().detach() for model in fits.values())

    def sums(values):
        return torch.stack([part.sum() for part in values.split(lengths)]).view(2, 2).sum(0)

    expected = {
        "align_distil": method.align_distil_loss(p, positive, negative),
        "dckd": divergence("forward_kl", p, positive),
        "adpa": method.advantage_loss(*(values.log_softmax(-1) for values in (p, positive, negative))),
        "shared_tokens": divergence("forward_kl", p, q),
    }
    for name, values in expected.items():
        found, logged = getattr(terms, name)(signals)
        torch.testing.assert_close(found.detach(), sums(values))
        torch.testing.assert_close(logged["student_shared_mass"][0], torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "touched"),
    [("align_distil", {0, 5}), ("dckd", {0, 5, 8}), ("adpa", {8}), ("distillm2", {0, 5, 8})],
)
def test_gradients_reach_the_student_alone(signals, name, touched):
    objective = Objective([{"_component_": f"prefkd.training.terms.{name}"}])
    losses, metrics = objective(signals, StepCounts(pairs=2, tokens=(6, 7), parents=(5, 5)))
    losses.sum().backward()
    assert set((signals.student.hidden.grad != 0).any(-1).nonzero().flatten().tolist()) == touched
    assert all(getattr(signals, model).hidden.grad is None for model in ("teacher", "positive", "negative"))
    assert all(math.isfinite(value) for values in metrics.values() for value in values.tolist())


def test_answers_are_those_of_the_paper_unless_a_config_says_otherwise():
    named = {name: {"_component_": f"prefkd.training.terms.{name}"} for name in ("align_distil", "dckd", "adpa")}
    assert [Objective([component]).terms[0].sides for component in named.values()] == [(0,), (0, 1), (1,)]
    assert Objective([named["adpa"] | {"answers": "chosen"}]).terms[0].sides == (0,)


@pytest.mark.parametrize(
    ("name", "settings", "text"),
    [
        ("preference", {"loss": "hingeloss"}, "no preference loss is called 'hingeloss'; did you mean hinge_loss"),
        ("preference", {"loss": "simpo_loss"}, "simpo_loss compares with no reference"),
        ("preference", {"loss": "bco_loss"}, "bco_loss depends on all pairs of a step"),
        ("preference", {"loss": "ipo_loss"}, "set average: true"),
        ("preference", {"loss": "tis_dpo_loss"}, "use term tis_dpo"),
        ("preference", {"loss": "sigmoid_norm_loss", "average": True}, "remove average"),
        ("preference", {"settings": {"tau": 0.1}}, "dpo_loss: .*tau"),
        ("preference", {"settings": {"beta": 0.0}}, "beta is 0.0"),
        ("align_distil", {"beta": 0.0}, "beta is 0.0"),
        ("align_distil", {"temperature": 0.0}, "temperature is 0.0"),
        ("dckd", {"temperature": -1.0}, "temperature is -1.0"),
        ("tvkd", {"temperature": 0.0}, "temperature is 0.0"),
        ("tvkd", {"gamma": 1.5}, "gamma is 1.5"),
        ("distillm2", {"skew": 1.0}, "skew is 1.0"),
        ("distillm2", {"balance": -1.0}, "balance is -1.0"),
    ],
)
def test_settings_that_make_no_sense(signals, name, settings, text):
    with pytest.raises(ValueError, match=text):
        getattr(terms, name)(signals, **settings)
