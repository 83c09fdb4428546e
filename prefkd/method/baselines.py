"""Distillation across tokenizers by simpler means than the dual space: ULD, MinED and ALM.

Labels are SHIFTED here: the label at a position is the token that this position predicts, and -100 where that is no
target. The teacher is a constant.

B examples, S and T positions of student and teacher, V vocabulary, N targets, P parents; _s student, _t teacher.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from prefkd.method.divergences import divergence
from prefkd.method.edit_distance import match_tokens
from prefkd.method.edit_distance import minimal_edit_vocabulary_map as minimal_edit_vocabulary_map
from prefkd.method.logprobs import NO_TARGET

IMPOSSIBLE = -1e5  # logit of a token without a partner, finite as in the published code
CERTAIN = 100.0  # logit of the target where no teacher position matches
LEAST_LOGPROB = -1e4  # of a parent, after the temperature; its probability is 0 in any precision


def uld_loss(student_logits: Tensor, teacher_logits: Tensor, student_labels: Tensor, teacher_labels: Tensor) -> Tensor:
    """Universal logit distillation (arXiv 2402.12030): compares sorted probabilities, whichever tokens they belong to.

    The i-th target of an example is compared with the teacher's i-th, as long as both have one.

    Args:
        student_logits: (B, S, V_s).
        teacher_logits: (B, T, V_t).
        student_labels: (B, S), SHIFTED.
        teacher_labels: (B, T), SHIFTED.

    Returns:
        The sum over pairs of targets, a scalar in float32 or wider; it is at most 2 for a pair.
    """
    student_mask, teacher_mask = student_labels != NO_TARGET, teacher_labels != NO_TARGET
    pairs = torch.minimum(student_mask.sum(1), teacher_mask.sum(1)).unsqueeze(1)
    p = student_logits[student_mask & (student_mask.cumsum(1) <= pairs)]
    q = teacher_logits.detach()[teacher_mask & (teacher_mask.cumsum(1) <= pairs)]
    return sorted_distance(p, q).sum()


def sorted_distance(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """ULD of two next-token distributions at n places, ``|| sort(p_i) - sort(q_i) ||_1``.

    Args:
        student_logits: (n, V_s).
        teacher_logits: (n, V_t).

    Returns:
        (n,) in float32 or wider.
    """
    p, q = _sorted_probabilities(student_logits), _sorted_probabilities(teacher_logits)
    vocabulary = max(p.shape[1], q.shape[1])
    p, q = (F.pad(values, (0, vocabulary - values.shape[1])) for values in (p, q))
    return (p - q).abs().sum(1)


def min_ed_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_labels: Tensor,
    teacher_labels: Tensor,
    *,
    student_input_ids: Tensor,
    teacher_input_ids: Tensor,
    student_tokens: Sequence[str],
    teacher_tokens: Sequence[str],
    teacher_to_student: Tensor,
    temperature: float,
) -> Tensor:
    """MinED (FuseLLM, arXiv 2401.10491): forward KL where both tokenizations agree, certainty of the target elsewhere.

    The input tokens at the targets are aligned by dynamic time warping with the edit distance as cost. Where a student
    position has a single match, whose token the map takes to the student's own, the teacher's logits there are carried
    over by the map. An example without a target on one of the sides contributes nothing.

    Args:
        student_logits: (B, S, V_s).
        teacher_logits: (B, T, V_t).
        student_labels: (B, S), SHIFTED.
        teacher_labels: (B, T), SHIFTED.
        student_input_ids: (B, S).
        teacher_input_ids: (B, T).
        student_tokens: One string per id.
        teacher_tokens: One string per id.
        teacher_to_student: (V_t,) the student's id for each of the teacher's, as `minimal_edit_vocabulary_map` finds
            them. Where several share one, the lowest of the teacher's lends it its logit. Ids that a head has no row
            for, since a tokenizer may have more tokens than its head, lend and borrow nothing.
        temperature: Temperature of both sides.

    Returns:
        The sum over the student's targets, a scalar in float32 or wider.

    Raises:
        ValueError: `temperature` is not positive, or the map names an id below 0.
    """
    vocabulary = student_logits.shape[-1]
    teacher_to_student = teacher_to_student.to(student_logits.device)
    if (teacher_to_student < 0).any():
        raise ValueError("teacher_to_student names an id below 0")
    student_mask, teacher_mask = student_labels != NO_TARGET, teacher_labels != NO_TARGET
    paired = student_mask.any(1) & teacher_mask.any(1)
    student_mask, teacher_mask = student_mask & paired.unsqueeze(1), teacher_mask & paired.unsqueeze(1)

    partners = torch.full_like(student_labels, -1)  # position of the single match in the teacher's sequence
    for example, is_paired in enumerate(paired.tolist()):
        if not is_paired:
            continue
        own, other = student_mask[example].nonzero().flatten(), teacher_mask[example].nonzero().flatten()
        own_ids: list[int] = student_input_ids[example, own].tolist()
        other_ids: list[int] = teacher_input_ids[example, other].tolist()
        matches = _single_matches([student_tokens[i] for i in own_ids], [teacher_tokens[i] for i in other_ids])
        single = torch.tensor(matches, device=own.device)
        partners[example, own] = other[single].where(single >= 0, -1)

    examples, positions = student_mask.nonzero(as_tuple=True)
    partner = partners[examples, positions]
    carried_id = teacher_to_student[teacher_input_ids[examples, partner.clamp_min(0)]]
    agrees = (partner >= 0) & (carried_id == student_input_ids[examples, positions])
    target_logits = teacher_logits.new_full((len(examples), vocabulary), IMPOSSIBLE, dtype=_wide(teacher_logits))
    target_logits[~agrees, student_labels[examples, positions][~agrees]] = CERTAIN
    target_logits[agrees] = _carry(
        teacher_logits.detach()[examples[agrees], partner[agrees]], teacher_to_student, vocabulary
    )
    return divergence("forward_kl", student_logits[examples, positions], target_logits, temperature=temperature).sum()


def alm_loss(
    student_parent_logprobs: Tensor, teacher_parent_logprobs: Tensor, parent_mask: Tensor, *, temperature: float
) -> Tensor:
    """Approximate likelihood matching (arXiv 2503.20083), on parent tokens.

    Whether the text of a parent comes or does not is a binary outcome. With p the student's and q the teacher's
    probability of it, each to the power of 1 / temperature, the loss is KL([q, 1 - q] || [p, 1 - p]).

    Args:
        student_parent_logprobs: (B, P) in nats.
        teacher_parent_logprobs: (B, P) of the same text, in nats.
        parent_mask: (B, P), true where there is a parent. What stands elsewhere takes no part.
        temperature: 1 compares the probabilities themselves; the larger it is, the more improbable parents count (the
            paper takes 100).

    Returns:
        The mean over parents, a scalar in float32 or wider; 0 without parents.

    Raises:
        ValueError: `temperature` is not positive.
    """
    student, teacher = student_parent_logprobs[parent_mask], teacher_parent_logprobs[parent_mask]
    losses = alm_values(student, teacher, temperature=temperature)
    return losses.sum() / max(1, len(losses))


def alm_values(student_logprobs: Tensor, teacher_logprobs: Tensor, *, temperature: float) -> Tensor:
    """The losses of `alm_loss`, of parents in any shape.

    Raises:
        ValueError: `temperature` is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, but must be above 0")
    log_p = _probable(student_logprobs / temperature)
    log_q = _probable(teacher_logprobs.detach() / temperature)
    q = log_q.exp()
    return q * (log_q - log_p) + (1 - q) * (_log_of_other(log_q) - _log_of_other(log_p))


def _sorted_probabilities(logits: Tensor) -> Tensor:
    """(n, V), the largest first."""
    return logits.to(_wide(logits)).softmax(-1).sort(-1, descending=True).values


def _single_matches(student_tokens: Sequence[str], teacher_tokens: Sequence[str]) -> list[int]:
    """The index of the teacher's token that is matched with each of the student's; -1 where that are several."""
    found: list[list[int]] = [[] for _ in student_tokens]
    for i, j in match_tokens(teacher_tokens, student_tokens):
        found[j].append(i)
    return [indices[0] if len(indices) == 1 else -1 for indices in found]


def _carry(teacher_logits: Tensor, teacher_to_student: Tensor, vocabulary: int) -> Tensor:
    """(n, V_s) from (n, V_t) logits: each of the student's tokens gets that of the first teacher's that maps to it."""
    own = teacher_to_student[: teacher_logits.shape[-1]]
    ids = torch.arange(len(own), device=own.device)
    # Those of the student that its head has no row for are gathered in one column more, which is dropped.
    lender = ids.new_full((vocabulary + 1,), len(ids)).scatter_reduce(0, own.clamp_max(vocabulary), ids, "amin")[:-1]
    return teacher_logits.to(_wide(teacher_logits))[:, lender.clamp_max(len(ids) - 1)].where(
        lender < len(ids), IMPOSSIBLE
    )


def _probable(logprobs: Tensor) -> Tensor:
    """Log-probabilities moved inside (-inf, 0), where a binary divergence is finite.

    From 0 the gradient passes on, so that a student that is too certain still learns of it; from -inf it does not.
    """
    logprobs = logprobs.to(_wide(logprobs)).clamp_min(LEAST_LOGPROB)
    return logprobs + (logprobs.clamp_max(-torch.finfo(logprobs.dtype).eps) - logprobs).detach()


def _log_of_other(logprobs: Tensor) -> Tensor:
    """``log(1 - p)`` from log p."""
    return (-torch.expm1(logprobs)).log()


def _wide(tensor: Tensor) -> torch.dtype:
    """float32, or float64 where the tensor has it."""
    return torch.promote_types(tensor.dtype, torch.float32)
