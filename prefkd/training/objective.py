"""Terms put together to an objective, as the config says."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from prefkd.config import Component, bind, component_problems, import_dotpath
from prefkd.data.batches import StepCounts
from prefkd.training.signals import PROJECTORS, Answers, Losses, Need, Signals, Unit

# Settings of every term, which it does not get itself.
TERM_SETTINGS: Mapping[str, Any] = {"weight": float, "answers": Answers}
ANSWERS = {"chosen": (0,), "rejected": (1,), "both": (0, 1)}


@dataclass(frozen=True)
class Term:
    """A term with its settings.

    Attributes:
        name: Under which it is logged.
        function: Called with `Signals`.
        weight: Its factor in the objective; with 0 it is only logged.
        sides: The answers it is about, if it is counted in tokens or parents.
        cached: Whether it can do with what scores keep of distributions.
        needs, unit: See `prefkd.training.signals.term`.
    """

    name: str
    function: Callable[[Signals], Losses]
    weight: float
    sides: tuple[int, ...]
    needs: frozenset[Need]
    unit: Unit
    cached: bool = False

    def values(self, signals: Signals) -> tuple[Tensor, dict[str, tuple[Tensor, Unit]]]:
        """What it has for each pair, (B,), and what is logged besides, each with the unit that it is a sum over.

        Raises:
            ValueError: It returns something else.
        """
        found = self.function(replace(signals, sides=self.sides))
        values, details = found if isinstance(found, tuple) else (found, {})
        units: dict[str, tuple[Tensor, Unit]] = {
            name: value if isinstance(value, tuple) else (value, self.unit) for name, value in details.items()
        }
        for value in (values, *(value for value, _ in units.values())):
            if not isinstance(value, Tensor) or value.shape != (signals.policy.shape[1],):
                what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{value!r}"
                raise ValueError(f"{self.name} returns {what}, but must return a value for each pair, (B,)")
        return values, units

    def count(self, step: StepCounts, unit: Unit) -> int:
        """How much of a unit there is in a step."""
        if unit == "pair":
            return step.pairs
        counts = step.tokens if unit == "token" else step.parents
        return sum(counts[side] for side in self.sides)


class Objective:
    """The weighted sum of terms.

    Args:
        components: The terms of the config.
    """

    def __init__(self, components: Sequence[Component]):
        self.terms: list[Term] = []
        for component in components:
            name = component["_component_"].rpartition(".")[2]
            taken = sum(name == term.name.partition(" ")[0] for term in self.terms)
            self.terms.append(make_term(component, f"{name} {taken + 1}" if taken else name))
        self.needs: frozenset[Need] = frozenset().union(*(term.needs for term in self.terms))
        # Of the terms for which what scores keep of distributions will not do.
        self.uncached_needs: frozenset[Need] = frozenset().union(
            *(term.needs for term in self.terms if not term.cached)
        )
        # Of the terms that are also about rejected answers.
        self.rejected_needs: frozenset[Need] = frozenset().union(
            *(term.needs for term in self.terms if term.unit == "pair" or 1 in term.sides)
        )

    def __call__(self, signals: Signals, step: StepCounts | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses of the pairs of a microbatch, (B,), and what to log about each, (B,).

        The mean of the losses over the pairs of the whole step is the objective: sum over terms of weight * (sum of its
        values) / (pairs, tokens or parents of the step). Pairs may have weights for the terms that compare two answers,
        and answers without a rival for all terms. The same holds for what is logged, without weights.
        """
        assert step is not None, "the data set went through count_targets"
        losses, metrics = torch.zeros_like(signals.policy[0, :, 0]), {}
        for term in self.terms:
            values, details = term.values(signals)
            if term.unit == "pair" or not step.parents[1]:
                values = values * signals.pair_weight
            share = step.pairs / term.count(step, term.unit)
            if not signals.only_projectors or term.needs & PROJECTORS:
                losses = losses + term.weight * share * values
            metrics[term.name] = share * values.detach()
            for name, (value, unit) in details.items():
                name = f"{term.name} {name}" if name in metrics else name
                metrics[name] = step.pairs / term.count(step, unit) * value
        return losses, metrics

    def __str__(self) -> str:
        return " + ".join(f"{term.weight:g} {term.name}" for term in self.terms)


def is_sound(component: Component) -> bool:
    """Whether a term is there and takes its settings."""
    return not any(component_problems(component, ("signals",), TERM_SETTINGS))


def sound_objective(components: Sequence[Component]) -> Objective:
    """The terms of a config that are there and take their settings."""
    return Objective([component for component in components if is_sound(component)])


def make_term(component: Component, name: str) -> Term:
    """A term of a config.

    Args:
        name: Under which it is logged.
    """
    function = import_dotpath(component["_component_"])
    own = {key: value for key, value in component.items() if key not in TERM_SETTINGS}
    return Term(
        name=name,
        function=bind(own),
        weight=component.get("weight", 1.0),
        sides=ANSWERS[component.get("answers", getattr(function, "answers", "chosen"))],
        needs=cast(Any, getattr(function, "needs", frozenset())),
        unit=cast(Any, getattr(function, "unit", "pair")),
        cached=getattr(function, "cached", False),
    )
