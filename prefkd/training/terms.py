"""The terms of an objective: preferences, distillation and cross-entropy, which a config puts together.

    objective:
      - _component_: prefkd.training.terms.tis_dpo
        beta: 0.1
      - _component_: prefkd.training.terms.dual_space
        weight: 0.5
        answers: chosen

A term is one function. It is called with the `Signals` of a microbatch and its settings from the config, and returns a
value for each pair, (B,): a loss, or a sum over the pair's tokens or parents. The decorator says which of these, and
what the term needs; a teacher is loaded only if some term needs one. Dividing is not a term's business: the objective
divides by all pairs, tokens or parents of the optimizer step, so that no way of batching changes what is learned. What
a term returns besides, in a dictionary of (B,) values, is logged; a sum over another unit stands there as (value,
unit).

A term of your own lies in a file of your own, mine.py say, and `_component_: mine.entropy` names it:

    from prefkd.training.signals import Signals, term

    @term(unit="token")
    def entropy(signals: Signals, floor: float = 0.0):
        \"""Penalises a student that is surer of a token than `floor` nats of entropy.\"""
        values = []
        for answer in signals.student_answers():
            logprobs = answer.logits().log_softmax(-1)
            values.append((floor + (logprobs.exp() * logprobs).sum(-1)).clamp_min(0).sum())
        return signals.pair_sums(values)
"""

from dataclasses import replace
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from prefkd.errors import PrefkdError
from prefkd.method import baselines, divergences
from prefkd.method import preference as preference_losses
from prefkd.method.dual_space import (
    DualSpaceProjectors,
    DualSpaceSide,
    DualSpaceTerms,
    dual_space_loss,
    same_vocabulary_loss,
)
from prefkd.method.logprobs import NO_TARGET
from prefkd.models.logprob_model import TokenStates
from prefkd.training.chunks import in_chunks, recomputed
from prefkd.training.dual_space_v2_term import dual_space_v2 as dual_space_v2
from prefkd.training.preference_terms import adpa as adpa
from prefkd.training.preference_terms import align_distil as align_distil
from prefkd.training.preference_terms import dckd as dckd
from prefkd.training.preference_terms import distillm2 as distillm2
from prefkd.training.preference_terms import pad as pad
from prefkd.training.preference_terms import preference as preference
from prefkd.training.preference_terms import rewarded
from prefkd.training.preference_terms import tvkd as tvkd
from prefkd.training.shared_token_terms import gold as gold
from prefkd.training.shared_token_terms import shared_places
from prefkd.training.shared_token_terms import shared_tokens as shared_tokens
from prefkd.training.shared_token_terms import x_token as x_token
from prefkd.training.signals import Losses, Signals, term


@term(needs=["reference", "margin"])
def dpo(signals: Signals, beta: float = 0.1, label_smoothing: float = 0.0) -> Losses:
    """DPO on whole answers (arXiv 2305.18290); with label smoothing conservative DPO."""
    assert signals.reference is not None
    inputs = *signals.policy.sum(-1), *signals.reference.sum(-1)
    return rewarded(
        *preference_losses.dpo_loss(*inputs, beta=beta, label_smoothing=label_smoothing, offset=signals.margin)
    )


@term(needs=["reference"])
def ipo(signals: Signals, beta: float = 0.1) -> Losses:
    """IPO (arXiv 2310.12036) on means over parents, so that long answers do not decide alone."""
    assert signals.reference is not None
    parents = signals.parent_mask.sum(-1)
    inputs = *signals.policy.sum(-1) / parents, *signals.reference.sum(-1) / parents
    return rewarded(*preference_losses.ipo_loss(*inputs, beta=beta))


@term(needs=["weights", "margin"])
def tis_dpo(signals: Signals, beta: float = 0.1, label_smoothing: float = 0.0) -> Losses:
    """Importance-weighted DPO on parents (CTPD, arXiv 2601.11865; TIS-DPO, arXiv 2410.04350)."""
    assert signals.reference is not None and signals.weights is not None
    margins = preference_losses.parent_margin(signals.policy, signals.reference, signals.weights, signals.parent_mask)
    return rewarded(
        *preference_losses.tis_dpo_loss(*margins, beta=beta, label_smoothing=label_smoothing, offset=signals.margin)
    )


@term(unit="token")
def cross_entropy(signals: Signals) -> Losses:
    """The student learns to write the answer itself, as in supervised fine-tuning."""
    return -signals.parent_sums(signals.policy)


@term(needs=["projectors"], unit="token")
def dual_space(
    signals: Signals, divergence: str = "forward_kl", temperature: float = 2.0, teacher_temperature: float = 1.0
) -> Losses:
    """DSKD with cross-model attention (arXiv 2406.17328), for two vocabularies.

    The teacher's states take their scale from the targets of their own answer, so that answers do not depend on what
    they share a microbatch with.

    Args:
        divergence: Divergence of the student from the projected teacher, a name of `prefkd.method.divergences`.
        temperature: Temperature of both sides of both divergences.
        teacher_temperature: Further temperature of the projected teacher.
    """
    assert isinstance(signals.projectors, DualSpaceProjectors)
    found = dual_space_loss(
        signals.projectors,
        *_answers_as_examples(signals),
        divergence=divergence,
        temperature=temperature,
        teacher_temperature=teacher_temperature,
        std_over="example",
        only_projectors=signals.only_projectors,
        by_example=True,
        chunk_size=signals.student.chunk_size,
    )
    return _of_pairs(signals, found)


@term(needs=["projectors", "one_vocabulary"], unit="token")
def same_vocabulary_dual_space(signals: Signals, divergence: str = "forward_kl", temperature: float = 2.0) -> Losses:
    """DSKD (arXiv 2406.17328) for models of one vocabulary, whose positions need no attention to find each other."""
    assert isinstance(signals.projectors, DualSpaceProjectors)
    _same_targets(signals)
    found = same_vocabulary_loss(
        signals.projectors,
        *_answers_as_examples(signals),
        divergence=divergence,
        temperature=temperature,
        by_example=True,
        chunk_size=signals.student.chunk_size,
    )
    return _of_pairs(signals, found)


@term(needs=["teacher_states", "one_vocabulary"], unit="token")
def same_vocabulary(
    signals: Signals,
    divergence: str = "forward_kl",
    temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    skew: float = 0.1,
    adaptive_alpha: float = 0.5,
) -> Losses:
    """Divergence of the student's next-token distribution from the teacher's, for models of one vocabulary.

    Args:
        divergence: A name of `prefkd.method.divergences`, where the other settings are explained.
    """

    def loss(student: TokenStates, teacher: TokenStates) -> Tensor:
        logits, teacher_logits = student.logits(), teacher.logits().detach()
        tokens = min(logits.shape[-1], teacher_logits.shape[-1])  # rows of a head that was made larger are not tokens
        return divergences.divergence(
            divergence,
            logits[:, :tokens],
            teacher_logits[:, :tokens],
            temperature=temperature,
            teacher_temperature=teacher_temperature,
            skew=skew,
            adaptive_alpha=adaptive_alpha,
        )

    answers = _same_targets(signals)
    return signals.pair_sums(signals.answer_sums(in_chunks(loss, *answers), answers[0].lengths))


@term(needs=["teacher_states"], unit="token", cached=True)
def uld(signals: Signals, align: Literal["position", "parent"] = "position") -> Losses:
    """Universal logit distillation (arXiv 2402.12030): how probable tokens are, whichever they are.

    Args:
        align: `position` compares the i-th tokens of both answers, as published, though they stand in other places of
            the text; `parent` compares where a parent is one token on each side.
    """

    def distances(student: TokenStates, teacher: TokenStates) -> Tensor:
        return baselines.sorted_distance(student.logits(), teacher.logits().detach())

    answers = _same_positions(signals) if align == "position" else shared_places(signals, signals.teacher)
    values = in_chunks(distances, *answers)
    return signals.pair_sums(signals.answer_sums(values, answers[0].lengths))


@term(needs=["vocabularies", "teacher_states"], unit="token", cached=True)
def min_ed(signals: Signals, temperature: float = 2.0) -> Losses:
    """MinED (FuseLLM, arXiv 2401.10491): the teacher's logits, carried over to the tokens that are spelled most alike.

    The map of the two vocabularies is made once, which takes minutes for 262,000 tokens, and kept for later runs.

    Args:
        temperature: Temperature of both sides.
    """
    assert signals.vocabularies is not None
    vocabularies, device = signals.vocabularies, signals.student.hidden.device
    nearest = vocabularies.once(lambda: vocabularies.nearest.to(device), "nearest", device)

    def loss(student: TokenStates, teacher: TokenStates) -> Tensor:
        return baselines.min_ed_loss(
            student.logits()[None],
            teacher.logits_at(temperature)[None],
            student.targets[None],
            teacher.targets[None],
            student_input_ids=student.inputs[None],
            teacher_input_ids=teacher.inputs[None],
            student_tokens=vocabularies.student,
            teacher_tokens=vocabularies.teacher,
            teacher_to_student=nearest,
            temperature=temperature,
        )

    return signals.pair_sums([recomputed(loss, *answer) for answer in signals.answers()])


@term(needs=["teacher_logprobs"], unit="parent")
def alm(signals: Signals, temperature: float = 100.0) -> Losses:
    """Approximate likelihood matching (arXiv 2503.20083): the probabilities of the same text, parent by parent.

    Args:
        temperature: The larger, the more improbable parents count.
    """
    assert signals.teacher_logprobs is not None
    return signals.parent_sums(baselines.alm_values(signals.policy, signals.teacher_logprobs, temperature=temperature))


def _of_pairs(signals: Signals, terms: DualSpaceTerms) -> Losses:
    """From (A,) terms of answers."""
    names = ("t2s_ce", "t2s_kd", "s2t_kd", "t2s_accuracy", "s2t_accuracy")
    return (
        signals.pair_sums(terms.t2s_ce if signals.only_projectors else terms.kd),
        {name: signals.pair_sums(getattr(terms, name).detach()) for name in names},
    )


def _answers_as_examples(signals: Signals) -> tuple[DualSpaceSide, DualSpaceSide]:
    """The answers that a term is about, padded, as the student and the teacher read them."""
    assert signals.teacher is not None
    student, teacher = (_padded(signals.joined(states)) for states in (signals.student, signals.teacher))
    return student, teacher


def _padded(states: TokenStates) -> DualSpaceSide:
    longest, device = max(states.lengths), states.targets.device
    # Made where they are used, since from main memory a host would wait for them to be copied.
    firsts = (answer * longest for answer in range(len(states.lengths)))
    rows = [torch.arange(first, first + own, device=device) for first, own in zip(firsts, states.lengths, strict=True)]
    places = torch.cat(rows)

    def padded(values: Tensor, fill: int = 0) -> Tensor:
        empty = values.new_full((len(states.lengths) * longest, *values.shape[1:]), fill)
        return empty.index_copy(0, places, values).view(len(states.lengths), longest, *values.shape[1:])

    return DualSpaceSide(
        padded(states.inputs),
        padded(states.targets, NO_TARGET),
        padded(states.hidden),
        embedding=states.embedding,
        head=states.head,
        scale=states.scale,
        cap=states.cap,
        targets=places,
    )


def _same_positions(signals: Signals) -> tuple[TokenStates, TokenStates]:
    """The i-th targets of student and teacher, for each answer as many as the shorter reading has."""
    assert signals.teacher is not None
    student, teacher = signals.joined(signals.student), signals.joined(signals.teacher)
    lengths = tuple(map(min, student.lengths, teacher.lengths))
    found = []
    for side in (student, teacher):
        spans = zip(accumulate(side.lengths, initial=0), lengths, strict=False)
        places = [torch.arange(start, start + length, device=side.targets.device) for start, length in spans]
        found.append(replace(side.at(torch.cat(places)), lengths=lengths))
    return found[0], found[1]


def _same_targets(signals: Signals) -> tuple[TokenStates, TokenStates]:
    """The targets of student and teacher, who read all answers as the same tokens."""
    assert signals.teacher is not None
    student, teacher = signals.joined(signals.student), signals.joined(signals.teacher)
    known = signals.places
    if not (known.are_same if known is not None else torch.equal(student.targets, teacher.targets)):
        raise PrefkdError(
            "student and teacher read an answer as different tokens, though they have one vocabulary; "
            "give both the same template"
        )
    return student, teacher
