"""A causal language model as the losses see it: token sequences in, log-probs of the response tokens out."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from prefkd.data.batches import Segment, TokenBatch
from prefkd.method.dual_space import DualSpaceProjectors
from prefkd.method.dual_space_v2 import ExactProjectors
from prefkd.method.head_passes import EAGER, Passes
from prefkd.method.logprobs import bounded_logits, linear_token_logprobs
from prefkd.models.attention import shared_prompt_mask
from prefkd.models.compiled import Compile, as_written
from prefkd.models.head import head_scale_and_cap
from prefkd.models.load import sliding_window
from prefkd.models.logit_room import chunk_rows
from prefkd.models.varlen import Attention

LAYER_TYPES = ("full_attention", "sliding_attention")


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
            is varlen on a GPU that proves to do it. Until `check_model` has decided, it is the mask.
        compile: Whether `check_model` has torch compile the layers, and what is done with logits; `auto` on a GPU where
            that proves to work.
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

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """Inside, layers compute in `precision`."""
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
        with self.autocast(ids.device):
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
