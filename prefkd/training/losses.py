"""The loss of a recipe that compares answers: its settings, and what is wrong with a choice of one.

A loss says in its attribute `needs` (`prefkd.method.loss_needs.preference_loss`) what it must be given; a function of
your own that says nothing takes what the recipe's default loss takes. `prefkd.training.pair_loss` calls it.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prefkd.config import Component, bind, component_problems, import_dotpath
from prefkd.config.components import infinite_arguments
from prefkd.errors import first_line
from prefkd.method.loss_needs import Need
from prefkd.training.following import Refresh, refresh_problems

FOUR = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")
TWO = ("chosen_margin", "rejected_margin")
# All that a recipe may pass to a loss; what it does pass to one follows from the loss's needs.
SUPPLIED = (*FOUR, "chosen_length", "rejected_length", "delta", "offset")


@dataclass
class DynamicBeta:
    """beta-DPO (arXiv 2407.08639): beta follows how far apart the pairs of a step are, and outliers are left out.

    Attributes:
        sensitivity: How much beta follows; the a of the paper.
        left_out: Share of the pairs of a step that teach nothing: those far from the running mean, drawn at random.
        momentum: Momentum of the running mean and deviation.
    """

    sensitivity: float = 0.6
    left_out: float = 0.2
    momentum: float = 0.9

    def problems(self) -> Iterator[str]:
        for name in ("left_out", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                yield f"{name}: {getattr(self, name)} is not a share; use at least 0 and less than 1"
        if not 0 <= self.sensitivity < math.inf:
            yield f"sensitivity: {self.sensitivity} would turn beta around or spoil it; use 0 or more, for example 0.6"


@dataclass(kw_only=True)
class LossSettings:
    """Settings that go with a loss that compares answers.

    Attributes:
        centre: Subtract the mean difference of a parent's log-prob from the reference's, a running mean over steps. So
            a loss that looks at each answer separately can have a teacher as its reference. Each step's pairs are read
            twice, as they are for `dynamic_beta`, bco_loss and the aot losses.
        nll_weight: Weight of the negative log-likelihood of the chosen answer, a mean over its tokens, besides the loss
            of each pair (RPO, arXiv 2404.19733, with 1.0; ORPO and CPO want it as well).
        long_answer_weight: Weight of an answer beyond the length of the other one (LD-DPO, arXiv 2409.06411).
        wpo: Weigh a pair by how much both answers are ones that the model would write itself (arXiv 2406.11827). The
            logits of all targets are made once more.
        dynamic_beta: A beta for each step (beta-DPO), null = that of the loss.
        refresh: The reference, the model's own start, follows the model (TR-DPO, arXiv 2404.09656); null = it stays.
            It is in memory, and reads each pair whenever the model does.
    """

    centre: bool = False
    nll_weight: float = 0.0
    long_answer_weight: float = 1.0
    wpo: bool = False
    dynamic_beta: DynamicBeta | None = None
    refresh: Refresh | None = None


def needs_of(component: Component, *, weighted: bool = False) -> frozenset[Need]:
    """What a loss has to be called with.

    Args:
        weighted: Whether a function that does not say takes margins, as that of recipe tis_dpo_distill.
    """
    default: frozenset[Need] = frozenset(["margins"]) if weighted else frozenset(["reference"])
    return getattr(import_dotpath(component["_component_"]), "needs", default)


def has_reference(component: Component) -> bool:
    """Whether a loss compares the policy with a reference at all."""
    return not component.get("reference_free") and bool(needs_of(component) & {"reference", "margins"})


def loss_problems(
    config: Any, *, unit: str | None = None, teacher_is_reference: bool | None = None, weighted: bool = False
) -> Iterator[str]:
    """Why a recipe cannot use a loss, or a setting next to it.

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
    infinite = [f"loss.{line}" for line in infinite_arguments(component)]
    yield from infinite or _trial_problems(component, inputs)
    if teacher_is_reference is not None and not needs & {"reference", "margins"}:
        yield f"loss: {name} compares with no reference, so a teacher has no part in it; use recipe dpo"
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
    if config.data.has_margins and "offset" not in needs:
        yield f"data.margin: {name} asks for no margin; use dpo_loss or tis_dpo_loss, or remove it"
    if config.data.weight is not None and "batch" in needs:
        yield f"data.weight: {name} compares all pairs of a step with each other and weighs none; remove it"
    yield from _setting_problems(config, needs, name, averages)
    if config.refresh is not None:
        missing_reference = None if has_reference(component) else f"{name} compares with no reference"
        yield from refresh_problems(missing_reference, bool(teacher_is_reference), config.training)


def _trial_problems(component: Component, inputs: Mapping[str, Tensor]) -> Iterator[str]:
    """What is wrong with a preference loss, found by a call on a pair.

    Args:
        component: The loss, with which `component_problems` finds no fault.
        inputs: Arguments from the recipe, (B,) each. The loss can learn through the ones that require a gradient.
    """
    name = component["_component_"]
    try:
        found = bind(component)(**inputs)
    except Exception as error:  # a user's own function may raise anything
        yield f"loss: {first_line(error)}"
        return
    if not (isinstance(found, tuple) and len(found) == 3 and all(_is_per_pair(part) for part in found)):
        yield f"loss: {name} does not return losses, chosen rewards and rejected rewards, (B,) each; name one that does"
    elif not found[0].isfinite().all():
        yield f"loss: {name} makes {found[0].item()} of a pair, which is not a finite number; use other settings"
    elif not _has_gradient(found[0], inputs):
        yield f"loss: {name} has no gradient, so nothing would be learned; use other settings"


def _is_per_pair(value: Any) -> bool:
    return isinstance(value, Tensor) and value.shape == (1,)


def _has_gradient(losses: Tensor, values: Mapping[str, Tensor]) -> bool:
    if not losses.requires_grad:
        return False
    losses.sum().backward()
    return any(value.grad is not None and bool(value.grad.any()) for value in values.values())


def _setting_problems(config: Any, needs: frozenset[Need], name: str, averages: bool) -> Iterator[str]:
    if config.centre and not has_reference(config.loss) and "margins" not in needs:
        yield f"centre: {name} compares with no reference, from which nothing can be off; remove it"
    elif config.centre and averages:
        yield "centre: does not go with average_logprobs; remove one of the two"
    if config.wpo and "batch" in needs:
        yield f"wpo: weighs each pair apart, while {name} compares all of a step with each other; remove it"
    if config.nll_weight < 0:
        yield f"nll_weight: {config.nll_weight} would make the chosen answers less likely; use 0 or more"
    elif config.nll_weight == math.inf:
        yield "nll_weight: inf leaves nothing to the loss of the pairs; use a number"
    if not 0 <= config.long_answer_weight <= 1:
        yield f"long_answer_weight: {config.long_answer_weight} is not between 0 and 1; 1.0 counts all of an answer"
    if config.dynamic_beta is not None and ("beta" not in config.loss or needs & {"apart", "batch", "token_means"}):
        yield f"dynamic_beta: needs a loss of the difference of both answers that has a beta, unlike {name}; remove it"


def _smallest_inputs(needs: frozenset[Need]) -> dict[str, Tensor]:
    names = TWO if "margins" in needs else FOUR if "reference" in needs else FOUR[:2]
    inputs = {
        name: torch.full((1,), -1.0 - place, requires_grad=not name.startswith("reference"))
        for place, name in enumerate(names)
    }
    if "lengths" in needs:
        inputs |= {"chosen_length": torch.ones(1), "rejected_length": torch.ones(1)}
    return inputs | {name: torch.zeros(1) for name in ("delta", "offset") if name in needs}
