"""The loss of a recipe that compares answers: what is wrong with a choice of one, and a call with all that it needs.

A loss says in its attribute `needs` (`prefkd.method.loss_needs.preference_loss`) what it must be given; a function of
your own that says nothing takes what the recipe's default loss takes. What a loss has to know of the whole optimizer
step, or of the steps before, is measured in a pass without gradient over the pairs of the step (`look_ahead`), so that
neither microbatches nor ranks change what is learned.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from prefkd.config import Component, bind, component_problems, import_dotpath, refusals
from prefkd.data.batches import PairBatch, split_step
from prefkd.method.loss_needs import Need
from prefkd.method.loss_settings import (
    centred,
    dynamic_beta,
    gap_weights,
    offset_per_parent,
    running_mean,
    update_gap,
)
from prefkd.ranks import Ranks

FOUR = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")
TWO = ("chosen_margin", "rejected_margin")
# All that a recipe may pass to a loss; what it does pass to one follows from the loss's needs.
SUPPLIED = (*FOUR, "chosen_length", "rejected_length", "delta")


@dataclass
class DynamicBeta:
    """beta-DPO (arXiv 2407.08639): beta follows how far apart the pairs of a step are, and outliers are left out.

    Attributes:
        sensitivity: How much beta follows; the a of the paper.
        left_out: Share of the pairs of a step that teach nothing: those far from the running mean, by lot.
        momentum: Of the running mean and deviation.
    """

    sensitivity: float = 0.6
    left_out: float = 0.2
    momentum: float = 0.9

    def problems(self) -> Iterator[str]:
        for name in ("left_out", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                yield f"{name}: {getattr(self, name)} is not a share; use at least 0 and less than 1"


@dataclass(kw_only=True)
class LossSettings:
    """Settings that go with a loss that compares answers.

    Attributes:
        centre: Take out by how much a parent's log-prob is off that of the reference, a running mean over steps. So a
            loss that looks at each answer apart can have a teacher as its reference. Each step's pairs are read twice,
            as they are for `dynamic_beta`, bco_loss and the aot losses.
        nll_weight: Weight of the negative log-likelihood of the chosen answer, a mean over its tokens, beside the loss
            of each pair (RPO, arXiv 2404.19733, with 1.0; ORPO and CPO want it as well).
        long_answer_weight: What counts of an answer beyond the length of the other one (LD-DPO, arXiv 2409.06411).
        dynamic_beta: A beta for each step (beta-DPO), null = that of the loss.
    """

    centre: bool = False
    nll_weight: float = 0.0
    long_answer_weight: float = 1.0
    dynamic_beta: DynamicBeta | None = None


def needs_of(component: Component, *, weighted: bool = False) -> frozenset[Need]:
    """What a loss has to be called with.

    Args:
        weighted: Whether a function that does not say takes margins, as that of recipe tis_dpo_distill.
    """
    default = frozenset({"margins" if weighted else "reference"})
    return getattr(import_dotpath(component["_component_"]), "needs", default)


def has_reference(component: Component) -> bool:
    """Whether a loss compares the policy with a reference at all."""
    return not component.get("reference_free") and bool(needs_of(component) & {"reference", "margins"})


def loss_problems(
    config: Any, *, unit: str | None = None, teacher_is_reference: bool | None = None, weighted: bool = False
) -> Iterator[str]:
    """Why a recipe cannot use a loss, or a setting beside it.

    Args:
        config: A recipe's config with `loss` and the `LossSettings`.
        unit: The name of what `average_logprobs` averages over; None where a config has no such setting.
        teacher_is_reference: None in a recipe without a teacher.
        weighted: Whether answers are compared by weighted margins.
    """
    component: Component = config.loss
    supplied = (*TWO, *SUPPLIED) if weighted else SUPPLIED
    if any(component_problems(component, supplied)):
        return  # what is wrong with it has been said
    needs, name = needs_of(component, weighted=weighted), component["_component_"].rpartition(".")[2]
    averages = unit is not None and config.average_logprobs
    inputs = _smallest_inputs(needs)
    missing = list(component_problems(component, tuple(inputs)))
    yield from (f"loss.{line}" for line in missing)
    if missing:
        return
    yield from refusals("loss", component, **inputs)
    if teacher_is_reference is not None and not needs & {"reference", "margins"}:
        yield f"loss: {name} compares with no reference, so that a teacher has no part in it; use recipe dpo"
    if "means" in needs and unit is None:
        yield f"loss: {name} compares means, which weighted margins are not; use recipe dpo_distill"
    elif "means" in needs and not averages:
        # With sums, long answers would decide alone.
        yield f"average_logprobs: false does not go with {name}, which compares means over {unit}; set it to true"
    if "margins" in needs and component.get("alpha"):
        yield "loss.alpha: weighs a position KL, which two vocabularies do not have; leave it out"
    if weighted and "batch" in needs and "apart" not in needs:
        yield f"loss: {name} sorts the reference's differences, which margins do not hold apart; use recipe dpo_distill"
    if "lengths" in needs and averages:
        yield f"average_logprobs: {name} divides by the lengths itself; remove it"
    if "apart" in needs and teacher_is_reference and not config.centre:
        yield (
            f"loss: {name} looks at each answer apart, and the teacher as reference shifts both by tens of nats; "
            "set reference: student, or centre: true"
        )
    yield from _setting_problems(config, needs, name, averages)


def _setting_problems(config: Any, needs: frozenset[Need], name: str, averages: bool) -> Iterator[str]:
    if config.centre and not has_reference(config.loss) and "margins" not in needs:
        yield f"centre: {name} compares with no reference, from which nothing can be off; remove it"
    elif config.centre and averages:
        yield "centre: does not go with average_logprobs; remove one of the two"
    if config.nll_weight < 0:
        yield f"nll_weight: {config.nll_weight} would make the chosen answers less likely; use 0 or more"
    if not 0 <= config.long_answer_weight <= 1:
        yield f"long_answer_weight: {config.long_answer_weight} is not between 0 and 1; 1.0 counts all of an answer"
    if config.dynamic_beta is not None and ("beta" not in config.loss or needs & {"apart", "batch", "token_means"}):
        yield f"dynamic_beta: needs a loss of the difference of both answers that has a beta, unlike {name}; remove it"


def _smallest_inputs(needs: frozenset[Need]) -> dict[str, Tensor]:
    names = TWO if "margins" in needs else FOUR if "reference" in needs else FOUR[:2]
    inputs = dict.fromkeys(names, -torch.ones(1))
    if "lengths" in needs:
        inputs |= {"chosen_length": torch.ones(1), "rejected_length": torch.ones(1)}
    return inputs | ({"delta": torch.zeros(1)} if "delta" in needs else {})


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
        beta: That of the step, or None.
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
        self._measures = config.centre or config.dynamic_beta is not None or bool(self.needs & {"delta", "batch"})
        self._step: MeasuredStep | None = None
        self._left = 0  # microbatches of this rank until the step is over
        self._seen: list[tuple[list[int], Tensor]] | None = None  # while looking ahead

    def __call__(
        self, policy: Tensor, reference: Tensor, batch: PairBatch, *, lengths: Tensor, offsets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of each pair of a microbatch and the rewards of both answers, (B,) each.

        Args:
            policy: (2, B) log-prob of each answer under the policy, or its weighted margin.
            reference: (2, B) the same of the reference; 0 where the policy has the margins.
            lengths: (2, B) length of each answer in the unit that a loss divides by.
            offsets: (2, B) number of parents of each answer, or the sum of their weights: what kappa is per.
        """
        if self._seen is not None:
            counts = batch.counted.bool()
            rows = [row for row, counted in zip(batch.rows, counts.tolist(), strict=True) if counted]
            self._seen.append((rows, torch.cat([policy, reference, offsets])[:, counts].double().cpu()))
            return torch.zeros_like(policy[0]), *torch.zeros_like(policy)
        if self._config.centre:
            policy = centred(policy, offsets, self.state.kappa)
        step = self._step if torch.is_grad_enabled() else None  # held-out pairs belong to none
        if step is None and "batch" in self.needs:
            return self._of_pairs_alone(policy, reference, lengths)
        if step is None:
            return self._losses(policy, reference, lengths)
        self._left -= 1
        own = torch.tensor([step.place[row] for row in batch.rows], device=policy.device)
        if "batch" in self.needs:
            return self._of_whole_step(step, own, policy)
        losses, *rewards = self._losses(policy, reference, lengths, step.beta)
        return losses * step.drawn.to(losses)[own], *rewards

    def look_ahead(self, compare: Callable[..., Any], config: Any, run: Any, batch: PairBatch) -> None:
        """Before the first microbatch of a step: measure all of its pairs, if the loss depends on more than its own.

        All ranks come here together. What is measured is part of the running means that the step itself uses.

        Args:
            compare: The recipe's; called without gradient for each microbatch of the step.
            batch: The microbatch that comes first.
        """
        if not self._measures or self._seen is not None or self._left or not torch.is_grad_enabled():
            return
        ranks, self._seen = self._ranks, []
        microbatches = split_step(batch.rows_of_step, config.training.microbatch_size, ranks.rank, ranks.world_size)
        with torch.no_grad():
            for microbatch in microbatches:
                compare(config, run, run.collate(run.train_pairs, microbatch).to(ranks.device))
        seen, self._seen, self._left = self._seen, None, len(microbatches)
        pairs = {
            row: values
            for part in ranks.gather(seen)
            for rows, columns in part
            for row, values in zip(rows, columns.T, strict=True)
        }
        rows = sorted(pairs)  # in the same order whichever ranks have read them
        self._step = self._measure(rows, torch.stack([pairs[row] for row in rows], dim=1))

    def metrics(self, batch: PairBatch) -> dict[str, Tensor]:
        """What is logged of the running means, (B,) each."""
        values = {"kappa": self.state.kappa} if self._config.centre else {}
        if "delta" in self.needs:
            values["delta"] = self.state.delta
        if self._config.dynamic_beta is not None:
            beta = self._step.beta if self._step is not None else None
            values["beta"] = self._config.loss["beta"] if beta is None else beta
        return {name: torch.full_like(batch.counted, value) for name, value in values.items()}

    def state_dict(self) -> dict[str, float]:
        """What the next step depends on; the same on all ranks."""
        return asdict(self.state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.state = LossState(**state)

    def _measure(self, rows: list[int], values: Tensor) -> MeasuredStep:
        """Update the running means with the pairs of a step, (6, n): log-probs of policy and reference, and offsets."""
        policy, reference, offsets = values.view(3, 2, -1)
        state, dynamic = self.state, self._config.dynamic_beta
        before, drawn, beta = state.steps, torch.ones(len(rows)), None
        state.steps += 1
        if self._config.centre:
            kappa = offset_per_parent(*(policy - reference), *offsets).item()
            state.kappa, _ = running_mean(state.kappa, before, kappa)
            policy = centred(policy, offsets, state.kappa)
        if "delta" in self.needs:
            _, *rewards = self._losses(policy, reference, torch.ones_like(policy))
            state.delta, _ = running_mean(state.delta, before, torch.stack(rewards).mean().item())
        if dynamic is not None:
            chosen, rejected = policy - reference
            drawn, beta = self._draw(chosen - rejected)
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
        self, policy: Tensor, reference: Tensor, lengths: Tensor, beta: float | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        settings: dict[str, Any] = {} if beta is None else {"beta": beta}
        if "lengths" in self.needs:
            settings |= {"chosen_length": lengths[0], "rejected_length": lengths[1]}
        if "delta" in self.needs:
            settings["delta"] = self.state.delta
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
        losses, *rewards = self._losses(everyone, step.reference.to(policy), torch.ones_like(everyone))
        total = losses.sum() / len(own)
        return losses.detach()[own] + total - total.detach(), *(reward[own] for reward in rewards)
