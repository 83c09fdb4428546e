"""A loss called with all that it needs (`prefkd.training.losses`), some of it measured over steps.

What a loss has to know of the whole optimizer step, or of the steps before, is measured in a pass without gradient over
the pairs of the step (`PairLoss.look_ahead`), so that neither microbatches nor ranks change what is learned.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from prefkd.config import bind
from prefkd.data.batches import PairBatch, TokenPairBatch
from prefkd.method.loss_settings import (
    centred,
    dynamic_beta,
    gap_weights,
    offset_per_parent,
    running_mean,
    update_gap,
)
from prefkd.models.logprob_model import TokenStates
from prefkd.ranks import Ranks
from prefkd.training.losses import has_reference, needs_of


@dataclass
class LossState:
    """What is remembered from step to step.

    Attributes:
        steps: Optimizer steps that were measured.
        kappa: Running mean of the offset of a parent.
        delta: Running mean of the rewards.
        gap_mean, gap_std: M and S of beta-DPO.
    """

    steps: int = 0
    kappa: float = 0.0
    delta: float = 0.0
    gap_mean: float = 0.0
    gap_std: float = 0.0


@dataclass(frozen=True)
class MeasuredStep:
    """All pairs of an optimizer step, n of them over all microbatches and ranks, as they were measured ahead.

    Attributes:
        place: The index of each pair by its row.
        policy, reference: (2, n) log-probs, those of the policy centred.
        drawn: (n,) what a pair's loss is multiplied by: 0 for a pair that is left out, and 1 without `dynamic_beta`.
        beta: Beta of the step, or None.
    """

    place: Mapping[int, int]
    policy: Tensor
    reference: Tensor
    drawn: Tensor
    beta: float | None


class PairLoss:
    """The loss of a config.

    Args:
        config: With `loss`, the `LossSettings` and `training`.
        weighted: Whether a function that does not say what it needs takes margins.
    """

    def __init__(self, config: Any, ranks: Ranks, *, weighted: bool = False):
        self.needs = needs_of(config.loss, weighted=weighted)
        self.has_reference = has_reference(config.loss)
        self.state = LossState()
        self._config, self._ranks, self._function = config, ranks, bind(config.loss)
        measures = config.centre or config.dynamic_beta is not None or bool(self.needs & {"delta", "batch"})
        self._measures = measures and ranks.device.type != "meta"  # a plan has one microbatch, and no values
        self._step: MeasuredStep | None = None
        self._left = 0  # microbatches of this rank until the step is over
        self._seen: list[tuple[Sequence[int], Tensor, Tensor]] | None = None  # while looking ahead

    def read(self, states: TokenStates) -> tuple[Tensor, Tensor | None]:
        """What a model is asked: log pi(y_t | x, y_<t) of each target, (N,).

        With `wpo` also by how much that is above ``log sum_v pi(v | x, y_<t)^2``, (N,) without gradient; else None.
        """
        logprobs = states.logprobs()
        if not self._config.wpo:
            return logprobs, None
        with torch.no_grad():
            starts = range(0, len(logprobs), states.chunk_size)
            parts = [states.part(start, start + states.chunk_size).logits().log_softmax(-1) for start in starts]
            return logprobs, logprobs - torch.cat([torch.logsumexp(2 * part, -1) for part in parts])

    def __call__(
        self,
        policy: Tensor,
        reference: Tensor,
        batch: PairBatch | TokenPairBatch,
        weights: Tensor,
        *,
        lengths: Tensor,
        surplus: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of each pair of a microbatch and the rewards of both answers, (B,) each.

        Args:
            policy: (2, B) log-prob of each answer under the policy, or its weighted margin.
            reference: (2, B) the same of the reference; 0 where the policy has the margins.
            weights: (2, B, P) how much each parent counts in them, or each token where there are no parents.
            lengths: (2, B) length of each answer in the unit that a loss divides by, tokens or parents.
            surplus: Second value of `read`.
        """
        offsets = weights.sum(-1)
        if self._seen is not None:
            self._seen.append((batch.rows, batch.counted, torch.cat([policy, reference, offsets]).double()))
            nothing = torch.zeros_like(policy[0])
            return nothing, nothing, nothing
        if self._config.centre:
            policy = centred(policy, offsets, self.state.kappa)
        step = self._step if torch.is_grad_enabled() else None  # held-out pairs belong to none
        if step is None and "batch" in self.needs:
            return self._of_pairs_alone(policy, reference, lengths)
        factor = _own_odds(surplus, batch) if surplus is not None else torch.ones_like(policy[0])
        if step is None:
            losses, chosen, rejected = self._losses(policy, reference, lengths, offset=batch.margin)
            return factor * losses, chosen, rejected
        self._left -= 1
        # Written where they are used: for a copy from main memory the host would wait.
        own = torch.stack([torch.full((), step.place[row], device=policy.device) for row in batch.rows])
        if "batch" in self.needs:
            return self._of_whole_step(step, own, policy)
        losses, chosen, rejected = self._losses(policy, reference, lengths, step.beta, offset=batch.margin)
        return factor * losses * step.drawn.to(losses)[own], chosen, rejected

    def look_ahead(self, compare: Callable[..., Any], config: Any, run: Any, batch: PairBatch | TokenPairBatch) -> None:
        """Before the first microbatch of a step: measure all of its pairs, if the loss depends on more than its own.

        All ranks come here together. What is measured is part of the running means that the step itself uses.

        Args:
            compare: The recipe's; called without gradient for each microbatch of the step.
            batch: The microbatch that comes first.
        """
        if not self._measures or self._seen is not None or self._left or not torch.is_grad_enabled():
            return
        ranks, self._seen, self._left = self._ranks, [], 0
        with torch.no_grad():
            for microbatch in run.batches(run.collate, "train", batch.rows_of_step):
                compare(config, run, microbatch)
        # Only now anything is fetched from the device.
        seen = [(rows, counted.tolist(), values.cpu()) for rows, counted, values in self._seen]
        self._seen, self._left = None, len(seen)
        pairs = {
            row: values
            for part in ranks.gather(seen)
            for rows, counted, columns in part
            for row, counts, values in zip(rows, counted, columns.T, strict=True)
            if counts
        }
        rows = sorted(pairs)  # in the same order whichever ranks have read them
        self._step = self._measure(rows, torch.stack([pairs[row] for row in rows], dim=1))

    def metrics(self, batch: PairBatch | TokenPairBatch) -> dict[str, Tensor]:
        """What is logged of the running means, (B,) each."""
        values = {"kappa": self.state.kappa} if self._config.centre else {}
        if "delta" in self.needs:
            values["delta"] = self.state.delta
        if self._config.dynamic_beta is not None:
            beta = self._step.beta if self._step is not None else None
            values["beta"] = self._config.loss["beta"] if beta is None else beta
        return {name: torch.full_like(batch.counted, value) for name, value in values.items()}

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on; the same on all ranks."""
        return asdict(self.state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.state = LossState(**state_dict)

    def _measure(self, rows: list[int], values: Tensor) -> MeasuredStep:
        """Update the running means with the pairs of a step, (6, n): log-probs of policy and reference, and offsets."""
        policy, reference, offsets = values.view(3, 2, -1)
        state, dynamic = self.state, self._config.dynamic_beta
        before, drawn, beta = state.steps, torch.ones(len(rows)), None
        state.steps += 1
        if self._config.centre:
            if (offsets.sum(0) > 0).any():
                kappa = offset_per_parent(*(policy - reference), *offsets).item()
                state.kappa, _ = running_mean(state.kappa, before, kappa)
            policy = centred(policy, offsets, state.kappa)
        if "delta" in self.needs:
            _, *rewards = self._losses(policy, reference, torch.ones_like(policy))
            state.delta, _ = running_mean(state.delta, before, torch.stack(rewards).mean().item())
        if dynamic is not None:
            chosen, rejected = policy - reference
            drawn, beta = self._draw(chosen - rejected)
        policy, reference, drawn = (part.to(self._ranks.device) for part in (policy, reference, drawn))
        return MeasuredStep({row: i for i, row in enumerate(rows)}, policy, reference, drawn, beta)

    def _draw(self, gaps: Tensor) -> tuple[Tensor, float]:
        """beta-DPO: which pairs of a step count, and its beta."""
        state, dynamic = self.state, self._config.dynamic_beta
        state.gap_mean, state.gap_std = update_gap(state.gap_mean, state.gap_std, gaps, dynamic.momentum)
        share = 1 - dynamic.momentum**state.steps  # both begin at 0
        mean, std = state.gap_mean / share, state.gap_std / share
        count = max(1, round(len(gaps) * (1 - dynamic.left_out)))
        generator = torch.Generator().manual_seed(self._config.training.seed * 1_000_003 + state.steps)
        chosen = torch.multinomial(gap_weights(gaps, mean, std), count, generator=generator)
        drawn = torch.zeros(len(gaps)).index_fill(0, chosen, len(gaps) / count)
        return drawn, dynamic_beta(self._config.loss["beta"], gaps[chosen], mean, dynamic.sensitivity)

    def _losses(
        self,
        policy: Tensor,
        reference: Tensor,
        lengths: Tensor,
        beta: float | None = None,
        offset: Tensor | float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        settings: dict[str, Any] = {} if beta is None else {"beta": beta}
        if "lengths" in self.needs:
            settings |= {"chosen_length": lengths[0], "rejected_length": lengths[1]}
        if "delta" in self.needs:
            settings["delta"] = self.state.delta
        if "offset" in self.needs:
            settings["offset"] = offset
        if "margins" in self.needs:
            return self._function(*(policy - reference), **settings)
        return self._function(*policy, *(reference if "reference" in self.needs else ()), **settings)

    def _of_pairs_alone(self, policy: Tensor, reference: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Held-out losses that depend on other pairs: as if each pair were a batch."""
        each = zip(policy.split(1, 1), reference.split(1, 1), lengths.split(1, 1), strict=True)
        alone = [self._losses(*pair) for pair in each]
        losses, chosen, rejected = (torch.cat(values) for values in zip(*alone, strict=True))
        return losses, chosen, rejected

    def _of_whole_step(self, step: MeasuredStep, own: Tensor, policy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Losses of pairs that depend on all pairs of the step: only their own log-probs carry gradient here.

        The gradient is that of the whole step's sum; what other microbatches put into it they add themselves.
        """
        everyone = step.policy.to(policy).index_copy(1, own, policy)
        losses, chosen, rejected = self._losses(everyone, step.reference.to(policy), torch.ones_like(everyone))
        total = losses.sum() / len(own)
        return losses.detach()[own] + total - total.detach(), chosen[own], rejected[own]


def _own_odds(surplus: Tensor, batch: PairBatch | TokenPairBatch) -> Tensor:
    """WPO (arXiv 2406.11827): (B,) the product of both answers' ``exp(mean of log pi(y_t) - log sum_v pi(v)^2)``."""
    return (batch.answer_sums(surplus) / batch.answer_sums(torch.ones_like(surplus))).sum(0).exp()
