"""DSKD v2 (arXiv 2504.11426): dual-space distillation whose projectors start where heads agree, without attention.

Where student and teacher predict the next token after the same text, a state of one is projected into the space of the
other and read by the other's head. A projector that makes the logits of both models alike on the tokens that they share
is known from the two heads, by least squares. t2s starts there and learns; s2t follows the student's head and is
computed again whenever it is used. Labels are what the teacher itself would say next.

n places, A shared tokens, V vocabulary, H hidden size; _s student, _t teacher.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefkd.method.divergences import divergence
from prefkd.method.logprobs import NO_TARGET
from prefkd.method.shared_tokens import SharedTokens

RIDGE = 1e-6  # of the mean diagonal of a Gram matrix, so that a head without full rank can be inverted


class ExactProjectors(nn.Module):
    """What DSKD v2 learns besides the student: the way of a teacher's state into the student's space, without bias."""

    def __init__(self, student_size: int, teacher_size: int) -> None:
        super().__init__()
        self.t2s = nn.Linear(teacher_size, student_size, bias=False)


class ExactTerms(NamedTuple):
    """Sums over places in float32 or wider, or values of each; the first three carry gradient.

    t2s_ce: cross-entropy of the projected teacher towards its own argmax.
    t2s_kd: divergence of the student from the projected teacher.
    s2t_kd: divergence of the projected student from the teacher.
    agreement: places where the projected teacher says what the teacher says.
    """

    t2s_ce: Tensor
    t2s_kd: Tensor
    s2t_kd: Tensor
    agreement: Tensor


def head_map(head: Tensor, other: Tensor, *, ridge: float = RIDGE) -> Tensor:
    """The projector W into a model's space after which its head predicts what the other model's head predicts.

    ``head W h = other h`` for all h in the sense of least squares: ``W = (head' head + e I)^-1 head' other``. Only
    matrices of the hidden sizes are made.

    Args:
        head: (A, H) rows of the head of shared tokens, times the scale of the model's logits.
        other: (A, H') the same of the other model.
        ridge: e, as a share of the mean diagonal of ``head' head``. With 0 and full rank it is the pseudo-inverse.

    Returns:
        (H, H') in float32 or wider, the weight of a linear layer.
    """
    with torch.autocast(head.device.type, enabled=False):
        dtype = torch.promote_types(head.dtype, torch.float32)
        head, other = head.to(dtype), other.to(dtype)
        gram = head.T @ head
        least = ridge * gram.diagonal().mean() + torch.finfo(dtype).tiny  # heads of nothing but zeros can be inverted
        gram = gram + least * torch.eye(len(gram), dtype=dtype, device=gram.device)
        return torch.linalg.solve_ex(gram, head.T @ other).result  # without a look at an error, which would wait


def label_map(shared: SharedTokens, teacher_tokens: int) -> Tensor:
    """(V_t,) the student's id of each of the teacher's tokens, -100 for a token that the student lacks."""
    found = shared.teacher.new_full((teacher_tokens,), NO_TARGET)
    return found.index_copy(0, shared.teacher, shared.student)


def exact_dual_space_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    t2s_logits: Tensor,
    s2t_logits: Tensor,
    labels: Tensor,
    *,
    divergence_name: str,
    temperature: float,
    only_agreement: bool = True,
    by_place: bool = False,
) -> ExactTerms:
    """The three losses of DSKD v2 at places where both models predict what follows the same text.

    Args:
        student_logits: (n, V_s).
        teacher_logits: (n, V_t); a constant.
        t2s_logits: (n, V_s) of the projected teacher, read by the student's head.
        s2t_logits: (n, V_t) of the projected student, read by the teacher's head.
        labels: (n,) the teacher's argmax in the student's vocabulary, -100 where the student lacks that token.
        divergence_name: A name of `prefkd.method.divergences`, of both divergences.
        temperature: Temperature of both sides of both divergences.
        by_place: Terms are (n,), not summed.
        only_agreement: t2s_kd counts only where the projected teacher says what the teacher says; else everywhere.

    Raises:
        ValueError: As `divergence`.
    """
    agrees = t2s_logits.argmax(-1) == labels
    t2s_ce = F.cross_entropy(t2s_logits, labels, ignore_index=NO_TARGET, reduction="none")
    t2s_kd = divergence(divergence_name, student_logits, t2s_logits.detach(), temperature=temperature)
    s2t_kd = divergence(divergence_name, s2t_logits, teacher_logits.detach(), temperature=temperature)
    counted = t2s_kd * agrees if only_agreement else t2s_kd
    values = t2s_ce, counted, s2t_kd, agrees.to(t2s_ce.dtype)
    return ExactTerms(*(values if by_place else (value.sum() for value in values)))
