"""Terms that compare next-token distributions across tokenizers, where a parent is one token on each side.

There both models predict what follows the same text. A term is a sum over such places, divided by all target tokens of
the student, so that its size shows how many there are. Logged are `one_token_parents`, their share of all parents, and
`student_shared_mass` and `teacher_shared_mass`, the mean probability of shared tokens at these places.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from prefkd.method import shared_tokens as across
from prefkd.models.logprob_model import TokenStates
from prefkd.training.chunks import in_chunks
from prefkd.training.signals import Losses, Signals, term

SURE = 0.6  # weight in a map from which h_kl takes two tokens for the same


@term(needs=["vocabularies"], unit="token")
def shared_tokens(
    signals: Signals,
    form: Literal["lumped", "renormalised"] = "lumped",
    divergence: str = "forward_kl",
    temperature: float = 1.0,
    skew: float = 0.1,
    adaptive_alpha: float = 0.5,
) -> Losses:
    """Divergence of next-token distributions over the tokens that both vocabularies have.

    Args:
        form: `lumped` puts all other tokens into one bucket; `renormalised` leaves them out (SimpleCTKD).
        divergence: A name of `prefkd.method.divergences`, where the other settings are explained.
        temperature: Temperature of both sides.
    """
    shared = _shared(signals)
    compare = {"lumped": across.lumped_divergence, "renormalised": across.renormalised_divergence}[form]

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        how = {"temperature": temperature, "skew": skew, "adaptive_alpha": adaptive_alpha}
        return compare(divergence, student, teacher, shared, **how)

    return _at_one_token_parents(signals, loss, shared)


@term(needs=["vocabularies"], unit="token")
def gold(signals: Signals, beta: float = 0.5, temperature: float = 1.0, shared_weight: float | None = None) -> Losses:
    """GOLD of TRL: shared tokens by a generalised Jensen-Shannon divergence, all others by sorted probabilities.

    Args:
        beta: Kind of divergence: 0 is the forward KL, 1 the reverse KL.
        temperature: Temperature of both sides.
        shared_weight: Weight of the divergence; sorted probabilities have 1 - shared_weight. null is the share of the
            teacher's tokens that are shared.
    """
    shared, tokens = _shared(signals), _tokens(signals)
    weight = len(shared.teacher) / tokens[1] if shared_weight is None else shared_weight
    if not 0 <= weight <= 1:
        raise ValueError(f"shared_weight is {weight}, but must lie in 0..1")

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        logprobs = _logprobs(student, tokens[0], temperature), _logprobs(teacher, tokens[1], temperature)
        matched, rest = across.hybrid_divergence(*logprobs, shared, beta=beta)
        return weight * matched + (1 - weight) * rest

    return _at_one_token_parents(signals, loss, shared)


@term(needs=["vocabularies"], unit="token")
def x_token(
    signals: Signals,
    form: Literal["p_kl", "h_kl"] = "p_kl",
    temperature: float = 1.0,
    reverse: bool = False,
    largest: int = 8192,
) -> Losses:
    """X-Token (arXiv 2605.21699), with its factor T².

    A map says which of the teacher's tokens stand for each of the student's. It is made once for two tokenizers, and
    cached.

    Args:
        form: `p_kl` carries the student's distribution to the teacher's tokens by the map, and compares those that the
            map leads to; `h_kl` compares pairs that the map is sure of, and all other tokens by sorted probabilities.
        temperature: Temperature of both sides.
        reverse: KL(student || teacher) in place of KL(teacher || student).
        largest: Most tokens of each side that h_kl sorts.
    """
    assert signals.vocabularies is not None
    tokens = _tokens(signals)
    token_map = signals.vocabularies.token_map.within(*tokens)
    shared = _shared(signals)
    if form == "h_kl":
        shared = across.common_pairs(token_map, SURE).to(shared.student.device)

        def loss(student: Tensor, teacher: Tensor) -> Tensor:
            logprobs = _logprobs(student, tokens[0], temperature), _logprobs(teacher, tokens[1], temperature)
            matched, rest = across.hybrid_divergence(*logprobs, shared, beta=float(reverse), largest=largest)
            return temperature**2 * (matched + rest)

    else:
        image, columns = across.image(token_map.to(shared.student.device))

        def loss(student: Tensor, teacher: Tensor) -> Tensor:
            p = _logprobs(student, tokens[0], temperature).exp()
            log_q = _logprobs(teacher[:, image], len(image), temperature)
            projected = across.project(p, columns, len(image))
            return temperature**2 * across.projected_kl(projected, log_q, reverse=reverse)

    return _at_one_token_parents(signals, loss, shared)


def _at_one_token_parents(
    signals: Signals, compare: Callable[[Tensor, Tensor], Tensor], shared: across.SharedTokens
) -> Losses:
    """The sum of ``compare(student's logits, teacher's logits)``, (n,) of (n, V) each, over parents of one token."""

    def sums(student: TokenStates, teacher: TokenStates) -> Tensor:
        logits, teacher_logits = student.logits(), teacher.logits().detach()
        masses = [
            across.shared_mass(values.detach(), ids).sum()
            for values, ids in ((logits, shared.student), (teacher_logits, shared.teacher))
        ]
        return torch.stack([compare(logits, teacher_logits).sum(), *masses])

    values, places = [], []
    for student, teacher in signals.answers():
        own, other = across.one_token_parents(student.parents, teacher.parents)
        values.append(in_chunks(sums, student.at(own), teacher.at(other)))
        places.append(len(own))
    losses, *masses = (signals.pair_sums(list(column)) for column in torch.stack(values).unbind(1))
    found = signals.pair_sums([losses.new_tensor(float(count)) for count in places])
    return losses, {
        "one_token_parents": (found, "parent"),
        "student_shared_mass": ((masses[0] / found.clamp_min(1)).detach(), "pair"),
        "teacher_shared_mass": ((masses[1] / found.clamp_min(1)).detach(), "pair"),
    }


def _tokens(signals: Signals) -> tuple[int, int]:
    """V_s and V_t: rows of a head that was made larger are no tokens, and a tokenizer may have more than its head."""
    assert signals.vocabularies is not None and signals.teacher is not None
    texts = signals.vocabularies.student, signals.vocabularies.teacher
    heads = signals.student.head, signals.teacher.head
    student, teacher = (min(len(own), len(head)) for own, head in zip(texts, heads, strict=True))
    return student, teacher


def _shared(signals: Signals) -> across.SharedTokens:
    assert signals.vocabularies is not None
    return signals.vocabularies.shared.within(*_tokens(signals)).to(signals.student.hidden.device)


def _logprobs(logits: Tensor, tokens: int, temperature: float) -> Tensor:
    """(n, tokens) from the first of (n, V) logits."""
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, but must be above 0")
    return (logits[:, :tokens] / temperature).log_softmax(-1)
