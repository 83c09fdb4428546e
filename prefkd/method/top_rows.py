"""What a cache keeps of a next-token distribution: its most probable tokens, and the mass of all others.

Log-probs are kept, not logits: the rest of a distribution cannot be told from logits, and the constant that all logits
have in common costs digits. The mass of the other tokens is kept as it is and at one temperature more, since
``sum of q^(1/T)`` over them does not follow from their sum.

n positions, k kept tokens of each, V vocabulary.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from prefkd.method.shared_tokens import LEAST_REST, SharedTokens


@dataclass(frozen=True)
class TopRows:
    """The k most probable tokens of n distributions.

    Attributes:
        ids: (n, k), the most probable first.
        logprobs: (n, k) of these tokens.
        rest: (n,) log-prob of all other tokens together.
        cooled_rest: (n,) log of the sum over the other tokens of q^(1 / T), T the temperature.
        temperature: T.
        tokens: V.
    """

    ids: Tensor
    logprobs: Tensor
    rest: Tensor
    cooled_rest: Tensor
    temperature: float
    tokens: int

    def at(self, which: slice | Tensor) -> "TopRows":
        """The rows of a slice or at some indices."""
        parts = {name: getattr(self, name)[which] for name in ("ids", "logprobs", "rest", "cooled_rest")}
        return replace(self, **parts)

    def cooled(self, temperature: float) -> Tensor:
        """(n, k + 1) log-probs of the kept tokens and, last, of all others, at a temperature.

        Raises:
            ValueError: The mass of the others is not known at this temperature.
        """
        if temperature == 1:
            outcomes = torch.cat([self.logprobs, self.rest.unsqueeze(-1)], -1)
        elif temperature == self.temperature:
            outcomes = torch.cat([self.logprobs / temperature, self.cooled_rest.unsqueeze(-1)], -1)
        else:
            known = f"1.0 and {self.temperature}"
            raise ValueError(
                f"temperature is {temperature}, but the scores know {known}; score again with keep.temperature"
            )
        return outcomes.log_softmax(-1)  # what was rounded sums to 1 again

    def with_outcomes(self, logits: Tensor) -> "TopRows":
        """The same tokens under another distribution: (n, k + 1) logits of them and, last, of all others together."""
        outcomes = logits.log_softmax(-1)
        rest = outcomes[:, -1]
        return replace(self, logprobs=outcomes[:, :-1], rest=rest, cooled_rest=rest, temperature=1.0)

    def logits(self, temperature: float = 1.0) -> Tensor:
        """(n, V) such that their softmax at a temperature has the kept probabilities, and all others alike.

        Raises:
            ValueError: As `cooled`.
        """
        outcomes = self.cooled(temperature)
        others = max(self.tokens - self.ids.shape[-1], 1)
        each = (outcomes[:, -1:] - np.log(others)).expand(-1, self.tokens)
        return temperature * each.scatter(-1, self.ids, outcomes[:, :-1])


def keep_top(logits: Tensor, k: int, temperature: float) -> TopRows:
    """Keep the k most probable tokens of (n, V) logits.

    Raises:
        ValueError: There are no k tokens.
    """
    tokens = logits.shape[-1]
    if not 0 < k <= tokens:
        raise ValueError(f"top_k is {k}, but there are {tokens} tokens")
    logprobs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    ids = logprobs.topk(k, -1).indices
    return rows_of(logprobs, ids, temperature)


def rows_of(logprobs: Tensor, ids: Tensor, temperature: float) -> TopRows:
    """Keep given tokens of a distribution, (n, k) of (n, V), such as those that another model finds most probable."""
    others = logprobs.scatter(-1, ids, -torch.inf)
    rest, cooled = (_log_mass(others / scale) for scale in (1.0, temperature))
    return TopRows(ids, logprobs.gather(-1, ids), rest, cooled, temperature, logprobs.shape[-1])


def lumped_rows(
    student_logits: Tensor, *models: TopRows, shared: SharedTokens, temperature: float = 1.0
) -> tuple[Tensor, ...]:
    """Log-probs of the kept tokens that are shared, and of all other tokens together.

    As `lumped_logprobs`, with more tokens in the last bucket: those that are shared and were not kept. A divergence of
    them is never above that of all shared tokens.

    Args:
        student_logits: (n, V_s).
        models: Kept tokens of one model or of several, on the same tokens.
        shared: The shared tokens.
        temperature: Temperature of all sides.

    Returns:
        (n, k + 1) of the student and of each model; -inf for a token that is not shared.

    Raises:
        ValueError: As `TopRows.cooled`, or `temperature` is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, but must be above 0")
    ids = models[0].ids
    partner = shared.teacher.new_full((models[0].tokens,), -1).index_copy(0, shared.teacher, shared.student)[ids]
    lacks = partner < 0
    logits = student_logits.to(torch.promote_types(student_logits.dtype, torch.float32)) / temperature
    logprobs = logits.log_softmax(-1)
    kept = logprobs.gather(-1, partner.clamp_min(0)).masked_fill(lacks, -torch.inf)
    # One column more takes what is written for tokens without a partner.
    column = torch.cat([logprobs, logprobs.new_full((len(logprobs), 1), -torch.inf)], -1)
    rest = _log_mass(column.scatter(-1, partner.where(~lacks, logprobs.shape[-1]), -torch.inf))
    found = [torch.cat([kept, rest.unsqueeze(-1)], -1)]
    for model in models:
        outcomes = model.cooled(temperature).to(logprobs.dtype)
        joined = torch.cat([outcomes[:, :-1].masked_fill(~lacks, -torch.inf), outcomes[:, -1:]], -1).logsumexp(-1)
        found.append(torch.cat([outcomes[:, :-1].masked_fill(lacks, -torch.inf), joined.unsqueeze(-1)], -1))
    return tuple(found)


def pack_ids(ids: np.ndarray, tokens: int) -> bytes:
    """(n, k) ids of a vocabulary of this many tokens in as few bits as they need, highest bit first, row by row.

    A row is filled up to whole bytes.
    """
    bits = id_bits(tokens)
    each = (ids[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(each.astype(np.uint8).reshape(len(ids), ids.shape[1] * bits), axis=1).tobytes()


def unpack_ids(packed: bytes, k: int, tokens: int) -> np.ndarray:
    """(n, k) int64, what `pack_ids` was given."""
    bits = id_bits(tokens)
    size = -(-k * bits // 8)
    rows = np.frombuffer(packed or bytes(size), dtype=np.uint8).reshape(-1, size)[: len(packed) // size]
    each = np.unpackbits(rows, axis=1)[:, : k * bits].reshape(-1, k, bits).astype(np.int64)
    return each @ (1 << np.arange(bits - 1, -1, -1, dtype=np.int64))


def id_bits(tokens: int) -> int:
    """Bits of an id of a vocabulary of so many tokens."""
    return max(1, (tokens - 1).bit_length())


def _log_mass(logprobs: Tensor) -> Tensor:
    """Log of the sum of probabilities, (n, m) to (n,), at least the smallest that counts; -inf adds nothing."""
    nothing = logprobs.isneginf().all(-1, keepdim=True)
    mass = logprobs.masked_fill(nothing, LEAST_REST).logsumexp(-1)
    return mass.where(~nothing.squeeze(-1), LEAST_REST).clamp_min(LEAST_REST)
