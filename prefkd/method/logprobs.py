"""Log-probabilities of given tokens. This is the one place with the next-token shift.

Labels are unshifted: they stand at the token that they name, and -100 means that there is no target. The logits at
position t predict the token at position t + 1.

B examples, S positions, V vocabulary, H hidden size, N targets, P parents.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

NO_TARGET = -100
VOCABULARY_BLOCK = 8192


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


def linear_token_logprobs(hidden: Tensor, head_weight: Tensor, targets: Tensor, *, chunk_size: int) -> Tensor:
    """Log-probabilities of targets straight from hidden states, without the logits of all of them at once.

    ``log softmax(hidden[n] @ head_weight.T)[targets[n]]``, for `chunk_size` tokens at a time. Backward computes the
    logits of a chunk anew, unless the head is frozen: then it needs none. Sums run in float32 or wider whatever the
    inputs' precision, and autocast is honoured where it makes the products faster (on CUDA).

    Args:
        hidden: (N, H) states at the positions that predict the targets, after the final norm.
        head_weight: (V, H) weight of the output layer.
        targets: (N,) token ids, each in 0..V-1.
        chunk_size: Tokens whose logits (chunk_size, V) exist at one time, in forward and backward.

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
    result: Any = _LinearTokenLogprobs.apply(hidden, head_weight, targets, chunk_size, factors, wants_hidden_grad)
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
    """`linear_token_logprobs` with its own backward.

    With e = exp(W h - peak), p = e / total and the one-hot target y, the gradients of l = log p[y] are (y - p) W for h
    and (y - p) h' for W, each times the gradient g that arrives for l. Since g is one number per token, the gradient
    for h is finished up to g in forward, where e is at hand. The gradient for W has to wait for g: the last chunk waits
    in memory, the rest is computed again, for a stripe of the vocabulary at a time. The chunk that waits costs nothing
    at the peak, because backward begins here and needs as much room.
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
    ) -> Tensor:
        wide = _wide(hidden)
        found, peaks, totals = hidden.new_empty(3, len(hidden), dtype=wide)
        hidden_grad = hidden.new_zeros(hidden.shape, dtype=wide) if wants_hidden_grad else None
        buffer = hidden.new_empty(min(chunk_size, len(hidden)), len(head_weight), dtype=wide)
        for start in reversed(range(0, len(hidden), chunk_size)):  # the chunk that waits is the first, and a full one
            part = slice(start, start + chunk_size)
            difference, target_logits, peaks[part], totals[part] = _chunk(
                buffer, hidden[part], head_weight, targets[part], factors
            )
            found[part] = target_logits - peaks[part] - totals[part].log()
            if hidden_grad is not None:  # (y - p) W
                for block in _blocks(len(head_weight), VOCABULARY_BLOCK):
                    _add_product(hidden_grad[part], difference[:, block], head_weight[block], factors)
                hidden_grad[part].div_(-totals[part].unsqueeze(-1))
        ctx.save_for_backward(hidden, head_weight, targets, peaks, totals, hidden_grad)
        ctx.waiting = buffer if ctx.needs_input_grad[1] else None
        ctx.chunk_size, ctx.factors = chunk_size, factors
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, head_weight, targets, peaks, totals, hidden_grad = ctx.saved_tensors
        if hidden_grad is not None:
            hidden_grad = (grad.unsqueeze(-1) * hidden_grad).to(hidden.dtype)
        head_grad = None
        if ctx.needs_input_grad[1]:
            head_grad = _head_grad(ctx, hidden, head_weight, targets, peaks, totals, grad).to(head_weight.dtype)
        return hidden_grad, head_grad, None, None, None, None


def _head_grad(
    ctx: Any, hidden: Tensor, head_weight: Tensor, targets: Tensor, peaks: Tensor, totals: Tensor, grad: Tensor
) -> Tensor:
    """``sum over tokens of g (y - p) h'``, (V, H), for `_LinearTokenLogprobs`."""
    vocabulary, tokens, chunk = len(head_weight), len(hidden), min(ctx.chunk_size, len(hidden))
    head_grad = head_weight.new_zeros(head_weight.shape, dtype=totals.dtype)
    weighted_hidden = (-grad / totals).unsqueeze(-1) * hidden
    buffer, ctx.waiting = ctx.waiting, None
    if buffer is None:  # a second backward pass: the first one has used the chunk's room
        buffer = hidden.new_empty(chunk, vocabulary, dtype=totals.dtype)
        _chunk(buffer, hidden[:chunk], head_weight, targets[:chunk], ctx.factors)
    for block in _blocks(vocabulary, VOCABULARY_BLOCK):
        _add_product(head_grad[block], buffer[:, block].T, weighted_hidden[:chunk], ctx.factors)
    if chunk == tokens:
        return head_grad
    rest, count = slice(chunk, tokens), tokens - chunk
    for block in _blocks(vocabulary, max(1, min(buffer.numel() // count, VOCABULARY_BLOCK))):
        rows = head_weight[block]
        stripe = buffer.view(-1)[: count * len(rows)].view(count, len(rows))
        _add_product(stripe, hidden[rest], rows.T, ctx.factors, keep=False)
        stripe.sub_(peaks[rest].unsqueeze(-1)).exp_()
        _less_targets(stripe, targets[rest] - block.start, totals[rest])
        _add_product(head_grad[block], stripe.T, weighted_hidden[rest], ctx.factors)
    return head_grad


def _chunk(
    buffer: Tensor, hidden: Tensor, head_weight: Tensor, targets: Tensor, factors: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``e - total y`` of a chunk in the leading rows of `buffer`; its targets' logits, its peaks, its totals."""
    logits = buffer[: len(hidden)]
    for block in _blocks(len(head_weight), VOCABULARY_BLOCK):
        _add_product(logits[:, block], hidden, head_weight[block].T, factors, keep=False)
    target_logits = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    peaks = logits.amax(-1)
    exponentials = logits.sub_(peaks.unsqueeze(-1)).exp_()
    totals = exponentials.sum(-1)
    return _less_targets(exponentials, targets, totals), target_logits, peaks, totals


def _less_targets(exponentials: Tensor, columns: Tensor, totals: Tensor) -> Tensor:
    """``e - total y`` in place; targets outside these columns of the vocabulary are left alone."""
    inside = (columns >= 0) & (columns < exponentials.shape[1])
    column = columns.clamp(0, exponentials.shape[1] - 1)
    return exponentials.scatter_add_(-1, column.unsqueeze(-1), (-totals).where(inside, 0).unsqueeze(-1))


def _blocks(vocabulary: int, width: int) -> Iterator[slice]:
    """The vocabulary in stripes, so that a change of precision never copies much at a time."""
    for start in range(0, vocabulary, width):
        yield slice(start, start + width)


def _add_product(
    out: Tensor, left: Tensor, right: Tensor, factors: torch.dtype, *, scale: float = 1, keep: bool = True
) -> None:
    """``out <- out + scale left @ right``, without the first term unless `keep`; sums in the precision of `out`."""
    left, right = left.to(factors), right.to(factors)
    if factors == out.dtype:
        out.addmm_(left, right, beta=int(keep), alpha=scale)
    else:
        product = scale * torch.mm(left, right, out_dtype=out.dtype)
        out.copy_(out + product if keep else product)


def _wide(tensor: Tensor) -> torch.dtype:
    """float32, or float64 where the tensor has it."""
    return torch.promote_types(tensor.dtype, torch.float32)
