"""Divergences between two next-token distributions over one vocabulary, each per position.

p is the student's distribution and q the teacher's. Both may carry gradient. Entries whose logit is -inf on either side
(a masked vocabulary) are left out of every sum, as in the published code of DSKD (arXiv 2406.17328) where that does not
give NaN. They get no gradient. A divergence can be negative for what is left out.

V vocabulary, ... any leading shape.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class _Pair(NamedTuple):
    """Two distributions over one vocabulary, (..., V) each, without -inf and with 0 where an entry is left out."""

    p: Tensor
    q: Tensor
    log_p: Tensor
    log_q: Tensor
    shared: Tensor  # entries that both sides have


def divergence(
    name: str,
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    skew: float = 0.1,
    adaptive_alpha: float = 0.5,
) -> Tensor:
    """Divergence of ``p = softmax(z / T)`` and ``q = softmax(z' / (T T'))`` at each position, without a factor T².

    =====================  ============================================================================================
    forward_kl             KL(q || p): the student covers what the teacher does
    reverse_kl             KL(p || q): the student stays where the teacher is
    adaptive_kl            a mixture of both, by where p and q differ (AKL, arXiv 2404.02657); sorts the vocabulary
    skewed_forward_kl      KL(q || skew q + (1 - skew) p) (DistiLLM, arXiv 2402.03898)
    skewed_reverse_kl      KL(p || (1 - skew) q + skew p) (DistiLLM)
    js_divergence          half of KL(q || m) + KL(p || m), m = (p + q) / 2
    =====================  ============================================================================================

    Args:
        name: One of the names above.
        student_logits: (..., V), entries may be -inf.
        teacher_logits: (..., V), entries may be -inf. Give them detached if the teacher is to be a constant.
        temperature: T, of both sides.
        teacher_temperature: T', of the teacher alone.
        skew: Share of a distribution in its own reference, for the skewed ones, in [0, 1].
        adaptive_alpha: Probability of the teacher's tail, for adaptive_kl, in [0, 1].

    Returns:
        (...) in nats, float32 or wider.

    Raises:
        ValueError: `name` is unknown, a temperature is not positive, `skew` or `adaptive_alpha` is outside [0, 1], or
            the two vocabularies differ in size.
    """
    if name not in DIVERGENCES:
        raise ValueError(f"no divergence is called {name!r}; there are {', '.join(DIVERGENCES)}")
    for what, value in (("temperature", temperature), ("teacher_temperature", teacher_temperature)):
        if not value > 0:
            raise ValueError(f"{what} is {value}, but must be above 0")
    for what, value in (("skew", skew), ("adaptive_alpha", adaptive_alpha)):
        if not 0 <= value <= 1:
            raise ValueError(f"{what} is {value}, but must lie in 0..1")
    if student_logits.shape[-1] != teacher_logits.shape[-1]:
        sizes = f"{student_logits.shape[-1]} and {teacher_logits.shape[-1]}"
        raise ValueError(f"the vocabularies have {sizes} entries, but a divergence needs one vocabulary")
    log_p, p, student_has = _distribution(student_logits, temperature)
    log_q, q, teacher_has = _distribution(teacher_logits, temperature * teacher_temperature)
    return DIVERGENCES[name](_Pair(p, q, log_p, log_q, student_has & teacher_has), skew, adaptive_alpha)


def generalised_jsd(student_logprobs: Tensor, teacher_logprobs: Tensor, *, beta: float) -> Tensor:
    """Generalised Jensen-Shannon divergence (GKD, arXiv 2306.13649), also of parts of distributions.

    ``sum of beta q log(q / m) + (1 - beta) p log(p / m)`` with ``m = beta q + (1 - beta) p``; at its ends, where that
    is 0, it is the forward KL (beta 0) and the reverse KL (beta 1), to which it tends when divided by beta (1 - beta).

    Args:
        student_logprobs: (..., V) log-probs that need not sum to 1, entries may be -inf.
        teacher_logprobs: (..., V) of the same entries.
        beta: In [0, 1].

    Returns:
        (...) in nats.

    Raises:
        ValueError: `beta` is outside [0, 1].
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta is {beta}, but must lie in 0..1")
    shared = ~(student_logprobs.isneginf() | teacher_logprobs.isneginf())
    log_p, log_q = student_logprobs.where(shared, 0), teacher_logprobs.where(shared, 0)
    pair = _Pair(log_p.exp(), log_q.exp(), log_p, log_q, shared)
    if beta in (0, 1):
        return _forward_kl(pair, 0, 0) if beta == 0 else _reverse_kl(pair, 0, 0)
    log_m = _log_mixture(log_q, log_p, beta)
    return _sum(pair, beta * pair.q * (log_q - log_m) + (1 - beta) * pair.p * (log_p - log_m))


def _forward_kl(pair: _Pair, skew: float, alpha: float) -> Tensor:
    return _sum(pair, pair.q * (pair.log_q - pair.log_p))  # sum of q (log q - log p)


def _reverse_kl(pair: _Pair, skew: float, alpha: float) -> Tensor:
    return _sum(pair, pair.p * (pair.log_p - pair.log_q))  # sum of p (log p - log q)


def _adaptive_kl(pair: _Pair, skew: float, alpha: float) -> Tensor:
    """``(g_head FKL + g_tail RKL) / (g_head + g_tail)``, g = sum of |q - p| over the teacher's head or tail."""
    with torch.no_grad():
        ascending, order = pair.q.sort(dim=-1)
        gaps = (pair.q - pair.p).abs().gather(-1, order)
        tail = ascending.cumsum(-1) <= alpha
        g_head, g_tail = (gaps * ~tail).sum(-1), (gaps * tail).sum(-1)
        total = (g_head + g_tail).clamp_min(torch.finfo(gaps.dtype).tiny)  # p = q: 0 / tiny, where the paper has 0 / 0
    return (g_head * _forward_kl(pair, skew, alpha) + g_tail * _reverse_kl(pair, skew, alpha)) / total


def _skewed_forward_kl(pair: _Pair, skew: float, alpha: float) -> Tensor:
    log_mixture = _log_mixture(pair.log_q, pair.log_p, skew)  # log(skew q + (1 - skew) p)
    return _sum(pair, pair.q * (pair.log_q - log_mixture))


def _skewed_reverse_kl(pair: _Pair, skew: float, alpha: float) -> Tensor:
    log_mixture = _log_mixture(pair.log_p, pair.log_q, skew)  # log(skew p + (1 - skew) q)
    return _sum(pair, pair.p * (pair.log_p - log_mixture))


def _js_divergence(pair: _Pair, skew: float, alpha: float) -> Tensor:
    """``½ sum of [q log((q + e) / (m + e)) + p log((p + e) / (m + e))]``; e = 1e-9 is the published code's."""
    p, q, e = pair.p, pair.q, 1e-9
    log_m = ((p + q) / 2 + e).log()
    return _sum(pair, (q * ((q + e).log() - log_m) + p * ((p + e).log() - log_m)) / 2)


DIVERGENCES: dict[str, Callable[[_Pair, float, float], Tensor]] = {
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "adaptive_kl": _adaptive_kl,
    "skewed_forward_kl": _skewed_forward_kl,
    "skewed_reverse_kl": _skewed_reverse_kl,
    "js_divergence": _js_divergence,
}


def _distribution(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """log p with 0 for -inf, p with 0 there, and where it is not -inf. No NaN in them nor in their gradients."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_p = (logits / temperature).log_softmax(-1)
    has = ~log_p.isneginf()
    log_p = log_p.where(has, 0)
    return log_p, log_p.exp() * has, has


def _log_mixture(log_own: Tensor, log_other: Tensor, share: float) -> Tensor:
    """``log(share own + (1 - share) other)``, where both shares are at hand also for the smallest probabilities."""
    if share in (0, 1):
        return log_own if share == 1 else log_other
    return torch.logaddexp(log_own + math.log(share), log_other + math.log1p(-share))


def _sum(pair: _Pair, terms: Tensor) -> Tensor:
    return (terms * pair.shared).sum(-1)  # every term is finite, so that 0 leaves an entry out
