"""A causal language model as the losses see it: token sequences in, log-probs of the response tokens out."""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from prefkd.data.batches import Segment, TokenBatch
from prefkd.errors import PrefkdError, first_line
from prefkd.method.dual_space import DualSpaceProjectors
from prefkd.method.dual_space_v2 import ExactProjectors
from prefkd.method.head_passes import EAGER, Passes, compiled_passes
from prefkd.method.logprobs import NO_TARGET, bounded_logits, linear_token_logprobs, token_logprobs
from prefkd.models.attention import shared_prompt_mask
from prefkd.models.compiled import (
    Compile,
    as_written,
    as_written_on_failure,
    compile_layers,
    is_compiled,
    tries_compiling,
    undo_compiling,
)
from prefkd.models.head import head_scale_and_cap
from prefkd.models.load import sliding_window
from prefkd.models.logit_room import chunk_rows
from prefkd.models.quantize import in_float32
from prefkd.models.varlen import Attention, kernel_fault, tries_varlen, use_varlen, varlen_obstacle

logger = logging.getLogger(__name__)

LAYER_TYPES = ("full_attention", "sliding_attention")
# What `LogprobModel.check` looks at: this quantile of the differences on a pair, in nats.
QUANTILE = 0.99
# Beyond so much a model that computes in 16 bits is compared once more in float32, where rounding cannot be the reason.
ROUNDED = 0.25
EXACT = 1e-3
# A share by which sums of products in 16 bits may differ when they are summed in another order.
HALF = 1e-2
# The same for gradients of a whole model; those of a wrong backward pass differ by as much as there is.
OFF = 0.1


@dataclass(frozen=True)
class TokenStates:
    """What a model has to say of its target tokens, before a word of it is said: states, and the head that reads them.

    Attributes:
        inputs: (N,) the token at the position that predicts the target.
        targets: (N,) token ids to be predicted.
        parents: (N,) the parent that each target belongs to, in a numbering that student and teacher have in common.
        hidden: (N, H) states at the predicting positions, after the final norm.
        embedding: (V, H) table of the input embeddings, a constant.
        head: (V, H) weight of the output layer.
        lengths: Number of targets of each answer, in whose order they stand.
        chunk_size: Target tokens whose logits may exist at one time.
        scale, cap: Scale and soft cap of the head's output (`prefkd.method.logprobs.bounded_logits`).
        passes: How `logprobs` goes through logits.
    """

    inputs: Tensor
    targets: Tensor
    parents: Tensor
    hidden: Tensor
    embedding: Tensor
    head: Tensor
    lengths: tuple[int, ...]
    chunk_size: int
    scale: float = 1.0
    cap: float | None = None
    passes: Passes = EAGER

    def logprobs(self) -> Tensor:
        """log pi(y_t | x, y_<t) of each target, (N,) float32."""
        return linear_token_logprobs(
            self.hidden,
            self.head,
            self.targets,
            chunk_size=self.chunk_size,
            scale=self.scale,
            cap=self.cap,
            passes=self.passes,
        )

    def logits(self) -> Tensor:
        """(N, V) in float32 or wider; of a whole batch they would be the largest tensor by far, so ask a `part`."""
        return bounded_logits(F.linear(self.hidden, self.head), scale=self.scale, cap=self.cap)

    def logits_at(self, temperature: float) -> Tensor:
        """(N, V) for a softmax at a temperature."""
        return self.logits()

    def answers(self) -> list["TokenStates"]:
        """The same, answer by answer."""
        return [
            self.part(end - length, end) for end, length in zip(accumulate(self.lengths), self.lengths, strict=True)
        ]

    def part(self, start: int, end: int) -> "TokenStates":
        """Some of the targets, as if they were one answer."""
        return self.at(slice(start, end))

    def at(self, which: slice | Tensor) -> "TokenStates":
        """The targets of a slice or at some indices, as if they were one answer."""
        of_targets = {name: getattr(self, name)[which] for name in ("inputs", "targets", "parents", "hidden")}
        return replace(self, **of_targets, lengths=(len(of_targets["targets"]),))


class LogprobModel(nn.Module):
    """Wraps a language model so that its forward ends in log-probs of response tokens, never in a batch of logits.

    It is also the root that FSDP2 shards: embeddings and head are gathered while this forward runs, and only then.

    Args:
        lm: The language model.
        chunk_size: Target tokens whose logits exist at one time; None = as many as the device has room for.
        precision: Type in which layers compute; float32 master weights with bfloat16 here is mixed precision.
        attention: `mask` reads padded rows under a mask, `varlen` packed ones without (`prefkd.models.varlen`), `auto`
            is varlen on a GPU that proves to do it. Until `check` has decided, it is the mask.
        compile: Whether `check` has torch compile the layers, and what is done with logits; `auto` on a GPU where that
            proves to work.
        projectors: Projectors that are trained with the model and needed only then.
    """

    def __init__(
        self,
        lm: PreTrainedModel,
        *,
        chunk_size: int | None = None,
        precision: torch.dtype = torch.float32,
        attention: Attention = "auto",
        compile: Compile = False,
        projectors: DualSpaceProjectors | ExactProjectors | None = None,
    ):
        super().__init__()
        self.lm = lm
        self.chunk_size = chunk_size
        self.gpu_bytes: float | None = None  # of the card of a plan
        self.precision = precision
        self.autocasts = True  # until `prefkd.models.shard` has it done by FSDP, once for each weight
        # `prefkd.models.shard` says whether ranks exchange weights and gradients once a step, or gradients at least.
        self.sync_once = self.sums_on_rank = False
        self.attention: Attention = attention
        self.packs = False
        self.compiles: Compile = compile
        self.passes = EAGER
        self.window = sliding_window(lm)
        self.scale, self.cap = head_scale_and_cap(lm.config)
        self.projectors = projectors

    def forward(self, tokens: TokenBatch, read: Callable[[TokenStates], Any] = TokenStates.logprobs) -> Any:
        """log pi(y_t | x, y_<t) of each target token, (N,) float32, or what else is read from the states.

        Args:
            tokens: The pairs as the model reads them.
            read: Called while all weights are there, those of head and embedding too. Of what it returns, FSDP2 finds
                the tensors in tuples, lists and dictionaries.
        """
        predicting = self._predicting_states(tokens)
        head: Tensor = self.lm.get_output_embeddings().weight  # pyright: ignore[reportOptionalMemberAccess]
        if tokens.largest_target >= len(head):
            raise ValueError(f"target {tokens.largest_target} is outside the vocabulary, 0..{len(head) - 1}")
        if self.precision != torch.float32:
            predicting, head = predicting.to(self.precision), head.to(self.precision)
        embedding: Tensor = self.lm.get_input_embeddings().weight  # pyright: ignore[reportAssignmentType]
        return read(
            TokenStates(
                inputs=tokens.input_ids.flatten()[tokens.predictors],
                targets=tokens.targets,
                parents=tokens.parents,
                hidden=predicting,
                embedding=embedding.detach(),
                head=head,
                lengths=tokens.lengths,
                chunk_size=self.logit_rows(head),
                scale=self.scale,
                cap=self.cap,
                passes=self.passes,
            )
        )

    def logit_rows(self, head: Tensor) -> int:
        """`chunk_size`, or what this device has room for.

        Args:
            head: (V, H) weight of the output layer.
        """
        return chunk_rows(self.chunk_size, len(head), head.device, self.gpu_bytes)

    def freeze(self) -> Self:
        """Make it a constant: no gradients, evaluation mode."""
        return self.requires_grad_(False).eval()

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, the language model can be called on its own, to generate, though FSDP has it in parts."""
        if isinstance(self, FSDPModule):
            self.unshard()
        try:
            with as_written(self.lm):
                yield
        finally:
            if isinstance(self, FSDPModule):
                self.reshard()

    def _autocast(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        if self.precision == torch.float32 or not self.autocasts:
            return contextlib.nullcontext()
        return torch.autocast(device.type, self.precision)

    def _predicting_states(self, tokens: TokenBatch) -> Tensor:
        """(N, H) states at the positions that predict the targets."""
        ids, positions, predictors = tokens.input_ids, tokens.position_ids, tokens.predictors
        how: dict[str, Any] = {"attention_mask": self._attention_mask(tokens)}
        if self.packs:
            packing = tokens.packing
            ids, positions = (values.flatten()[packing.places][None] for values in (ids, positions))
            how["packing"], predictors = packing, packing.predictors
        with self._autocast(ids.device):
            read = self.lm.base_model(input_ids=ids, position_ids=positions, use_cache=False, **how)
        return read.last_hidden_state.flatten(0, 1)[predictors]

    def _attention_mask(self, tokens: TokenBatch) -> Tensor | dict[str, Tensor]:
        if self.packs:  # of a form that transformers takes as it is; nobody looks at it
            nothing = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=tokens.input_ids.device)
            return {kind: nothing for kind in LAYER_TYPES} if self._has_kinds_of_layers else nothing
        if not tokens.shares_prompt:
            return (tokens.segments != Segment.PADDING).long()
        if self._has_kinds_of_layers:
            masks = (self._written(shared_prompt_mask(tokens, window)) for window in (None, self.window))
            return dict(zip(LAYER_TYPES, masks, strict=True))
        return self._written(shared_prompt_mask(tokens, self.window))

    @property
    def _has_kinds_of_layers(self) -> bool:
        return "sliding_attention" in (getattr(self.lm.config, "layer_types", None) or ())

    def _written(self, mask: Tensor) -> Tensor:
        """A mask as the attention takes it: eager attention adds it to the scores, others read true and false."""
        if self.lm.config._attn_implementation != "eager":
            return mask
        least = torch.finfo(self.precision).min
        return torch.zeros_like(mask, dtype=self.precision).masked_fill(~mask, least)

    def _own_logprobs(self, tokens: TokenBatch) -> Tensor:
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
                    with self._autocast(ids.device):
                        logits = self.lm(input_ids=ids, use_cache=False).logits
                    parts.append(token_logprobs(logits, labels)[0, -count:])
        return torch.cat(parts)

    @torch.no_grad()
    def check(self, tokens: TokenBatch, name: str) -> None:
        """Compare with the model's own logits on one pair, so that no architecture is trained wrongly in silence.

        Both are computed in the type that the model trains or answers in, where rounding is part of every difference.
        What is suspicious there is compared once more in float32, and that decides. All ranks of a sharded model call
        it together. Here it is decided, too, whether the model attends without a mask, and whether its layers are
        compiled: if that proves wrong or impossible, a line says so and it is not done, unless `attention` is `varlen`
        or `compile` is true.

        Raises:
            PrefkdError: If the model rescales its logits, does not honour the mask of a shared prompt, cannot do
                without a mask though it must, or cannot be compiled though it must.
        """
        self._choose_attention(tokens, name)
        self._require_own_logprobs(tokens, name)
        self._choose_compiling(tokens, name)
        self._choose_passes(tokens, name)

    def _require_own_logprobs(self, tokens: TokenBatch, name: str) -> None:
        if self._difference(tokens) <= (EXACT if self._is_exact else ROUNDED):
            return
        with self._in_float32():
            difference = self._difference(tokens)
        if math.isnan(difference):
            raise PrefkdError(f"{name}: a log-prob is not a finite number; use dtype: float32, or another checkpoint")
        if not difference <= EXACT:
            remedy = (
                "set share_prompt: false for this model"
                if tokens.shares_prompt
                else "this architecture changes its logits after the head and is not supported"
            )
            raise PrefkdError(
                f"{name}: log-probs differ from the model's own logits by {difference:.3g} nats; {remedy}"
            )

    @property
    def _is_exact(self) -> bool:
        return self.precision == torch.float32 and next(self.lm.parameters()).dtype.itemsize >= 4

    def _choose_attention(self, tokens: TokenBatch, name: str) -> None:
        device, self.packs = tokens.input_ids.device, False
        if not tries_varlen(self.attention, device):
            return
        fault = varlen_obstacle(self.lm, self.precision, device)
        fault = fault or kernel_fault(self.lm, self.precision, device)
        if fault is None:
            by_mask = self._difference(tokens)
            use_varlen(self.lm)
            self.packs = True
            try:
                difference = self._difference(tokens)
            except Exception as error:  # whatever a model raises that does not hand on what its attention needs
                fault = self._fault(error, f"{name}: attention: varlen")
            else:
                if not difference <= (EXACT if self._is_exact else max(ROUNDED, 2 * by_mask)):
                    fault = f"log-probs are off by {difference:.2g} nats, with a mask by {by_mask:.2g}"
        if fault is None:
            return
        self.packs = False
        if self.attention == "varlen":
            raise PrefkdError(f"{name}: attention: varlen cannot be used: {fault}; use auto or mask")
        logger.warning("%s: attention under a mask, since varlen cannot be used: %s", name, fault)

    def _choose_compiling(self, tokens: TokenBatch, name: str) -> None:
        # Frozen models on one base are checked one after the other.
        if is_compiled(self.lm) or not tries_compiling(self.compiles, tokens.input_ids.device):
            return
        eager = self._after_backward(tokens)
        compile_layers(self.lm)
        try:
            with as_written_on_failure(self.lm) as errors:
                compiled = self._after_backward(tokens)
        except Exception as error:  # in backward
            fault = self._fault(error, f"{name}: compile")
        else:
            (logprobs, gradients), (expected, others) = compiled, eager
            difference = (logprobs - expected).abs().quantile(QUANTILE).item()
            off = _share_off(gradients, others)
            fits = difference <= (EXACT if self._is_exact else ROUNDED) and off <= (EXACT if self._is_exact else OFF)
            if not errors and fits:
                return
            fault = f"log-probs differ by {difference:.2g} nats, gradients by a share of {off:.2g}"
            fault = _in_a_line(errors[0]) if errors else fault
        undo_compiling(self.lm)
        if self.compiles is True:
            raise PrefkdError(f"{name}: compile: true fails: {fault}; use auto or false")
        logger.warning("%s: layers run as they are, since compiling them failed: %s", name, fault)

    def _choose_passes(self, tokens: TokenBatch, name: str) -> None:
        if not tries_compiling(self.compiles, tokens.input_ids.device):
            return
        passes = compiled_passes()

        def compare(states: TokenStates) -> float | Exception:
            eager = _logprobs_and_gradients(states)
            try:
                compiled = _logprobs_and_gradients(replace(states, passes=passes))
            except Exception as error:  # of the compiler, and of products that this GPU or this torch does not have
                return error  # raised, it would end a sharded model's pass in the middle
            return max(((one - other).norm() / other.norm()).item() for one, other in zip(compiled, eager, strict=True))

        off = self._read(tokens, compare)
        if isinstance(off, float):
            if off <= (EXACT if self._is_exact else HALF):
                self.passes = passes
                return
            fault = f"log-probs and gradients are off by a share of {off:.2g}"
        else:
            fault = _in_a_line(off)
        if self.compiles is True:
            raise PrefkdError(f"{name}: compile: true fails for the head: {fault}; use auto or false")
        logger.warning("%s: the head goes through its logits step by step, since compiling failed: %s", name, fault)

    def _fault(self, error: Exception, tried: str) -> str:
        """The first line of an exception from a forward pass; a sharded model is of no more use after one."""
        fault = _in_a_line(error)
        if isinstance(self, FSDPModule):
            raise PrefkdError(f"{tried} fails in a sharded model: {fault}; switch it off") from error
        return fault

    def _after_backward(self, tokens: TokenBatch) -> tuple[Tensor, list[Tensor]]:
        """log pi(y_t | x, y_<t) of each target, (N,), and the gradients of their sum, none if the model does not learn.

        Of a sharded model they are this rank's parts.
        """
        was_training, learns = self.training, any(value.requires_grad for value in self.parameters())
        self.train(learns)
        for module in self.modules():
            if isinstance(module, nn.Dropout):  # of adapters; what it draws would be another gradient each time
                module.eval()
        with torch.set_grad_enabled(learns):
            logprobs = self(tokens)
            if learns:
                logprobs.sum().backward()
        learning = [value for value in self.parameters() if value.requires_grad]
        gradients = [_local(torch.zeros_like(value) if value.grad is None else value.grad) for value in learning]
        self.zero_grad()
        self.train(was_training)
        if isinstance(self, FSDPModule):
            self.reshard()
        return logprobs.detach(), gradients

    def _difference(self, tokens: TokenBatch) -> float:
        """The quantile of the differences to the model's own log-probs, in nats a target."""

        def read(states: TokenStates) -> Tensor:
            states = replace(states, head=states.head.to(states.hidden.dtype))
            logprobs, own = states.logprobs(), self._own_logprobs(tokens)
            return (logprobs - own).abs().where(logprobs != own, 0).quantile(QUANTILE)

        return self._read(tokens, read).item()

    def _read(self, tokens: TokenBatch, read: Callable[[TokenStates], Any]) -> Any:
        """A forward pass without a backward pass. While it reads, a sharded model's embedding and head are whole."""
        found = self(tokens, read)
        if isinstance(self, FSDPModule):
            self.reshard()  # they would stay whole, and an optimizer would take them so
        return found

    @contextlib.contextmanager
    def _in_float32(self) -> Iterator[None]:
        """Inside, the model computes in float32, under a mask, and float32 products are exact."""
        precision, packs, products = self.precision, self.packs, torch.get_float32_matmul_precision()
        self.precision, self.packs = torch.float32, False
        torch.set_float32_matmul_precision("highest")
        try:
            with in_float32(self.lm):
                yield
        finally:
            self.precision, self.packs = precision, packs
            torch.set_float32_matmul_precision(products)


def _local(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def _share_off(found: list[Tensor], expected: list[Tensor]) -> float:
    """By which share of their joint norm tensors differ from others."""
    if not expected:
        return 0.0
    off = torch.stack([torch.linalg.vector_norm(one - other) for one, other in zip(found, expected, strict=True)])
    whole = torch.stack([torch.linalg.vector_norm(other) for other in expected]).norm()
    return (off.norm() / whole.clamp(min=torch.finfo(whole.dtype).tiny)).item()


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _logprobs_and_gradients(states: TokenStates) -> tuple[Tensor, ...]:
    """The log-probs of a pair, and the gradients of their sum for the states and, where it learns, the head."""
    with torch.enable_grad():
        hidden, head = states.hidden.detach().requires_grad_(), states.head.detach()
        inputs = [hidden, head.requires_grad_()] if states.head.requires_grad else [hidden]
        logprobs = replace(states, hidden=hidden, head=head).logprobs()
        return logprobs.detach(), *torch.autograd.grad(logprobs.sum(), inputs)
