"""Terms that distil what teachers prefer (`prefkd.method.preference_distillation`).

pi+ and pi- are what the section `contrast` of the config says: the teacher under two instructions, or two models of the
teacher's family: one learned the preferences by DPO and the other is its reference, or learned the opposite.

Distributions are compared as by term `shared_tokens`: over the tokens that both vocabularies have and one bucket for
all others, where a parent is one token on each side; models of one vocabulary are compared over all tokens at every
target. The same is logged.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from prefkd.errors import first_line, nearest
from prefkd.method import preference as losses_by_name
from prefkd.method import preference_distillation
from prefkd.method.divergences import divergence
from prefkd.method.loss_needs import require_positive
from prefkd.method.preference_distillation import AlignForm
from prefkd.method.top_rows import TopRows
from prefkd.models.logprob_model import TokenStates
from prefkd.models.top_states import TopStates
from prefkd.training.shared_token_terms import Distributions, at_shared_places, lumped, numbers, shared_of
from prefkd.training.signals import Losses, Signals, term


@term(needs=["reference"])
def preference(
    signals: Signals, loss: str = "dpo_loss", settings: dict[str, Any] | None = None, average: bool = False
) -> Losses:
    """Any preference loss that compares with a reference, on whole answers.

    Args:
        loss: A name of `prefkd.method.preference`.
        settings: Its settings, beta 0.1 where that is not given.
        average: Compare means over parents, as ipo_loss needs it, in the place of sums.
    """
    assert signals.reference is not None
    function, needs = named_loss(loss, average)
    parents = signals.parent_mask.sum(-1)
    policy, reference = signals.policy.sum(-1), signals.reference.sum(-1)
    if average:
        policy, reference = policy / parents, reference / parents
    how = {"beta": 0.1} | (settings or {})
    if "lengths" in needs:
        how |= {"chosen_length": parents[0], "rejected_length": parents[1]}
    try:
        return rewarded(*function(*policy, *reference, **how))
    except TypeError as error:  # a setting that it does not have
        raise ValueError(f"{loss}: {first_line(error)}") from error


def named_loss(name: str, average: bool) -> tuple[Any, frozenset[str]]:
    """A preference loss that `preference` can call, and what it needs.

    Raises:
        ValueError: The loss is unknown, or it needs something that a term does not have.
    """
    known = [key for key in losses_by_name.__all__ if key.endswith("_loss")]
    function = getattr(losses_by_name, name) if name in known else None
    needs: frozenset[str] = getattr(function, "needs", frozenset())
    if function is None:
        raise ValueError(f"no preference loss is called {name!r}{nearest(name, known)}")
    if "margins" in needs:
        raise ValueError(f"{name} compares weighted margins; use term tis_dpo")
    if "reference" not in needs:
        raise ValueError(f"{name} compares with no reference; use recipe dpo")
    if needs & {"batch", "delta"}:
        raise ValueError(f"{name} depends on all pairs of a step; use recipe dpo_distill")
    if "means" in needs and not average:
        raise ValueError(f"{name} compares means, with sums long answers would decide; set average: true")
    if "lengths" in needs and average:
        raise ValueError(f"{name} divides by the lengths itself; remove average")
    return function, needs


@term(needs=["vocabularies", "positive_states", "negative_states"], unit="token", cached=True)
def align_distil(
    signals: Signals,
    beta: float = 0.1,
    strength: float = 10.0,
    temperature: float = 1.0,
    form: AlignForm = "adaptive",
) -> Losses:
    """AlignDistil (arXiv 2503.02832): the student follows pi+, moved further away from pi- where the two differ.

    Args:
        beta: The beta of the DPO that made pi+.
        strength: How far beyond pi+ the target goes.
        temperature: Temperature of the target.
        form: `adaptive` is the method, the others are its ablations.
    """
    shared = shared_of(signals)

    def loss(student: Tensor, positive: Any, negative: Any) -> Tensor:
        how: Any = {"beta": beta, "strength": strength, "form": form}
        if isinstance(positive, TopRows):
            target, factor = preference_distillation.align_distil_target(positive.cooled(1), negative.cooled(1), **how)
            p, q = lumped(student, positive.with_outcomes(_cooled(target, temperature)), shared=shared)
        else:
            target, factor = preference_distillation.align_distil_target(positive, negative, **how)
            p, q = lumped(student, _cooled(target, temperature), shared=shared)
        return factor * divergence("reverse_kl", p, q)

    values, logged = at_shared_places(signals, loss, shared, signals.positive, signals.negative)
    return signals.pair_sums(values), logged


@term(needs=["vocabularies", "positive_states"], unit="token", answers="both", cached=True)
def dckd(signals: Signals, temperature: float = 1.0) -> Losses:
    """DCKD (arXiv 2502.17927): the forward KL from pi+, on both answers; a cross-entropy goes with it.

    Args:
        temperature: Temperature of both sides.
    """
    shared = shared_of(signals)

    def loss(student: Tensor, positive: Distributions) -> Tensor:
        return divergence("forward_kl", *lumped(student, positive, shared=shared, temperature=temperature))

    values, logged = at_shared_places(signals, loss, shared, signals.positive)
    return signals.pair_sums(values), logged


@term(needs=["vocabularies", "positive_states", "negative_states"], unit="token", answers="rejected", cached=True)
def adpa(signals: Signals) -> Losses:
    """ADPA (arXiv 2502.17927): the student's next token should be one that pi+ likes better than its reference pi-.

    It is meant for answers that the student wrote, which stand in the data as the rejected ones. Nothing but the
    cross-entropy next to it keeps the student near to a model.
    """
    shared = shared_of(signals)

    def loss(student: Tensor, positive: Distributions, negative: Distributions) -> Tensor:
        return preference_distillation.advantage_loss(*lumped(student, positive, negative, shared=shared))

    values, logged = at_shared_places(signals, loss, shared, signals.positive, signals.negative)
    return signals.pair_sums(values), logged


@term(needs=["reference", "positive_states"], cached=True)
def tvkd(
    signals: Signals,
    beta: float = 0.1,
    gamma: float = 0.7,
    temperature: float = 2.0,
    scale: float = 1.0,
    reduce: Literal["mean", "sum"] = "mean",
) -> Losses:
    """TVKD (arXiv 2509.16965): DPO whose margin is what pi+ thinks of the states that the answers pass through.

    Args:
        beta: The beta of DPO.
        gamma: Discount; 1 is DPO.
        temperature: Temperature of the values; with 1 they are all 0.
        scale: Factor of the values.
        reduce: `mean` is the mean value of a state. `sum` is the published sum, times parents per token of the teacher,
            so that finely split text gets no bonus; longer text still gets one, of several nats a token.
    """
    assert signals.reference is not None and signals.positive is not None
    require_positive(scale, "scale")
    parents = signals.parent_mask.sum(-1)
    tokens = numbers(signals.positive.lengths, parents).view_as(parents)
    values = _values(signals.positive, temperature, scale).view_as(parents) / tokens
    if reduce == "sum":
        values = values * parents
    found = preference_distillation.tvkd_loss(
        *signals.policy.sum(-1),
        *signals.reference.sum(-1),
        chosen_value=values[0],
        rejected_value=values[1],
        beta=beta,
        gamma=gamma,
    )
    losses, logged = rewarded(*found)
    return losses, {**logged, "chosen_value": values[0], "rejected_value": values[1]}


@term(needs=["teacher_logprobs"])
def pad(signals: Signals, beta: float = 10.0, form: Literal["published", "js", "ranking"] = "published") -> Losses:
    """PAD (arXiv 2502.14272): how much the student prefers one answer to the other follows how much the teacher does.

    Both by the mean log-prob of a parent, so that tokenizers can be compared.

    Args:
        beta: Factor of the means.
        form: Distance of the two distributions over rankings, see `pad_loss`.
    """
    assert signals.teacher_logprobs is not None
    require_positive(beta)
    parents = signals.parent_mask.sum(-1)
    student, teacher = (beta * values.sum(-1) / parents for values in (signals.policy, signals.teacher_logprobs))
    losses = preference_distillation.pad_loss(student.T, teacher.T, form=form)
    agree = (student[0] > student[1]) == (teacher[0] > teacher[1])
    return losses, {"ranking_agreement": agree.float()}


@term(needs=["vocabularies", "teacher_states"], cached=True)
def distillm2(signals: Signals, skew: float = 0.1, balance: float = 1.0) -> Losses:
    """DistiLLM-2 (arXiv 2503.07067): a skewed forward KL on the chosen answer, a skewed reverse KL on the rejected one.

    It is meant for chosen answers that the teacher wrote, and rejected ones that the student wrote.

    Args:
        skew: Share of a distribution in its own reference.
        balance: Weight of the reverse KL; the forward KL has 2 - balance.
    """
    shared, sides = shared_of(signals), []
    both = preference_distillation.skewed_forward_kl, preference_distillation.skewed_reverse_kl
    logged: Mapping[str, Any] = {}
    for side, kl in enumerate(both):

        def loss(student: Tensor, teacher: Distributions, kl: Any = kl) -> Tensor:
            return kl(*lumped(student, teacher, shared=shared), skew)

        answers = signals.of_sides(side)
        values, found = at_shared_places(answers, loss, shared, signals.teacher)
        sides.append(answers.pair_sums(values) / numbers(answers.joined(answers.student).lengths, values))
        logged = logged or found  # of the chosen answers
    losses = preference_distillation.distillm2_loss(*sides, balance=balance)
    return losses, {**logged, "forward_kl": sides[0].detach(), "reverse_kl": sides[1].detach()}


def rewarded(losses: Tensor, chosen_rewards: Tensor, rejected_rewards: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The losses of a preference term, and what is logged about them."""
    margin = chosen_rewards - rejected_rewards
    return losses, {
        "margin": margin,
        "accuracy": (margin > 0).float(),
        "saturated": (margin.abs() > 10).float(),  # there the sigmoid is flat and a pair teaches nothing
        "chosen_reward": chosen_rewards,
        "rejected_reward": rejected_rewards,
    }


def _cooled(logits: Tensor, temperature: float) -> Tensor:
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, but must be above 0")
    return logits / temperature


@torch.no_grad()
def _values(model: TokenStates, temperature: float, scale: float) -> Tensor:
    """(A,) what the states of each answer are worth that come after its targets but the last, together."""
    if isinstance(model, TopStates):
        if model.values is None:
            raise ValueError("the scores keep no values of states; score again with keep.value")
        if temperature != model.rows.temperature:
            known = model.rows.temperature
            raise ValueError(f"temperature is {temperature}, but the scores have values at {known}; use that")
        return scale * model.values
    return torch.stack([_value(states, temperature, scale) for states in model.answers()])


def _value(states: TokenStates, temperature: float, scale: float) -> Tensor:
    """What the states of an answer are worth that come after its targets but the last, together."""
    count = len(states.targets)
    total = states.hidden.new_zeros((), dtype=torch.promote_types(states.hidden.dtype, torch.float32))
    for start in range(1, count, states.chunk_size):
        logprobs = states.part(start, start + states.chunk_size).logits().log_softmax(-1)
        total += preference_distillation.state_values(logprobs, temperature=temperature, scale=scale).sum()
    if count == 1:  # the settings are checked all the same
        preference_distillation.state_values(total[None], temperature=temperature)
    return total
