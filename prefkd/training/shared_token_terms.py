"""Terms that compare next-token distributions across tokenizers, where a parent is one token on each side.

There both models predict what follows the same text; models of one vocabulary do so at every target. A term is a sum
over such places, divided by all target tokens of the student, so that its size shows how many there are. Logged are
`one_token_parents`, their share of all parents, and `student_shared_mass` and `teacher_shared_mass`, the mean
probability of shared tokens at these places.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from prefkd.method import shared_tokens as across
from prefkd.method.divergences import divergence as divergence_of
from prefkd.method.top_rows import TopRows, lumped_rows
from prefkd.models.logprob_model import TokenStates
from prefkd.models.top_states import TopStates
from prefkd.training.chunks import in_chunks
from prefkd.training.signals import Losses, Signals, Unit, term

# What a model says of the next token at n places: (n, V) logits, or what scores keep of them.
Distributions = Tensor | TopRows
SURE = 0.6  # weight in a map from which h_kl takes two tokens for the same


@term(needs=["vocabularies", "teacher_states"], unit="token", cached=True)
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
    shared = shared_of(signals)
    how = {"skew": skew, "adaptive_alpha": adaptive_alpha}

    def loss(student: Tensor, teacher: Distributions) -> Tensor:
        if form == "renormalised" and not isinstance(teacher, TopRows):
            return across.renormalised_divergence(divergence, student, teacher, shared, temperature=temperature, **how)
        sides = lumped(student, teacher, shared=shared, temperature=temperature)
        if form == "renormalised":
            sides = [side[:, :-1] for side in sides]  # kept tokens alone
            # Where none of them is shared there is nothing to compare: two equal distributions, whose divergence is 0.
            nothing = torch.stack(sides).isneginf().all(-1, keepdim=True).any(0)
            sides = [side.masked_fill(nothing, 0.0) for side in sides]
        return divergence_of(divergence, *sides, **how)

    return _at_one_token_parents(signals, loss, shared)


@term(needs=["vocabularies", "teacher_states"], unit="token")
def gold(signals: Signals, beta: float = 0.5, temperature: float = 1.0, shared_weight: float | None = None) -> Losses:
    """GOLD of TRL: shared tokens by a generalised Jensen-Shannon divergence, all others by sorted probabilities.

    Args:
        beta: Kind of divergence: 0 is the forward KL, 1 the reverse KL.
        temperature: Temperature of both sides.
        shared_weight: Weight of the divergence; sorted probabilities have 1 - shared_weight. null is the share of the
            teacher's tokens that are shared.
    """
    shared, tokens = shared_of(signals), token_counts(signals)
    weight = len(shared.teacher) / tokens[1] if shared_weight is None else shared_weight
    if not 0 <= weight <= 1:
        raise ValueError(f"shared_weight is {weight}, but must lie in 0..1")

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        sides = (student, tokens[0]), (teacher, tokens[1])
        p, q = (_logprobs(*side, temperature) for side in sides)
        matched, rest = across.hybrid_divergence(p, q, shared, beta=beta)
        return weight * matched + (1 - weight) * rest

    return _at_one_token_parents(signals, loss, shared)


@term(needs=["vocabularies", "teacher_states"], unit="token")
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
        largest: Maximum tokens of each side that h_kl compares by rank; at most those of the side that has fewer.
    """
    assert signals.vocabularies is not None
    vocabularies, tokens, device = signals.vocabularies, token_counts(signals), signals.student.hidden.device
    shared, place = shared_of(signals), where(signals)
    if form == "h_kl":
        shared = vocabularies.once(
            lambda: across.common_pairs(vocabularies.token_map.within(*tokens), SURE).to(device), "h_kl", *place
        )
        others = min(tokens) - len(shared.student)  # of the side that has fewer
        most = min(largest, max(others, 1))

        def loss(student: Tensor, teacher: Tensor) -> Tensor:
            sides = (student, tokens[0]), (teacher, tokens[1])
            p, q = (_logprobs(*side, temperature) for side in sides)
            matched, rest = across.hybrid_divergence(p, q, shared, beta=float(reverse), largest=most)
            return temperature**2 * (matched + rest if others else matched)

    else:

        def carried() -> tuple[Tensor, across.TokenMap]:
            image, columns = across.image(vocabularies.token_map.within(*tokens))
            return image.to(device), columns.to(device)

        image, columns = vocabularies.once(carried, "p_kl", *place)

        def loss(student: Tensor, teacher: Tensor) -> Tensor:
            p = _logprobs(student, tokens[0], temperature).exp()
            log_q = _logprobs(teacher[:, image], len(image), temperature)
            projected = across.project(p, columns, len(image))
            return temperature**2 * across.projected_kl(projected, log_q, reverse=reverse)

    return _at_one_token_parents(signals, loss, shared)


def _at_one_token_parents(
    signals: Signals, compare: Callable[[Tensor, Any], Tensor], shared: across.SharedTokens
) -> Losses:
    """The sum of ``compare(student's logits, teacher's)``, (n,) of (n, V) each, over parents of one token."""
    values, logged = at_shared_places(signals, compare, shared, signals.teacher)
    return signals.pair_sums(values), logged


def at_shared_places(
    signals: Signals, compare: Callable[..., Tensor], shared: across.SharedTokens, *models: TokenStates | None
) -> tuple[Tensor, Mapping[str, tuple[Tensor, Unit]]]:
    """Compare next-token distributions of the student with those of models of the teacher's vocabulary.

    Args:
        compare: From (n, V) logits of the student and `Distributions` of each model to (n,).
        shared: The shared tokens, for what is logged.
        models: The models.

    Returns:
        (A,) its sum over each of `Signals.student_answers`, and what is logged.
    """

    def values(student: TokenStates, *others: TokenStates) -> Tensor:
        logits = student.logits()
        known = [side.rows if isinstance(side, TopStates) else side.logits().detach() for side in others]
        return torch.stack([compare(logits, *known), *shared_masses(logits.detach(), known[0], shared)])

    places = shared_places(signals, *models)
    losses, *masses = signals.answer_sums(in_chunks(values, *places), places[0].lengths)
    count = place_counts(signals, places, losses)
    shares = [(signals.pair_sums(mass) / count.clamp_min(1)).detach() for mass in masses]
    return losses, {
        "one_token_parents": (count, "parent"),
        "student_shared_mass": (shares[0], "pair"),
        "teacher_shared_mass": (shares[1], "pair"),
    }


def lumped(
    student: Tensor, *models: Distributions, shared: across.SharedTokens, temperature: float = 1.0
) -> Sequence[Tensor]:
    """Log-probs of shared tokens and of all others together, of the student and of each model.

    Of what scores keep it is the kept tokens that are shared.

    Args:
        student: (n, V) logits.
        models: n distributions of each model, all of one kind.
    """
    rows = [model for model in models if isinstance(model, TopRows)]
    if rows:
        return lumped_rows(student, *rows, shared=shared, temperature=temperature)
    sides = ((model, shared.teacher) for model in models if isinstance(model, Tensor))
    return across.lumped_logprobs((student, shared.student), *sides, temperature=temperature)


def shared_masses(student: Tensor, model: Distributions, shared: across.SharedTokens) -> list[Tensor]:
    """(n,) the probability of shared tokens under the student, (n, V) logits, and under a model."""
    if isinstance(model, TopRows):
        return [1 - side[:, -1].exp() for side in lumped_rows(student, model, shared=shared)]
    sides = (student, shared.student), (model, shared.teacher)
    return [across.shared_mass(logits, ids) for logits, ids in sides]


def shared_places(signals: Signals, *models: TokenStates | None) -> tuple[TokenStates, ...]:
    """Where the student and models of the teacher's vocabulary predict what follows the same text.

    Returns:
        The states of the student and of each model at these places, whose `lengths` are those of each of
        `Signals.student_answers`.
    """
    there = [model for model in models if model is not None]
    places = signals.places_of(there[0])
    found = [signals.student.at(places.student), *(model.at(places.teacher) for model in there)]
    return tuple(replace(states, lengths=places.lengths) for states in found)


def place_counts(signals: Signals, places: Sequence[TokenStates], like: Tensor) -> Tensor:
    """(B,) how many of `shared_places` a pair has."""
    return signals.pair_sums(numbers(places[0].lengths, like))


def numbers(values: Sequence[float], like: Tensor) -> Tensor:
    """Numbers that the host knows, where a tensor is: made there, since for a copy the host would wait."""
    return torch.stack([like.new_full((), value) for value in values])


def token_counts(signals: Signals) -> tuple[int, int]:
    """V_s and V_t: rows of a head that was made larger are not tokens, and a tokenizer may have more than its head."""
    other = signals.teacher or signals.positive
    assert signals.vocabularies is not None and other is not None
    texts = signals.vocabularies.student, signals.vocabularies.teacher
    heads = signals.student.head, other.head
    student, teacher = (min(len(own), len(head)) for own, head in zip(texts, heads, strict=True))
    return student, teacher


def shared_of(signals: Signals) -> across.SharedTokens:
    """The shared tokens that both heads have a row for, where the student is."""
    assert signals.vocabularies is not None
    vocabularies, counts = signals.vocabularies, token_counts(signals)
    return vocabularies.once(
        lambda: vocabularies.shared.within(*counts).to(signals.student.hidden.device), "shared", *where(signals)
    )


def where(signals: Signals) -> tuple[Any, ...]:
    """What maps of tokens depend on besides the vocabularies: how many tokens the heads have, and where they are."""
    return (*token_counts(signals), signals.student.head.device)


def _logprobs(logits: Tensor, tokens: int, temperature: float) -> Tensor:
    """(n, tokens) from the first of (n, V) logits."""
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, but must be above 0")
    return (logits[:, :tokens] / temperature).log_softmax(-1)
