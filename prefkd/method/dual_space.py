"""Dual-space knowledge distillation: DSKD (arXiv 2406.17328), for one vocabulary and for two.

The teacher's hidden states are projected into the student's space and read by the student's head (t2s), the student's
into the teacher's space and read by the teacher's head (s2t). Where the tokenizers differ, cross-model attention brings
the positions of one side to those of the other.

Labels are SHIFTED here: the label at a position is the token that this position predicts, and -100 where that is no
target. All losses are sums over targets; dividing them is the caller's, who knows how many targets the whole step has.

B examples, S and T positions of student and teacher, V vocabulary, H hidden size, N targets; _s student, _t teacher.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from prefkd.method.divergences import divergence as divergence_of
from prefkd.method.logprobs import NO_TARGET, bounded_logits

StdOver = Literal["valid", "example", "all"]


class DualSpaceProjectors(nn.Module):
    """What dual-space distillation learns besides the student. `query` is idle where both sides share a vocabulary."""

    def __init__(self, student_size: int, teacher_size: int) -> None:
        super().__init__()
        self.query = nn.Linear(2 * student_size, 2 * teacher_size)
        self.t2s = nn.Linear(teacher_size, student_size)
        self.s2t = nn.Linear(student_size, teacher_size)


@dataclass(frozen=True)
class DualSpaceSide:
    """One model's view of the batch; S, V and H are this model's own.

    input_ids: (B, S).
    labels: (B, S), SHIFTED, -100 where there is no target.
    hidden: (B, S, H) states after the final norm, the input of the head.
    embedding: (V, H) table of the input embeddings.
    head: (V, H) weight of the output layer.
    logits: (B, S, V) where they exist anyway. Left out, they are ``hidden @ head.T``, made for targets only and in
        chunks. They cost their own memory, and their gradient is as large again.
    scale, cap: Scale and soft cap of the head's output (`bounded_logits`).
    targets: Where the labels are targets, (N,) index into the B*S positions. It says that every example has targets on
        both sides, and spares looking for them, for which a host waits for its GPU.
    """

    input_ids: Tensor
    labels: Tensor
    hidden: Tensor
    embedding: Tensor
    head: Tensor
    logits: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None
    targets: Tensor | None = None


@dataclass(frozen=True)
class DualSpaceTerms:
    """Sums over targets in float32 or wider, scalars or one for each example. Only `t2s_ce`, `t2s_kd`, `s2t_kd` and
    `kd` carry gradient.

    t2s_ce: cross-entropy of the projected teacher; teaches `t2s` and, with two vocabularies, `query`.
    t2s_kd: divergence of the student from the projected teacher; teaches the student.
    s2t_kd: forward KL of the projected student from the teacher; teaches `s2t`, the student and `query`.
    kd: their sum, the loss.
    t2s_accuracy: student targets that the projected teacher hits.
    s2t_accuracy: teacher targets that the projected student hits, times N_s / N_t; so both are shares of N_s.
    """

    t2s_ce: Tensor
    t2s_kd: Tensor
    s2t_kd: Tensor
    kd: Tensor
    t2s_accuracy: Tensor
    s2t_accuracy: Tensor


def dual_space_loss(
    projectors: DualSpaceProjectors,
    student: DualSpaceSide,
    teacher: DualSpaceSide,
    *,
    divergence: str,
    temperature: float,
    teacher_temperature: float = 1.0,
    std_over: StdOver = "valid",
    only_projectors: bool = False,
    by_example: bool = False,
    chunk_size: int | None = None,
) -> DualSpaceTerms:
    """DSKD with cross-model attention (arXiv 2406.17328), for two vocabularies.

    The student learns from the projected teacher only where that one predicts the target. An example without a target
    on one of the sides contributes nothing. Embeddings, heads and teacher are constants, but for the student's head
    where the student's own logits are made with it.

    Args:
        projectors: Projectors between these two hidden sizes.
        student: The student's batch.
        teacher: The teacher's batch, the same B examples.
        divergence: A name of `prefkd.method.divergences`, for t2s_kd. s2t_kd is always the forward KL.
        temperature: Temperature of both sides of both divergences.
        teacher_temperature: Further temperature of the projected teacher in t2s_kd.
        std_over: Where the teacher's states and embeddings take their scale from: `valid`, the targets of the batch;
            `example`, the targets of each example, so that examples do not depend on each other; `all`, every position,
            padding too, as the published code has it.
        only_projectors: t2s_ce alone, to warm the projectors up; the other terms are 0.
        by_example: Terms are (B,), a sum for each example.
        chunk_size: Targets whose logits exist at one time, in forward and in backward, which recomputes them. None is
            all of them.

    Raises:
        ValueError: `chunk_size` is less than 1, `std_over` is unknown, or `divergence` refuses its arguments.
    """
    _check_chunk_size(chunk_size)
    if std_over not in get_args(StdOver):
        raise ValueError(f"std_over is {std_over!r}, but must be one of {', '.join(get_args(StdOver))}")
    paired = (student.labels != NO_TARGET).any(1) & (teacher.labels != NO_TARGET).any(1)
    mask = (student.labels != NO_TARGET) & paired.unsqueeze(1)  # m
    teacher_mask = (teacher.labels != NO_TARGET) & paired.unsqueeze(1)  # m^t
    targets, teacher_targets = _targets(student, mask), _targets(teacher, teacher_mask)
    teacher_hidden = _wide(teacher.hidden.detach())

    query = torch.cat(_embedded(student, mask), -1)  # [E_s(x); E_s(y)]
    inputs, outputs = _embedded(teacher, teacher_mask)
    key = torch.cat([inputs, outputs], -1)  # [E_t(x'); E_t(y')]
    key = key / _std(key, teacher_mask, std_over)
    teacher_value = _project(
        projectors.t2s,
        teacher_hidden / _std(teacher_hidden, teacher_mask, std_over) + outputs / _std(outputs, teacher_mask, std_over),
    )
    scores = _attention_scores(_project(projectors.query, query), key)

    seen_by_student = _at(_attend(scores, teacher_value, teacher_mask), targets)
    compare = None if only_projectors else _comparison(divergence, temperature, teacher_temperature)
    t2s_ce, t2s_kd, hits = _teacher_to_student(
        seen_by_student.to(student.hidden.dtype), student, targets, compare, only_hits=True, chunk_size=chunk_size
    )
    if only_projectors:
        zero = torch.zeros_like(t2s_ce)
        return _terms(t2s_ce, zero, zero, hits, zero, by_example=by_example)
    seen_by_teacher = _at(_attend(scores.mT, _project(projectors.s2t, student.hidden), mask), teacher_targets)
    s2t_kd, s2t_hits = _student_to_teacher(
        seen_by_teacher.to(student.hidden.dtype), teacher, teacher_targets, temperature, chunk_size
    )
    own, other = (part.sum(1) if by_example else part.sum() for part in (mask, teacher_mask))
    return _terms(t2s_ce, t2s_kd, s2t_kd, hits, s2t_hits * own / other.clamp_min(1), by_example=by_example)


def same_vocabulary_loss(
    projectors: DualSpaceProjectors,
    student: DualSpaceSide,
    teacher: DualSpaceSide,
    *,
    divergence: str,
    temperature: float,
    by_example: bool = False,
    chunk_size: int | None = None,
) -> DualSpaceTerms:
    """DSKD where both sides share vocabulary and positions (arXiv 2406.17328).

    Here the student learns from the projected teacher at every target. Neither `input_ids` nor `embedding` is read.

    Args:
        projectors: Projectors between these two hidden sizes; `query` is not used.
        student: The student's batch.
        teacher: The teacher's batch; its labels are the student's.
        divergence: A name of `prefkd.method.divergences`, for t2s_kd. s2t_kd is always the forward KL.
        temperature: Temperature of both sides of both divergences.
        by_example, chunk_size: As in `dual_space_loss`.

    Raises:
        ValueError: The labels differ, which is seen unless both sides say where their targets are; `chunk_size` is less
            than 1; or `divergence` refuses its arguments.
    """
    _check_chunk_size(chunk_size)
    if (student.targets is None or teacher.targets is None) and not torch.equal(student.labels, teacher.labels):
        raise ValueError("student and teacher have different labels, but share a vocabulary only if they are the same")
    targets = _targets(student, student.labels != NO_TARGET)
    t2s_ce, t2s_kd, hits = _teacher_to_student(
        _project(projectors.t2s, _at(teacher.hidden.detach(), targets)).to(student.hidden.dtype),
        student,
        targets,
        _comparison(divergence, temperature),
        only_hits=False,
        chunk_size=chunk_size,
    )
    seen_by_teacher = _project(projectors.s2t, _at(student.hidden, targets)).to(student.hidden.dtype)
    s2t_kd, s2t_hits = _student_to_teacher(seen_by_teacher, teacher, targets, temperature, chunk_size)
    return _terms(t2s_ce, t2s_kd, s2t_kd, hits, s2t_hits, by_example=by_example)


def _terms(
    t2s_ce: Tensor, t2s_kd: Tensor, s2t_kd: Tensor, hits: Tensor, s2t_hits: Tensor, *, by_example: bool
) -> DualSpaceTerms:
    """From (B,) sums."""
    sums = t2s_ce, t2s_kd, s2t_kd, t2s_ce + t2s_kd + s2t_kd, hits, s2t_hits
    return DualSpaceTerms(*(sums if by_example else (values.sum() for values in sums)))


def _teacher_to_student(
    states: Tensor,
    student: DualSpaceSide,
    places: Tensor,
    compare: Callable[[Tensor, Tensor], Tensor] | None,
    *,
    only_hits: bool,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """t2s_ce, t2s_kd (0 without `compare`) and the hits of the (N, H_s) projected teacher states, (B,) each."""

    def terms(states: Tensor, targets: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = _head(states, student, student.head.detach())  # z^{t2s}
        ce = F.cross_entropy(logits, targets, reduction="none")
        hit = (logits.argmax(-1) == targets).to(ce.dtype)
        if compare is None:
            return ce, torch.zeros_like(ce), hit
        kd = compare(_own_logits(student, places), logits.detach())  # D(z^s; sg(z^{t2s}))
        return ce, kd * hit if only_hits else kd, hit

    ce, kd, hits = _sums(terms, states, student.labels, places, chunk_size)
    return ce, kd, hits


def _student_to_teacher(
    states: Tensor,
    teacher: DualSpaceSide,
    places: Tensor,
    temperature: float,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor]:
    """s2t_kd and the hits of the (N, H_t) projected student states, (B,) each."""
    compare = _comparison("forward_kl", temperature)

    def terms(states: Tensor, targets: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        logits = _head(states, teacher, teacher.head.detach())  # z^{s2t}
        with torch.no_grad():
            teacher_logits = _own_logits(teacher, places)
        kd = compare(logits, teacher_logits)  # FKL(z^{s2t}; z^t)
        return kd, (logits.argmax(-1) == targets).to(kd.dtype)

    kd, hits = _sums(terms, states, teacher.labels, places, chunk_size)
    return kd, hits


def _sums(
    terms: Callable[..., tuple[Tensor, ...]], states: Tensor, labels: Tensor, places: Tensor, chunk_size: int | None
) -> Iterator[Tensor]:
    """(B,) sums over the targets of each example of `terms`, (n,) of n targets each.

    Targets are read in chunks, whatever their examples; backward recomputes what a chunk needs.
    """
    size = max(1, len(states)) if chunk_size is None else chunk_size
    chunks = zip(*(rows.split(size) for rows in (states, _at(labels, places), places)), strict=True)
    if chunk_size is not None:
        terms = partial(checkpoint, terms, use_reentrant=False, preserve_rng_state=False)
    for parts in zip(*(terms(*chunk) for chunk in chunks), strict=True):
        values = torch.cat(parts)
        yield values.new_zeros(labels.numel()).index_copy(0, places, values).view(labels.shape).sum(1)


def _targets(side: DualSpaceSide, mask: Tensor) -> Tensor:
    """(N,) index of the targets in `mask` into the B*S positions."""
    return mask.flatten().nonzero().squeeze(1) if side.targets is None else side.targets


def _at(values: Tensor, places: Tensor) -> Tensor:
    """(N, ...) values at places of (B, S, ...)."""
    return values.flatten(0, 1).index_select(0, places)


def _own_logits(side: DualSpaceSide, places: Tensor) -> Tensor:
    """(n, V) logits of the model itself at n targets, in float32 or wider."""
    if side.logits is None:
        return _head(_at(side.hidden, places), side, side.head)
    return _wide(_at(side.logits, places))


def _head(states: Tensor, side: DualSpaceSide, weight: Tensor) -> Tensor:
    """(n, V) logits of a side's head in float32 or wider; the product runs in the precision of the head."""
    return bounded_logits(F.linear(states.to(weight.dtype), weight), scale=side.scale, cap=side.cap)


def _comparison(name: str, temperature: float, teacher_temperature: float = 1.0) -> Callable[[Tensor, Tensor], Tensor]:
    return partial(divergence_of, name, temperature=temperature, teacher_temperature=teacher_temperature)


def _embedded(side: DualSpaceSide, mask: Tensor) -> tuple[Tensor, Tensor]:
    """E(x) and E(y), (B, S, H) each, of inputs and targets; token 0 stands where there is no target."""
    inputs, targets = (F.embedding(ids.where(mask, 0), side.embedding) for ids in (side.input_ids, side.labels))
    return _wide(inputs.detach()), _wide(targets.detach())


def _std(values: Tensor, mask: Tensor, over: StdOver) -> Tensor:
    """Unbiased standard deviation of all elements of `values` (B, T, H) where `std_over` says; 1 if there is none."""
    counted = (torch.ones_like(mask) if over == "all" else mask).unsqueeze(-1)
    within = (1, 2) if over == "example" else (0, 1, 2)
    count = counted.sum(within, keepdim=True) * values.shape[-1]
    mean = (values * counted).sum(within, keepdim=True) / count.clamp_min(1)
    variance = ((values - mean) ** 2 * counted).sum(within, keepdim=True) / (count - 1).clamp_min(1)
    return variance.sqrt().where(variance > 0, 1)


def _project(projector: nn.Linear, states: Tensor) -> Tensor:
    return projector(states.to(projector.weight.dtype))


def _attention_scores(query: Tensor, key: Tensor) -> Tensor:
    """``Q K' / sqrt(2 H_t)``, (B, S, T), in float32 or wider also under autocast."""
    with torch.autocast(query.device.type, enabled=False):
        return _wide(query) @ _wide(key).mT / math.sqrt(key.shape[-1])


def _attend(scores: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` (B, T, H), weighted by the softmax of `scores` (B, S, T) over the positions in `mask` (B, T).

    Where an example has no such position, the weights are even and the mean means nothing, but all is finite.
    """
    scores = scores.masked_fill(~mask.unsqueeze(1), torch.finfo(scores.dtype).min)
    with torch.autocast(values.device.type, enabled=False):
        return scores.softmax(-1) @ values.to(scores.dtype)


def _wide(tensor: Tensor) -> Tensor:
    """In float32, or float64 where it has that."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _check_chunk_size(chunk_size: int | None) -> None:
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}, but must be at least 1")
