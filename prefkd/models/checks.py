"""A model proved on the first pair, before it is trained or asked: by its own logits, and by what is to make it faster.

No architecture is trained wrongly in silence. Whether a model attends without a mask, and whether torch compiles its
layers and its passes over logits, is decided here too: each is tried, and compared with the plain way.
"""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from prefkd.data.batches import Segment, TokenBatch
from prefkd.errors import PrefkdError, first_line
from prefkd.method.head_passes import compiled_passes
from prefkd.method.logprobs import NO_TARGET, token_logprobs
from prefkd.models.compiled import as_written_on_failure, compile_layers, is_compiled, tries_compiling, undo_compiling
from prefkd.models.logprob_model import LogprobModel, TokenStates
from prefkd.models.quantize import in_float32
from prefkd.models.varlen import kernel_fault, tries_varlen, use_varlen, varlen_obstacle

logger = logging.getLogger(__name__)

# This quantile of the differences on a pair decides, in nats.
QUANTILE = 0.99
# Beyond so much a model that computes in 16 bits is compared once more in float32, where rounding cannot be the reason.
ROUNDED = 0.25
EXACT = 1e-3
# A share by which sums of products in 16 bits may differ when they are summed in another order.
HALF = 1e-2
# The same for gradients of a whole model; those of a wrong backward pass differ by as much as there is.
OFF = 0.1


@torch.no_grad()
def check_model(model: LogprobModel, tokens: TokenBatch, name: str) -> None:
    """Compare a model with its own logits on one pair, and let it be as fast as it proves to be right.

    Both are computed in the type that the model trains or answers in, where rounding is part of every difference. What
    is suspicious there is compared once more in float32, and that decides. All ranks of a sharded model call it
    together. If attention without a mask, or compiling, proves wrong or impossible, a line says so and it is not done,
    unless `attention` is `varlen` or `compile` is true.

    Raises:
        PrefkdError: If the model rescales its logits, does not honour the mask of a shared prompt, cannot do without a
            mask though it must, or cannot be compiled though it must.
    """
    _choose_attention(model, tokens, name)
    _require_own_logprobs(model, tokens, name)
    _choose_compiling(model, tokens, name)
    _choose_passes(model, tokens, name)


def _choose_attention(model: LogprobModel, tokens: TokenBatch, name: str) -> None:
    device, model.packs = tokens.input_ids.device, False
    if not tries_varlen(model.attention, device):
        return
    fault = varlen_obstacle(model.lm, model.precision, device) or kernel_fault(model.lm, model.precision, device)
    if fault is None:
        by_mask = difference(model, tokens)
        use_varlen(model.lm)
        model.packs = True
        try:
            off = difference(model, tokens)
        except Exception as error:  # whatever a model raises that does not hand on what its attention needs
            fault = _fault(model, error, f"{name}: attention: varlen")
        else:
            if off <= _tolerated(model, max(ROUNDED, 2 * by_mask)):
                return
            fault = f"log-probs are off by {off:.2g} nats, with a mask by {by_mask:.2g}"
    model.packs = False
    if model.attention == "varlen":
        raise PrefkdError(f"{name}: attention: varlen cannot be used: {fault}; use auto or mask")
    logger.warning("%s: attention under a mask, since varlen cannot be used: %s", name, fault)


def _require_own_logprobs(model: LogprobModel, tokens: TokenBatch, name: str) -> None:
    if difference(model, tokens) <= _tolerated(model, ROUNDED):
        return
    with wholly_in_float32(model):
        off = difference(model, tokens)
    if math.isnan(off):
        raise PrefkdError(f"{name}: a log-prob is not a finite number; use dtype: float32, or another checkpoint")
    if off > EXACT:
        remedy = (
            "set share_prompt: false for this model"
            if tokens.shares_prompt
            else "this architecture changes its logits after the head and is not supported"
        )
        raise PrefkdError(f"{name}: log-probs differ from the model's own logits by {off:.3g} nats; {remedy}")


def _choose_compiling(model: LogprobModel, tokens: TokenBatch, name: str) -> None:
    # Frozen models on one base are checked one after the other.
    if is_compiled(model.lm) or not tries_compiling(model.compiles, tokens.input_ids.device):
        return
    expected, expected_gradients = _after_backward(model, tokens)
    compile_layers(model.lm)
    try:
        with as_written_on_failure(model.lm) as errors:
            logprobs, gradients = _after_backward(model, tokens)
    except Exception as error:  # in backward
        fault = _fault(model, error, f"{name}: compile")
    else:
        off, share = (logprobs - expected).abs().quantile(QUANTILE).item(), _share_off(gradients, expected_gradients)
        if not errors and off <= _tolerated(model, ROUNDED) and share <= _tolerated(model, OFF):
            return
        fault = f"log-probs differ by {off:.2g} nats, gradients by a share of {share:.2g}"
        fault = _in_a_line(errors[0]) if errors else fault
    undo_compiling(model.lm)
    if model.compiles is True:
        raise PrefkdError(f"{name}: compile: true fails: {fault}; use auto or false")
    logger.warning("%s: layers run as they are, since compiling them failed: %s", name, fault)


def _choose_passes(model: LogprobModel, tokens: TokenBatch, name: str) -> None:
    if not tries_compiling(model.compiles, tokens.input_ids.device):
        return
    passes = compiled_passes()

    def compare(states: TokenStates) -> float | Exception:
        eager = _logprobs_and_gradients(states)
        try:
            compiled = _logprobs_and_gradients(replace(states, passes=passes))
        except Exception as error:  # of the compiler, and of products that this GPU or this torch does not have
            return error  # raised, it would end a sharded model's pass in the middle
        return max(((one - other).norm() / other.norm()).item() for one, other in zip(compiled, eager, strict=True))

    off = _read(model, tokens, compare)
    if isinstance(off, float):
        if off <= _tolerated(model, HALF):
            model.passes = passes
            return
        fault = f"log-probs and gradients are off by a share of {off:.2g}"
    else:
        fault = _in_a_line(off)
    if model.compiles is True:
        raise PrefkdError(f"{name}: compile: true fails for the head: {fault}; use auto or false")
    logger.warning("%s: the head goes through its logits step by step, since compiling failed: %s", name, fault)


def _tolerated(model: LogprobModel, rounded: float) -> float:
    """By how much a model may be off: as little as float32 allows, or as much as rounding to 16 bits explains."""
    exact = model.precision == torch.float32 and next(model.lm.parameters()).dtype.itemsize >= 4
    return EXACT if exact else rounded


def difference(model: LogprobModel, tokens: TokenBatch) -> float:
    """The quantile of the differences to the model's own log-probs, in nats a target."""

    def read(states: TokenStates) -> Tensor:
        states = replace(states, head=states.head.to(states.hidden.dtype))
        logprobs, own = states.logprobs(), own_logprobs(model, tokens)
        return (logprobs - own).abs().where(logprobs != own, 0).quantile(QUANTILE)

    return _read(model, tokens, read).item()


def own_logprobs(model: LogprobModel, tokens: TokenBatch) -> Tensor:
    """log pi(y_t | x, y_<t) of each target, (N,), from the logits of one answer at a time."""
    parts = []
    for segment in (Segment.CHOSEN, Segment.REJECTED):
        for row_ids, row_segments in zip(tokens.input_ids, tokens.segments, strict=True):
            answer = row_segments == segment
            if answer.any():
                count = int(answer.sum())
                ids = torch.cat([row_ids[row_segments == Segment.PROMPT], row_ids[answer]])[None]
                labels = ids.clone()
                labels[:, :-count] = NO_TARGET
                with model.autocast(ids.device):
                    logits = model.lm(input_ids=ids, use_cache=False).logits
                parts.append(token_logprobs(logits, labels)[0, -count:])
    return torch.cat(parts)


@contextmanager
def wholly_in_float32(model: LogprobModel) -> Iterator[None]:
    """Inside, a model computes in float32, under a mask, and float32 products are exact."""
    precision, packs, products = model.precision, model.packs, torch.get_float32_matmul_precision()
    model.precision, model.packs = torch.float32, False
    torch.set_float32_matmul_precision("highest")
    try:
        with in_float32(model.lm):
            yield
    finally:
        model.precision, model.packs = precision, packs
        torch.set_float32_matmul_precision(products)


def _read(model: LogprobModel, tokens: TokenBatch, read: Callable[[TokenStates], Any]) -> Any:
    """A forward pass without a backward pass. While it reads, a sharded model's embedding and head are whole."""
    found = model(tokens, read)
    if isinstance(model, FSDPModule):
        model.reshard()  # they would stay whole, and an optimizer would take them so
    return found


def _after_backward(model: LogprobModel, tokens: TokenBatch) -> tuple[Tensor, list[Tensor]]:
    """log pi(y_t | x, y_<t) of each target, (N,), and the gradients of their sum, none if the model does not learn.

    Of a sharded model they are this rank's parts.
    """
    was_training, learning = model.training, [value for value in model.parameters() if value.requires_grad]
    learns = bool(learning)
    model.train(learns)
    for module in model.modules():
        if isinstance(module, nn.Dropout):  # of adapters; what it draws would be another gradient each time
            module.eval()
    with torch.set_grad_enabled(learns):
        logprobs = model(tokens)
        if learns:
            logprobs.sum().backward()
    gradients = [_local(torch.zeros_like(value) if value.grad is None else value.grad) for value in learning]
    model.zero_grad()
    model.train(was_training)
    if isinstance(model, FSDPModule):
        model.reshard()
    return logprobs.detach(), gradients


def _logprobs_and_gradients(states: TokenStates) -> tuple[Tensor, ...]:
    """The log-probs of a pair, and the gradients of their sum for the states and, where it learns, the head."""
    with torch.enable_grad():
        hidden, head = states.hidden.detach().requires_grad_(), states.head.detach()
        inputs = [hidden, head.requires_grad_()] if states.head.requires_grad else [hidden]
        logprobs = replace(states, hidden=hidden, head=head).logprobs()
        return logprobs.detach(), *torch.autograd.grad(logprobs.sum(), inputs)


def _share_off(found: list[Tensor], expected: list[Tensor]) -> float:
    """By which share of their joint norm tensors differ from others."""
    if not expected:
        return 0.0
    off = torch.stack([torch.linalg.vector_norm(one - other) for one, other in zip(found, expected, strict=True)])
    whole = torch.stack([torch.linalg.vector_norm(other) for other in expected]).norm()
    return (off.norm() / whole.clamp(min=torch.finfo(whole.dtype).tiny)).item()


def _local(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def _fault(model: LogprobModel, error: Exception, tried: str) -> str:
    """The first line of an exception from a forward pass; a sharded model is of no more use after one."""
    fault = _in_a_line(error)
    if isinstance(model, FSDPModule):
        raise PrefkdError(f"{tried} fails in a sharded model: {fault}; switch it off") from error
    return fault


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
