"""The term of DSKD v2 (`prefkd.method.dual_space_v2`)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from prefkd.method.dual_space_v2 import ExactProjectors, exact_dual_space_loss, head_map, label_map
from prefkd.method.logprobs import bounded_logits
from prefkd.method.shared_tokens import SharedTokens
from prefkd.models.logprob_model import TokenStates
from prefkd.training.chunks import in_chunks
from prefkd.training.shared_token_terms import place_counts, shared_of, shared_places
from prefkd.training.signals import Losses, Signals, term


@term(needs=["exact_projectors"], unit="token")
def dual_space_v2(
    signals: Signals, divergence: str = "forward_kl", temperature: float = 2.0, only_agreement: bool = True
) -> Losses:
    """DSKD v2 (arXiv 2504.11426) where a parent is one token on each side, or at every target of one vocabulary.

    `t2s_accuracy` is the share of the student's targets that the projected teacher hits; it cannot be larger than that
    of the places where both are compared. `t2s_agreement` is the share where it says what the teacher says.

    Args:
        divergence: Kind of both divergences, a name of `prefkd.method.divergences`.
        temperature: Temperature of both sides of both divergences.
        only_agreement: The student learns from the projected teacher only where that one says what the teacher says.
    """
    shared, places = shared_of(signals), shared_places(signals, signals.teacher)
    loss = _loss_of(signals, shared, divergence, temperature, only_agreement)
    parts = signals.answer_sums(in_chunks(loss, *places), places[0].lengths)
    t2s_ce, t2s_kd, s2t_kd, agreement, hits = (signals.pair_sums(part) for part in parts)
    return t2s_ce if signals.only_projectors else t2s_ce + t2s_kd + s2t_kd, {
        "t2s_ce": t2s_ce.detach(),
        "t2s_kd": t2s_kd.detach(),
        "s2t_kd": s2t_kd.detach(),
        "t2s_agreement": agreement.detach(),
        "t2s_accuracy": hits.detach(),
        "one_token_parents": (place_counts(signals, places, t2s_ce), "parent"),
    }


def _loss_of(
    signals: Signals, shared: SharedTokens, divergence: str, temperature: float, only_agreement: bool
) -> Callable[[TokenStates, TokenStates], Tensor]:
    assert isinstance(signals.projectors, ExactProjectors) and signals.teacher is not None
    t2s, student, teacher = signals.projectors.t2s, signals.student, signals.teacher
    labels = label_map(shared, len(teacher.head))
    heads = scaled_rows(teacher, shared.teacher), scaled_rows(student, shared.student)
    s2t = head_map(*heads)  # of the student's head as it is now

    def loss(student: TokenStates, teacher: TokenStates) -> Tensor:
        seen = t2s(teacher.hidden.detach().to(t2s.weight.dtype)), F.linear(student.hidden.to(s2t.dtype), s2t)
        t2s_logits, s2t_logits = (_head(states, side) for states, side in zip(seen, (student, teacher), strict=True))
        teacher_logits = teacher.logits().detach()
        parts = exact_dual_space_loss(
            student.logits(),
            teacher_logits,
            t2s_logits,
            s2t_logits,
            labels[teacher_logits.argmax(-1)],
            divergence_name=divergence,
            temperature=temperature,
            only_agreement=only_agreement,
            by_place=True,
        )
        return torch.stack([*parts, (t2s_logits.argmax(-1) == student.targets).to(parts.t2s_ce.dtype)])

    return loss


def scaled_rows(states: TokenStates, ids: Tensor) -> Tensor:
    """(A, H) rows of a head, times the scale of its logits; a constant."""
    return states.scale * states.head.detach()[ids]


def _head(projected: Tensor, side: TokenStates) -> Tensor:
    """(n, V) logits of a side's head, which is a constant here."""
    head = side.head.detach()
    return bounded_logits(F.linear(projected.to(head.dtype), head), scale=side.scale, cap=side.cap)
