"""Log-probabilities of given tokens. This is the one place with the next-token shift.

Labels are unshifted: they stand at the token that they name, and -100 means that there is no target. The logits at
position t predict the token at position t + 1.

B examples, S positions, V vocabulary, H hidden size, N targets, P parents.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from prefkd.method.head_passes import EAGER, Passes, Running, set_targets

NO_TARGET = -100
COPIED_ROWS = 4096  # rows of the head that are held in another precision at one time
ALIGNMENT = 64  # products with other widths take up to half as long again on a CPU


def predicting_logits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The logits that predict each target.

    Args:
        logits: (B, S, V).
        labels: (B, S), unshifted. A label at position 0 has no predictor and is not a target.

    Returns:
        rows (N, V) of `logits` in float32 or wider, one per target in reading order; the targets (N,); and the mask
        (B, S) that is true at the targets. Logits elsewhere take no part, so that even NaN there does no harm.
    """
    mask = labels != NO_TARGET
    mask[:, 0] = False
    rows = logits[:, :-1][mask[:, 1:]]
    return rows.to(_wide(logits)), labels[mask], mask


def token_logprobs(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of each target: ``log softmax(logits[b, t - 1])[labels[b, t]]``.

    Args:
        logits: (B, S, V). Entries may be -inf (a masked vocabulary).
        labels: (B, S), unshifted, -100 where there is no target. Position 0 has no predictor and never counts.

    Returns:
        (B, S) in nats, float32 or wider, 0 where there is no target.
    """
    rows, targets, mask = predicting_logits(logits, labels)
    found = rows.log_softmax(dim=-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return found.new_zeros(labels.shape).masked_scatter(mask, found)


def bounded_logits(logits: Tensor, *, scale: float = 1.0, cap: float | None = None) -> Tensor:
    """``c tanh(s x / c)``, the logits of a model that scales its head's output x and caps it softly (Gemma 2).

    Args:
        logits: (..., V) what the head gives.
        scale: s.
        cap: c; without a cap (None) ``s x``.

    Returns:
        (..., V) in float32 or wider, since near the cap narrower types hold no slope.
    """
    logits = logits.to(_wide(logits))
    logits = logits * scale if scale != 1 else logits
    return logits if cap is None else cap * (logits / cap).tanh()


def linear_token_logprobs(
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    *,
    chunk_size: int,
    scale: float = 1.0,
    cap: float | None = None,
    passes: Passes = EAGER,
) -> Tensor:
    """Log-probabilities of targets straight from hidden states, without all logits at once.

    ``log softmax(bounded_logits(hidden[n] @ head_weight.T))[targets[n]]``. No more logits exist at one time than
    `chunk_size` tokens have. Backward recomputes the ones that had to go, and none if the head is frozen. Sums run in
    float32 or wider whatever the inputs' precision, and autocast is honoured where it makes the products faster (on
    CUDA).

    Args:
        hidden: (N, H) states at the positions that predict the targets, after the final norm.
        head_weight: (V, H) weight of the output layer.
        targets: (N,) token ids, each in 0..V-1. That is the caller's to see to: to look here would be to wait for the
            device.
        chunk_size: Room for logits, in forward and backward: chunk_size x V of them, and as much again with a cap.
        scale: Factor of the logits.
        cap: Bound of the logits, None for none.
        passes: How logits are gone through; compiled ones are for a GPU.

    Returns:
        (N,) in nats, float32 or wider.

    Raises:
        ValueError: `chunk_size` is less than 1.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}, but must be at least 1")
    wide, device = _wide(hidden), hidden.device.type
    factors = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head_weight.dtype
    if device != "cuda" or wide == torch.float64:
        factors = wide  # elsewhere torch has no product of halves that is summed and returned in float32
    wants_hidden_grad = torch.is_grad_enabled() and hidden.requires_grad
    result: Any = _LinearTokenLogprobs.apply(
        hidden, head_weight, targets, chunk_size, factors, wants_hidden_grad, scale, cap, passes
    )
    return result


def parent_logprobs(token_logprobs: Tensor, parent_ids: Tensor, num_parents: int) -> Tensor:
    """Log-probability of each parent: the sum over its tokens (spec: l(P) = sum of l_t over t in P).

    Args:
        token_logprobs: (B, S).
        parent_ids: (B, S) int64, the parent of each token in 0..num_parents-1; negative for a token in no parent.
        num_parents: Parents of the example that has most, P.

    Returns:
        (B, P), 0 for a parent without tokens. Tokens in no parent take no part, whatever their value.
    """
    column = parent_ids.where(parent_ids >= 0, num_parents)  # one more column for tokens in no parent, dropped below
    sums = token_logprobs.new_zeros(len(token_logprobs), num_parents + 1).scatter_add(1, column, token_logprobs)
    return sums[:, :num_parents]


class _LinearTokenLogprobs(torch.autograd.Function):
    """`linear_token_logprobs` with its own backward, both a stripe of the vocabulary at a time, all tokens at once.

    A stripe is as wide as the room of `chunk_size` tokens' logits allows. With z = W h, e = exp(z - peak), total = sum
    of e, p = e / total and the one-hot target y, the log-probability is l = z[y] - peak - log total. Its gradients are
    (y - p) W for h and (y - p) h' for W, each times the gradient g that arrives for l. Since g is one number per token,
    the gradient for h is finished up to g in forward, where e is at hand. The gradient for W has to wait for g: the
    last stripe waits in memory, the others are computed again. The one that waits costs nothing at the peak, because
    backward begins here and needs as much room.

    With a scale s and a cap c, z = c tanh(s W h / c), and the gradient of each logit has the factor s (1 - (z / c)²),
    its slope. Slopes of the last stripe would have to wait too, so with a cap this stripe is computed again as well.

    e is summed without the target, as `others`, so that 1 - p[y] = others / total is exact for confident tokens too.
    What is done with logits between the products are the `Passes`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head_weight: Tensor,
        targets: Tensor,
        chunk_size: int,
        factors: torch.dtype,
        wants_hidden_grad: bool,
        scale: float,
        cap: float | None,
        passes: Passes,
    ) -> Tensor:
        stripes = _stripes(len(head_weight), len(hidden), chunk_size, copied=head_weight.dtype != factors)
        zeros = hidden.new_zeros(len(hidden), dtype=_wide(hidden))
        running = Running(zeros, torch.full_like(zeros, -float("inf")), zeros)
        sums = hidden.new_zeros(hidden.shape, dtype=_wide(hidden)) if wants_hidden_grad else None
        waits = ctx.needs_input_grad[1] and cap is None
        room, waiting = _room(hidden, stripes), None
        for stripe in stripes:
            rows, columns = head_weight[stripe], targets - stripe.start
            dtype = factors if sums is not None or (waits and stripe == stripes[-1]) else None
            logits = _stripe_logits(room, hidden, rows, factors)
            waiting, rescale, running = passes.fold(logits, columns, running, scale, cap, dtype)
            if sums is not None:
                _add_product(sums.mul_(rescale.unsqueeze(-1)), waiting, rows, factors, passes)
        target_logits, peaks, others = running
        totals = others + (target_logits - peaks).exp()
        if sums is not None:  # s (y - p) W, with slopes
            target_slopes = 1 if cap is None else 1 - (target_logits / cap).square()
            sums.div_(-totals.unsqueeze(-1))
            sums.addcmul_((target_slopes * others / totals).unsqueeze(-1), head_weight[targets]).mul_(scale)
        ctx.save_for_backward(hidden, head_weight, targets, *running, totals, sums)
        ctx.waiting = waiting if waits else None
        ctx.room = room if waits and not passes.fused else None  # where what waits lies in it
        ctx.stripes, ctx.factors, ctx.scale, ctx.cap, ctx.passes = stripes, factors, scale, cap, passes
        return target_logits - peaks - totals.log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, head_weight, *_, hidden_grad = ctx.saved_tensors
        head_grad = _head_grad(ctx, grad).to(head_weight.dtype) if ctx.needs_input_grad[1] else None
        if hidden_grad is not None:
            hidden_grad = (grad.unsqueeze(-1) * hidden_grad).to(hidden.dtype)
        return hidden_grad, head_grad, *(None for _ in range(7))


def _head_grad(ctx: Any, grad: Tensor) -> Tensor:
    """``sum over tokens of g s (y - p) h'`` with slopes, (V, H), for `_LinearTokenLogprobs`."""
    hidden, head_weight, targets, *found, totals, _ = ctx.saved_tensors
    running, how = Running(*found), (ctx.scale, ctx.cap, ctx.factors)
    head_grad = head_weight.new_empty(head_weight.shape, dtype=totals.dtype)
    weighted_hidden = ((-ctx.scale * grad / totals).unsqueeze(-1) * hidden).to(ctx.factors)
    # A second backward pass finds nothing waiting.
    (waiting, ctx.waiting), (room, ctx.room) = (ctx.waiting, None), (ctx.room, None)
    room = _room(hidden, ctx.stripes) if room is None else room
    for stripe in reversed(ctx.stripes):
        rows, columns = head_weight[stripe], targets - stripe.start
        if waiting is not None and stripe == ctx.stripes[-1]:
            difference = set_targets(waiting, columns, -running.others)  # (e - total y), where e[y] - total = -others
        else:
            logits = _stripe_logits(room, hidden, rows, ctx.factors)
            difference = ctx.passes.differences(logits, columns, running, *how)
        _write_product(head_grad[stripe], difference.T, weighted_hidden, ctx.factors)
    return head_grad


def _stripes(vocabulary: int, tokens: int, chunk_size: int, *, copied: bool) -> list[slice]:
    """The vocabulary in stripes; one of them, for all tokens, takes the room of `chunk_size` tokens' logits.

    Only the first may be narrower. Rows of the head that have to be copied for a product are few at a time.
    """
    width = max(1, min(chunk_size * vocabulary // max(tokens, 1), COPIED_ROWS if copied else vocabulary))
    if ALIGNMENT < width < vocabulary:
        width -= width % ALIGNMENT
    ends = range(vocabulary % width or width, vocabulary + 1, width)
    return [slice(max(end - width, 0), end) for end in ends]


def _room(hidden: Tensor, stripes: list[slice]) -> Tensor:
    """Memory for the logits of the widest stripe."""
    return hidden.new_empty(len(hidden) * (stripes[-1].stop - stripes[-1].start), dtype=_wide(hidden))


def _stripe_logits(room: Tensor, hidden: Tensor, rows: Tensor, factors: torch.dtype) -> Tensor:
    """``hidden @ rows.T``, in `room`."""
    logits = room[: len(hidden) * len(rows)].view(len(hidden), len(rows))
    _write_product(logits, hidden, rows.T, factors)
    return logits


def _add_product(out: Tensor, left: Tensor, right: Tensor, factors: torch.dtype, passes: Passes) -> None:
    """``out <- out + left @ right``; sums in the precision of `out`."""
    left, right = left.to(factors), right.to(factors)
    if factors == out.dtype:
        out.addmm_(left, right)
    elif passes.fused:
        torch.addmm(out, left, right, out_dtype=out.dtype, out=out)
    else:
        out.add_(torch.mm(left, right, out_dtype=out.dtype))


def _write_product(out: Tensor, left: Tensor, right: Tensor, factors: torch.dtype) -> None:
    """``out <- left @ right``; sums in the precision of `out`."""
    left, right = left.to(factors), right.to(factors)
    if factors == out.dtype:
        torch.mm(left, right, out=out)
    else:
        torch.mm(left, right, out_dtype=out.dtype, out=out)


def _wide(tensor: Tensor) -> torch.dtype:
    """float32, or float64 where the tensor has it."""
    return torch.promote_types(tensor.dtype, torch.float32)
