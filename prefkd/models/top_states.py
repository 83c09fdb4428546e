"""What scores keep of a model's next-token distributions, in the place of its hidden states."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from prefkd.data.batches import PairBatch
from prefkd.data.kept_rows import KeptRows
from prefkd.method.top_rows import TopRows, keep_top
from prefkd.models.logit_room import chunk_rows
from prefkd.models.logprob_model import TokenStates


@dataclass(frozen=True)
class TopStates(TokenStates):
    """Targets whose distributions are known by their most probable tokens. There are no states, and no head.

    Attributes:
        rows: The distributions.
        values: (A,) what the states of each answer are worth at the temperature of the rows, or None.
    """

    rows: TopRows = cast(Any, None)
    values: Tensor | None = None

    @classmethod
    def of(cls, kept: KeptRows, batch: PairBatch, chunk_size: int | None) -> "TopStates":
        """Those of a microbatch."""
        tokens, rows = batch.teacher, kept.rows
        return cls(
            inputs=tokens.input_ids.flatten()[tokens.predictors],
            targets=tokens.targets,
            parents=tokens.parents,
            hidden=rows.logprobs.new_zeros(len(tokens.targets), 0),
            embedding=rows.logprobs.new_zeros(rows.tokens, 0),
            head=rows.logprobs.new_zeros(rows.tokens, 0),
            lengths=tokens.lengths,
            chunk_size=chunk_rows(chunk_size, rows.tokens, rows.logprobs.device),
            rows=rows,
            values=kept.values,
        )

    def logits(self) -> Tensor:
        """(N, V), all tokens that were not kept alike."""
        return self.rows.logits()

    def logits_at(self, temperature: float) -> Tensor:
        """As `logits`, for a softmax at a temperature."""
        return self.rows.logits(temperature)

    def at(self, which: slice | Tensor) -> "TopStates":
        """The targets of a slice or at some indices, as if they were one answer."""
        return replace(super().at(which), rows=self.rows.at(which))  # pyright: ignore[reportReturnType, reportCallIssue]


def smallest_top_states(states: TokenStates, temperature: float) -> TopStates:
    """Some targets as if they had been kept, for looking whether a term can be computed."""
    tokens, count = len(states.head), len(states.targets)
    rows = keep_top(torch.zeros(count, tokens), min(2, tokens), temperature)
    values = torch.zeros(len(states.lengths))
    parts: Sequence[str] = ("inputs", "targets", "parents", "hidden", "embedding", "head", "lengths", "chunk_size")
    return TopStates(**{name: getattr(states, name) for name in parts}, rows=rows, values=values)
