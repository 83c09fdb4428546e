"""Next-token distributions across tokenizers, where both sides predict the next token after the same text.

Behind a parent that is ONE token on each side, both models have read the same text, so that their distributions there
are about the same question. What differs is the vocabulary. A shared token is a pair of ids, one of each side, with
the same bytes:

    lumped        every shared token, and all other tokens as one bucket; a divergence, never above that of all tokens
    renormalised  shared tokens alone (SimpleCTKD of KDFlow); a divergence, blind to what is put on other tokens
    hybrid        shared tokens without renormalising, and the other tokens by rank (GOLD of TRL, H-KL of X-Token)
    projected     the student carried to the teacher's vocabulary by a map of tokens (P-KL of X-Token, arXiv 2605.21699)

p is the student's distribution, q the teacher's. The teacher is a constant if it is given detached.

n positions, V vocabulary, A shared tokens, K entries in a row of a map, M tokens that a map leads to; _s student,
_t teacher.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from prefkd.method.divergences import divergence, generalised_jsd

LEAST_REST = math.log(1e-8)  # log-prob of the bucket of a side all of whose tokens are shared, as in DistillKit
MOST_PIECES = 4  # of a token that the other tokenizer splits, as in X-Token
EPSILON = 1e-10  # added to projected probabilities before their logarithm, as in X-Token


class SharedTokens(NamedTuple):
    """Tokens that both vocabularies have, each at most once: (A,) ids of the student and of the teacher."""

    student: Tensor
    teacher: Tensor

    def to(self, device: torch.device) -> "SharedTokens":
        """The same on a device."""
        return SharedTokens(self.student.to(device), self.teacher.to(device))

    def within(self, student_rows: int, teacher_rows: int) -> "SharedTokens":
        """The pairs that both heads have a row for, which may have fewer rows than the tokenizer has tokens."""
        kept = (self.student < student_rows) & (self.teacher < teacher_rows)
        return SharedTokens(self.student[kept], self.teacher[kept])


class TokenMap(NamedTuple):
    """Which tokens of the teacher stand for each of the student's.

    indices: (V_s, K) ids of the teacher, the largest weight first; -1 where a row has fewer.
    weights: (V_s, K), the sum of a row is 1, or 0 for a token that nothing stands for; 0 where the index is -1.
    """

    indices: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> "TokenMap":
        """The same on a device."""
        return TokenMap(self.indices.to(device), self.weights.to(device))

    def within(self, student_rows: int, teacher_rows: int) -> "TokenMap":
        """The map between tokens that the heads have a row for."""
        kept = (self.indices < teacher_rows)[:student_rows]
        return TokenMap(self.indices[:student_rows].where(kept, -1), self.weights[:student_rows].where(kept, 0))


def find_shared_tokens(
    student_bytes: Sequence[bytes | None], teacher_bytes: Sequence[bytes | None], ends: tuple[int, int] | None = None
) -> SharedTokens:
    """Pair the tokens with the same bytes, one to one.

    Args:
        student_bytes: Bytes of each id in a text; None for an id without text, such as special tokens.
        teacher_bytes: Bytes of each id of the teacher, likewise.
        ends: The ids of the two tokens that end an answer, which are a pair too.

    Returns:
        Pairs in the order of the student's ids. Of several ids with the same bytes the first one is taken.
    """
    theirs: dict[bytes, int] = {}
    for index, value in enumerate(teacher_bytes):
        if value:
            theirs.setdefault(value, index)
    pairs: dict[int, int] = {}
    for index, value in enumerate(student_bytes):
        if value and value in theirs:
            pairs[index] = theirs.pop(value)
    if ends is not None:
        pairs = {own: other for own, other in pairs.items() if own != ends[0] and other != ends[1]}
        pairs[ends[0]] = ends[1]
    ordered = sorted(pairs.items())
    own, other = (torch.tensor([pair[side] for pair in ordered], dtype=torch.long) for side in (0, 1))
    return SharedTokens(own, other)


def one_token_parents(student_parents: Tensor, teacher_parents: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of the targets that are a whole parent on both sides.

    Args:
        student_parents: (N_s,) the parent of each of the student's targets, ascending.
        teacher_parents: (N_t,) the same of the teacher's, in the same numbering.

    Returns:
        Indices into the student's and into the teacher's targets, in the order of the parents.
    """
    (own, at), (other, other_at) = _alone(student_parents), _alone(teacher_parents)
    return at[torch.isin(own, other)], other_at[torch.isin(other, own)]


def lumped_divergence(
    name: str,
    student_logits: Tensor,
    teacher_logits: Tensor,
    shared: SharedTokens,
    *,
    temperature: float = 1.0,
    skew: float = 0.1,
    adaptive_alpha: float = 0.5,
) -> Tensor:
    """Divergence over shared tokens, with all other tokens counted as one.

    ``D([q_A, q_r], [p_A, p_r])`` with ``p_r = 1 - sum of p_A``; for the forward KL that is
    ``sum over A of q log(q / p) + q_r log(q_r / p_r)``. Putting tokens together never makes a divergence larger.

    Args:
        name: A name of `prefkd.method.divergences`, where the other settings are explained.
        student_logits: (..., V_s).
        teacher_logits: (..., V_t).
        shared: The shared tokens.
        temperature: Temperature of both sides, before tokens are put together.

    Returns:
        (...) in nats, float32 or wider.

    Raises:
        ValueError: As `divergence`.
    """
    student, teacher = lumped_logprobs(
        (student_logits, shared.student), (teacher_logits, shared.teacher), temperature=temperature
    )
    return divergence(name, student, teacher, skew=skew, adaptive_alpha=adaptive_alpha)


def lumped_logprobs(*sides: tuple[Tensor, Tensor], temperature: float = 1.0) -> list[Tensor]:
    """Log-probs of the tokens that several models share, and of all their other tokens together.

    Args:
        sides: For each model its (..., V) logits, and the (A,) ids of the shared tokens in its vocabulary.
        temperature: Temperature of all models, before tokens are put together.

    Returns:
        (..., A + 1) for each model, the bucket of other tokens last; (..., A) where no model has another token.

    Raises:
        ValueError: `temperature` is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, but must be above 0")
    lumped = [_lumped(logits, ids, temperature) for logits, ids in sides]
    if all(rest is None for _, rest in lumped):
        return [own for own, _ in lumped]
    return [
        torch.cat([own, torch.full_like(own[..., :1], LEAST_REST) if rest is None else rest], -1)
        for own, rest in lumped
    ]


def renormalised_divergence(
    name: str,
    student_logits: Tensor,
    teacher_logits: Tensor,
    shared: SharedTokens,
    *,
    temperature: float = 1.0,
    skew: float = 0.1,
    adaptive_alpha: float = 0.5,
) -> Tensor:
    """Divergence of the distributions over shared tokens alone: ``D(softmax(z'_A / T), softmax(z_A / T))``.

    Arguments, result and errors are those of `lumped_divergence`.
    """
    logits = student_logits[..., shared.student], teacher_logits[..., shared.teacher]
    return divergence(name, *logits, temperature=temperature, skew=skew, adaptive_alpha=adaptive_alpha)


def hybrid_divergence(
    student_logprobs: Tensor,
    teacher_logprobs: Tensor,
    shared: SharedTokens,
    *,
    beta: float = 0.5,
    largest: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Shared tokens by a divergence that is not renormalised, all others by rank.

    ``sum over A of beta q log(q / m) + (1 - beta) p log(p / m)``, and ``|| sort(p_rest) - sort(q_rest) ||_1``. GOLD of
    TRL has beta 1/2 and weighs the two by A / V_t and the rest of it; H-KL and gold of X-Token have the forward KL and
    add them. The first part can be negative, since neither p_A nor q_A sums to 1.

    Args:
        student_logprobs: (..., V_s) log-probs, after a temperature if there is one.
        teacher_logprobs: (..., V_t).
        shared: The shared tokens.
        beta: Parameter of the generalised Jensen-Shannon divergence (`generalised_jsd`).
        largest: Maximum tokens on each side that are compared by rank; None is all. The shorter side is filled with
            zeros.

    Returns:
        Both parts, (...) each.

    Raises:
        ValueError: `beta` is outside [0, 1], or `largest` is less than 1.
    """
    if largest is not None and largest < 1:
        raise ValueError(f"largest is {largest}, but must be at least 1")
    matched = generalised_jsd(student_logprobs[..., shared.student], teacher_logprobs[..., shared.teacher], beta=beta)
    sides = []
    for logprobs, ids in ((student_logprobs, shared.student), (teacher_logprobs, shared.teacher)):
        rest = logprobs.exp().index_fill(-1, ids, 0)
        count = rest.shape[-1] - len(ids)
        sides.append(rest.topk(count if largest is None else min(largest, count)).values)
    width = max(side.shape[-1] for side in sides)
    p, q = (F.pad(side, (0, width - side.shape[-1])) for side in sides)
    return matched, (p - q).abs().sum(-1)


def shared_mass(logits: Tensor, ids: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Probability of some tokens together, (...), from (..., V) logits."""
    logits = logits.to(_wide(logits)) / temperature
    return (logits[..., ids].logsumexp(-1) - logits.logsumexp(-1)).exp()


def project(probabilities: Tensor, token_map: TokenMap, vocabulary: int) -> Tensor:
    """The student's probabilities carried to the teacher's vocabulary: ``p M``, without a matrix V_s x V_t.

    Args:
        probabilities: (n, V_s).
        token_map: M.
        vocabulary: V_t, or the number of columns that its indices are about.

    Returns:
        (n, vocabulary). What a token without a row has is lost.
    """
    found = probabilities.new_zeros(len(probabilities), vocabulary)
    for indices, weights in zip(token_map.indices.T, token_map.weights.T, strict=True):
        found = found.index_add(1, indices.clamp_min(0), probabilities * weights.to(probabilities.dtype))
    return found


def image(token_map: TokenMap) -> tuple[Tensor, TokenMap]:
    """The tokens that a map leads to, (M,) ascending, and the same map with indices into them."""
    exists = token_map.indices >= 0
    found, places = token_map.indices[exists].unique(return_inverse=True)
    return found, TokenMap(token_map.indices.masked_scatter(exists, places), token_map.weights)


def projected_kl(projected: Tensor, teacher_logprobs: Tensor, *, reverse: bool = False) -> Tensor:
    """P-KL of X-Token: KL between the teacher and the projected student, over the same tokens.

    Args:
        projected: (n, M) from `project`, normalised here.
        teacher_logprobs: (n, M) log-probs of the teacher over these tokens.
        reverse: KL(student || teacher) in place of KL(teacher || student).

    Returns:
        (n,) in nats, without a factor T².
    """
    log_p = (projected / (projected.sum(-1, keepdim=True) + EPSILON) + EPSILON).log()
    left, right = (log_p, teacher_logprobs) if reverse else (teacher_logprobs, log_p)
    return (left.exp() * (left - right)).sum(-1)


def common_pairs(token_map: TokenMap, least: float) -> SharedTokens:
    """Pairs that a map is sure of: 1.0 gives those of gold, 0.6 those of H-KL (X-Token).

    Of several tokens of the student that lead to one of the teacher's, the largest weight wins, then the smaller id.
    """
    weights, best = token_map.weights.max(1)
    own = (weights >= least).nonzero().flatten()
    order = weights[own].sort(descending=True, stable=True).indices
    claims: dict[int, int] = {}
    targets = token_map.indices[own, best[own]]
    for index in order.tolist():
        claims.setdefault(int(targets[index]), int(own[index]))
    pairs = sorted((student, teacher) for teacher, student in claims.items())
    found = torch.tensor(pairs, dtype=torch.long).view(-1, 2)
    return SharedTokens(found[:, 0], found[:, 1])


def piece_weights(pieces: int) -> list[float]:
    """Weight of each of the pieces that a token is split into: ``0.9 * 0.1^i``, divided by their sum."""
    weights = [0.9 * 0.1**i for i in range(pieces)]
    return [weight / sum(weights) for weight in weights]


def projection_weights(
    student_pieces: Sequence[Sequence[int]], teacher_pieces: Sequence[Sequence[int]]
) -> dict[tuple[int, int], float]:
    """Weights between tokens and the pieces that the other tokenizer splits them into, both ways (X-Token).

    Args:
        student_pieces: For each of the student's tokens, the teacher's tokens that its text is split into.
        teacher_pieces: For each of the teacher's tokens, the student's.

    Returns:
        (student's id, teacher's id) -> weight, where it is not 0.
    """
    found: dict[tuple[int, int], float] = {}
    of_length = [piece_weights(count) for count in range(MOST_PIECES + 1)]
    for own, pieces in enumerate(student_pieces):
        cut = pieces[:MOST_PIECES]
        for other, weight in zip(cut, of_length[len(cut)], strict=True):
            found[own, other] = found.get((own, other), 0.0) + weight
    for other, pieces in enumerate(teacher_pieces):
        cut = pieces[:MOST_PIECES]
        for own, weight in zip(cut, of_length[len(cut)], strict=True):
            found[own, other] = found.get((own, other), 0.0) + weight
    return found


def make_token_map(
    weights: dict[tuple[int, int], float], shared: SharedTokens, vocabulary: int, *, width: int = MOST_PIECES
) -> TokenMap:
    """A map from the weights between tokens: shared tokens lead to each other, others to their heaviest (X-Token).

    Args:
        weights: As `projection_weights` gives them.
        shared: Tokens whose row is certain.
        vocabulary: V_s.
        width: Most entries in a row; their weights are divided by their sum.
    """
    rows: list[list[tuple[float, int]]] = [[] for _ in range(vocabulary)]
    for (own, other), weight in weights.items():
        rows[own].append((-weight, other))
    for own, other in zip(shared.student.tolist(), shared.teacher.tolist(), strict=True):
        rows[own] = [(-1.0, other)]
    indices, values = torch.full((vocabulary, width), -1), torch.zeros(vocabulary, width)
    for own, row in enumerate(rows):
        heaviest = sorted(row)[:width]
        total = sum(weight for weight, _ in heaviest)
        for column, (weight, other) in enumerate(heaviest):
            indices[own, column], values[own, column] = other, weight / total
    return TokenMap(indices, values)


def _alone(parents: Tensor) -> tuple[Tensor, Tensor]:
    """Parents with one target, and where that target stands; `parents` is ascending."""
    found, counts = torch.unique_consecutive(parents, return_counts=True)
    single = counts == 1
    return found[single], (counts.cumsum(0) - 1)[single]


def _lumped(logits: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor | None]:
    """Log-probs of some tokens, (..., A), and of all others together, (..., 1), None if there is no other."""
    logprobs = (logits.to(_wide(logits)) / temperature).log_softmax(-1)
    own = logprobs[..., ids]
    if len(ids) == logits.shape[-1]:
        return own, None
    others = logprobs.index_fill(-1, ids, -torch.inf)
    impossible = others.isneginf().all(-1, keepdim=True)  # logsumexp would have NaN as gradient there
    rest = others.masked_fill(impossible, 0.0).logsumexp(-1, keepdim=True).masked_fill(impossible, -torch.inf)
    return own, rest


def _wide(tensor: Tensor) -> torch.dtype:
    """float32, or float64 where the tensor has it."""
    return torch.promote_types(tensor.dtype, torch.float32)
