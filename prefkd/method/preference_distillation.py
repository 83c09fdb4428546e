"""Distillation of what teachers prefer: AlignDistil, DCKD, ADPA, TVKD, PAD and DistiLLM-2.

pi+ is a teacher that learned the preferences, by DPO say. pi- is a teacher that did not, or that learned the opposite:
the reference of that DPO, or a model of reversed DPO. Both have the teacher's vocabulary. p is the student's
distribution of the next token, q the teacher's.

Functions of log-probs take any distributions over the same outcomes: all tokens of one vocabulary, or the tokens that
two vocabularies share and one bucket for all others (`prefkd.method.shared_tokens.lumped_logprobs`). An outcome that a
side rules out (-inf) adds nothing. Teachers are constants.

V outcomes, B pairs, A answers to one prompt, ... any leading shape.
"""

import math
from itertools import permutations
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from prefkd.method.divergences import divergence
from prefkd.method.loss_needs import log_ratio, require_positive, with_rewards

LEAST_WEIGHT = 1e-3  # of AlignDistil, where pi+ and pi- agree
SKEWS = 0.01, 0.1  # between which DistiLLM-2 adapts its skew
MOST_ANSWERS = 5  # of PAD, which goes through all rankings

AlignForm = Literal["adaptive", "adaptive_mixture", "constant", "constant_mixture"]


def align_distil_target(
    positive: Tensor, negative: Tensor, *, beta: float = 0.1, strength: float = 10.0, form: AlignForm = "adaptive"
) -> tuple[Tensor, Tensor]:
    """What the student of AlignDistil (arXiv 2503.02832) learns from: ``z* = z+ + w (z+ - z-)``.

    ================  ==================================  ==================================  ==========
    form              w                                   z*                                  factor
    ================  ==================================  ==================================  ==========
    adaptive          strength sum of |pi+ - pi-| + 1e-3  z+ + w (z+ - z-)                    beta / w
    adaptive_mixture  strength sum of |pi+ - pi-| + 1e-3  w z+ + (1 - w) z-                   beta / w
    constant          beta / strength                     z+ + w (z+ - z-)                    strength
    constant_mixture  beta / strength                     w z+ + (1 - w) z-                   strength
    ================  ==================================  ==================================  ==========

    `adaptive` is the method. The others are its ablations; `constant_mixture` is the RLHF objective itself, with the
    reward beta log(pi+ / pi-) and a KL to pi- of weight `strength` (theorem 1 of the paper).

    Args:
        positive: (..., V) logits or log-probs of pi+.
        negative: (..., V) the same of pi-.
        beta: The beta of the DPO that made pi+.
        strength: How far beyond pi+ the target goes; beta_2 of the paper, 10 on given answers and 15 on sampled ones.

    Returns:
        z*, (..., V), and the factor (...) of the divergence from it.

    Raises:
        ValueError: `beta` or `strength` is not positive, or `form` is unknown.
    """
    require_positive(beta)
    require_positive(strength, "strength")
    positive, negative = positive.detach(), negative.detach()
    difference = (positive - negative).where(~(positive.isneginf() | negative.isneginf()), 0)
    if form.startswith("adaptive"):
        distance = (positive.softmax(-1) - negative.softmax(-1)).abs().sum(-1)  # sum over v of |pi+(v) - pi-(v)|
        weight = strength * distance + LEAST_WEIGHT
        factor = beta / weight
    elif form.startswith("constant"):
        weight = positive.new_full(positive.shape[:-1], beta / strength)
        factor = torch.full_like(weight, strength)
    else:
        raise ValueError(f"form is {form!r}, but must be adaptive, adaptive_mixture, constant or constant_mixture")
    if form.endswith("mixture"):
        weight = weight - 1  # w z+ + (1 - w) z- = z+ + (w - 1) (z+ - z-)
    return positive + weight.unsqueeze(-1) * difference, factor


def align_distil_loss(
    student: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    beta: float = 0.1,
    strength: float = 10.0,
    temperature: float = 1.0,
    form: AlignForm = "adaptive",
) -> Tensor:
    """AlignDistil (arXiv 2503.02832): ``factor KL(p || softmax(z* / T))``, see `align_distil_target`.

    Args:
        student: (..., V) logits or log-probs.
        positive, negative: (..., V) logits of pi+ and pi- over the same outcomes.
        temperature: T, of the target alone, as in the published code.

    Returns:
        (...) in nats, for each position.

    Raises:
        ValueError: As `align_distil_target` and `divergence`.
    """
    target, factor = align_distil_target(positive, negative, beta=beta, strength=strength, form=form)
    return factor * divergence("reverse_kl", student, target, teacher_temperature=temperature)


def advantage_loss(student_logprobs: Tensor, positive_logprobs: Tensor, negative_logprobs: Tensor) -> Tensor:
    """ADPA (arXiv 2502.17927): minus the student's mean advantage, ``- sum of p (log pi+ - log pi-)``.

    Nothing keeps the student near to a model, so that a cross-entropy belongs with it.

    Args:
        student_logprobs: (..., V).
        positive_logprobs: (..., V) of the teacher that learned the preferences.
        negative_logprobs: (..., V) of the reference that it learned them from.

    Returns:
        (...) in nats, at least minus the largest advantage.
    """
    exists = ~(student_logprobs.isneginf() | positive_logprobs.isneginf() | negative_logprobs.isneginf())
    advantage = (positive_logprobs.detach() - negative_logprobs.detach()).where(exists, 0)  # A(v)
    return -(student_logprobs.where(exists, 0).exp() * advantage).sum(-1)


def state_values(logprobs: Tensor, *, temperature: float = 2.0, scale: float = 1.0) -> Tensor:
    """TVKD (arXiv 2509.16965): the teacher's value of each state, ``scale T log sum of exp(log pi+ / T)``.

    Args:
        logprobs: (..., V) of the teacher that learned the preferences, normalised. With T = 1 all values are 0.
        temperature: T, the tau of the paper.
        scale: alpha of the paper.

    Returns:
        (...) in nats.

    Raises:
        ValueError: `temperature` is not positive.
    """
    require_positive(temperature, "temperature")
    return scale * temperature * torch.logsumexp(logprobs.detach() / temperature, -1)


def tvkd_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    chosen_value: Tensor,
    rejected_value: Tensor,
    beta: float,
    gamma: float = 0.7,
) -> tuple[Tensor, Tensor, Tensor]:
    """TVKD (arXiv 2509.16965): DPO with a margin, ``-log sigmoid(beta h - (1 - gamma) (V_w - V_l))``.

    Args:
        policy_chosen, policy_rejected, reference_chosen, reference_rejected: (B,) log-probs as of `dpo_loss`.
        chosen_value: (B,) V_w, the sum of `state_values` after each of its targets but the last, where the answer has
            ended and the value is 0.
        rejected_value: (B,) V_l, the same of the rejected answer.
        gamma: Discount, in [0, 1]; 1 is DPO.

    Returns:
        losses, chosen rewards, rejected rewards, each (B,). The rewards are beta a and beta b.

    Raises:
        ValueError: `beta` is not positive, or `gamma` is outside [0, 1].
    """
    require_positive(beta)
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma is {gamma}, but must be between 0 and 1")
    h = log_ratio(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    shaping = (1 - gamma) * (chosen_value - rejected_value).detach()
    losses = -F.logsigmoid(beta * h - shaping)
    return with_rewards(losses, policy_chosen - reference_chosen, policy_rejected - reference_rejected, beta)


def ranking_logprobs(scores: Tensor) -> Tensor:
    """Plackett-Luce: the log-probability of every ranking, ``sum over k of s_k - log sum over j >= k of exp(s_j)``.

    Args:
        scores: (..., A) of the answers to a prompt.

    Returns:
        (..., A!) in the order of `itertools.permutations`.

    Raises:
        ValueError: There are more than five answers, or fewer than two.
    """
    answers = scores.shape[-1]
    if not 2 <= answers <= MOST_ANSWERS:
        raise ValueError(f"there are {answers} answers, but PAD ranks two to {MOST_ANSWERS}")
    of_answers = scores.unbind(-1)
    ranked = torch.stack([of_answers[i] for ranking in permutations(range(answers)) for i in ranking], -1)
    ranked = ranked.unflatten(-1, (-1, answers))  # without a tensor of indices, for whose copy a host would wait
    rest = ranked.flip(-1).logcumsumexp(-1).flip(-1)  # log sum over j >= k of exp(s_j)
    return (ranked - rest).sum(-1)


def pad_loss(
    student_scores: Tensor, teacher_scores: Tensor, *, form: Literal["published", "js", "ranking"] = "published"
) -> Tensor:
    """PAD (arXiv 2502.14272): the student's preferences among the answers to a prompt follow the teacher's.

    P_s and P_t are the distributions over rankings of `ranking_logprobs`, M is their mean.

    =========  =====================================================================================
    published  half of KL(M || P_s) + KL(M || P_t), from the mixture, as in the published code
    js         half of KL(P_s || M) + KL(P_t || M), the Jensen-Shannon divergence
    ranking    -log P_s of the ranking that the teacher finds most likely
    =========  =====================================================================================

    Args:
        student_scores: (..., A), beta times the mean log-prob of each answer.
        teacher_scores: (..., A); a constant.

    Returns:
        (...) in nats.

    Raises:
        ValueError: `form` is unknown, or as `ranking_logprobs`.
    """
    student, teacher = ranking_logprobs(student_scores), ranking_logprobs(teacher_scores.detach())
    if form == "ranking":
        return -student.gather(-1, teacher.argmax(-1, keepdim=True)).squeeze(-1)
    mixture = torch.logaddexp(student, teacher) - math.log(2)
    if form == "published":
        return (mixture.exp() * (2 * mixture - student - teacher)).sum(-1) / 2
    if form == "js":
        return (student.exp() * (student - mixture) + teacher.exp() * (teacher - mixture)).sum(-1) / 2
    raise ValueError(f"form is {form!r}, but must be published, js or ranking")


def skewed_forward_kl(student_logprobs: Tensor, teacher_logprobs: Tensor, skew: Tensor | float = 0.1) -> Tensor:
    """SKL of DistiLLM-2 (arXiv 2503.07067), on answers of the teacher: ``KL(q || skew q + (1 - skew) p)``.

    Args:
        student_logprobs: (..., V).
        teacher_logprobs: (..., V).
        skew: In (0, 1), a number or (...); a tensor is not looked at, since a host would wait for it.

    Returns:
        (...) in nats.

    Raises:
        ValueError: `skew` is a number outside (0, 1).
    """
    teacher_logprobs = teacher_logprobs.detach()
    return _skewed_kl(teacher_logprobs, teacher_logprobs, student_logprobs, skew)


def skewed_reverse_kl(student_logprobs: Tensor, teacher_logprobs: Tensor, skew: Tensor | float = 0.1) -> Tensor:
    """SRKL of DistiLLM-2 (arXiv 2503.07067), on answers of the student: ``KL(p || (1 - skew) q + skew p)``.

    The p of the mixture is a constant, as in the published code.

    Args:
        student_logprobs: (..., V).
        teacher_logprobs: (..., V).
        skew: In (0, 1), a number or (...); a tensor is not looked at, since a host would wait for it.

    Returns:
        (...) in nats.

    Raises:
        ValueError: `skew` is a number outside (0, 1).
    """
    return _skewed_kl(student_logprobs, student_logprobs.detach(), teacher_logprobs.detach(), skew)


def adapted_skew(own: Tensor, other: Tensor, gap: float) -> Tensor:
    """DistiLLM-2: the skew of an answer, ``clip(1 - 0.9 gap / (e^own - e^other), 0.01, 0.1)``.

    Here for parity alone: the published code has it, its released settings switch it off, and no term calls it.

    Args:
        own: (...) mean log-prob of the answer under the model whose own text it is like: q for the forward KL, p for
            the reverse one.
        other: (...) the same under the other model.
        gap: Mean of e^own - e^other over the epoch before.

    Returns:
        (...) without gradient.
    """
    difference = (own.exp() - other.exp()).detach() + 1e-5
    return (1 - 0.9 * gap / difference).clip(*SKEWS)


def distillm2_loss(forward: Tensor, reverse: Tensor, *, balance: float = 1.0) -> Tensor:
    """DistiLLM-2 (arXiv 2503.07067): ``(2 - b) SKL(teacher's answer) + b SRKL(student's answer)``.

    Args:
        forward: (B,) mean over its targets of `skewed_forward_kl`, on the answer that the teacher wrote.
        reverse: (B,) mean over its targets of `skewed_reverse_kl`, on the answer that the student wrote.
        balance: b, in [0, 2]: 1, or ``1 + min(1, 2 step / steps) / 2`` for the gradual schedule.

    Returns:
        (B,) in nats.

    Raises:
        ValueError: `balance` is outside [0, 2].
    """
    if not 0 <= balance <= 2:
        raise ValueError(f"balance is {balance}, but must be between 0 and 2")
    return (2 - balance) * forward + balance * reverse


def _skewed_kl(log_left: Tensor, log_own: Tensor, log_other: Tensor, skew: Tensor | float) -> Tensor:
    """``sum of left (log left - log(skew own + (1 - skew) other))``; left and own are equal but for their gradient."""
    if isinstance(skew, Tensor):
        share = skew.to(log_left).unsqueeze(-1)
    elif 0 < skew < 1:
        share = log_left.new_full((1,), skew)
    else:
        raise ValueError(f"skew is {skew}, but must lie between 0 and 1")
    exists = ~(log_own.isneginf() | log_other.isneginf())
    log_left, log_own, log_other = (values.where(exists, 0) for values in (log_left, log_own, log_other))
    log_mixture = torch.logaddexp(log_own + share.log(), log_other + torch.log1p(-share))
    return (log_left.exp() * (log_left - log_mixture) * exists).sum(-1)
