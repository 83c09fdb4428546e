"""Terms put together to an objective, as the config says, and what can be wrong with that."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from prefkd.config import Component, bind, component_problems, import_dotpath
from prefkd.config.components import infinite_arguments
from prefkd.data.batches import StepCounts
from prefkd.data.vocabulary import Vocabularies
from prefkd.errors import PrefkdError
from prefkd.method.dual_space import DualSpaceProjectors
from prefkd.method.dual_space_v2 import ExactProjectors
from prefkd.models.logprob_model import TokenStates
from prefkd.models.top_states import smallest_top_states
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
            self.terms.append(_term(component, f"{name} {taken + 1}" if taken else name))
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


def objective_problems(
    components: Sequence[Component],
    vocabularies: Callable[[], Vocabularies | None],
    kept: Mapping[Need, float] | None = None,
) -> Iterator[str]:
    """Why an objective cannot be computed, found by doing so on a pair of one token.

    Args:
        components: The terms of the config. One that `component_problems` finds fault with is left alone.
        vocabularies: Gives those of the two models, None where they cannot be had yet; asked only if a term needs them.
        kept: The states in whose place scores keep distributions, and the temperature at which these are known.
    """
    vocabularies = cache(vocabularies)
    sound = [is_sound(component) for component in components]
    if all(sound) and not any(component.get("weight", 1.0) > 0 for component in components):
        yield "objective: no term has a weight above 0, so that nothing would be learned; give one"
    needs = Objective([component for component, fine in zip(components, sound, strict=True) if fine]).needs
    if needs >= PROJECTORS:
        yield "objective: dual_space and dual_space_v2 have projectors of two kinds; use one of the two"
    for index, component in enumerate(components):
        if sound[index]:
            yield from (
                f"objective[{index}]{problem}" for problem in _term_problems(component, vocabularies, kept or {})
            )


def _term_problems(
    component: Component, vocabularies: Callable[[], Vocabularies | None], kept: Mapping[Need, float]
) -> Iterator[str]:
    term = _term(component, component["_component_"])
    infinite = [f".{line}" for line in infinite_arguments(component)]
    yield from infinite
    if infinite:
        return
    if term.weight < 0:
        yield f".weight: {term.weight} is negative, which teaches the opposite; use 0 to log a term without learning it"
    if term.unit == "pair" and "answers" in component:
        yield f".answers: {term.name} compares both answers; remove it"
    texts = None
    if term.needs & {"vocabularies", "one_vocabulary"}:
        texts = vocabularies()
        if texts is None:
            return
        if "one_vocabulary" in term.needs and texts.student != texts.teacher:
            sizes = f"{len(texts.student)} and {len(texts.teacher)}"
            yield f": {term.name} needs models of one vocabulary, but these have {sizes} tokens that are not the same"
            return
    try:
        with torch.no_grad():
            term.values(_smallest_signals(term.needs, texts, kept))
    except (ValueError, PrefkdError) as error:
        yield f": {error}"
    except Exception as error:  # a user's own function may raise anything
        yield f": {term.name} fails on a pair of one token ({type(error).__name__}: {error}); is all in its needs?"


def _smallest_signals(needs: frozenset[Need], vocabularies: Vocabularies | None, kept: Mapping[Need, float]) -> Signals:
    """A pair of answers of one token, with what is needed and no more."""

    def states(tokens: int) -> TokenStates:
        ids, table = torch.zeros(2, dtype=torch.long), torch.zeros(tokens, 1)
        return TokenStates(ids, ids, torch.arange(2), torch.zeros(2, 1), table, table, (1, 1), chunk_size=1)

    def read(need: Need) -> TokenStates | None:
        if need not in needs:
            return None
        return smallest_top_states(states(sizes[1]), kept[need]) if need in kept else states(sizes[1])

    parents = -torch.ones(2, 1, 1)
    sizes = (2, 2) if vocabularies is None else (len(vocabularies.student), len(vocabularies.teacher))
    return Signals(
        policy=parents,
        parent_mask=torch.ones(2, 1, 1, dtype=torch.bool),
        student=states(sizes[0]),
        reference=parents if "reference" in needs else None,
        weights=-parents if "weights" in needs else None,
        teacher_logprobs=parents if "teacher_logprobs" in needs else None,
        teacher=read("teacher_states"),
        positive=read("positive_states"),
        negative=read("negative_states"),
        projectors=_smallest_projectors(needs),
        vocabularies=vocabularies,
    )


def _smallest_projectors(needs: frozenset[Need]) -> DualSpaceProjectors | ExactProjectors | None:
    kinds = {"projectors": DualSpaceProjectors, "exact_projectors": ExactProjectors}
    return next((kind(1, 1) for need, kind in kinds.items() if need in needs), None)


def is_sound(component: Component) -> bool:
    """Whether a term is there and takes its settings."""
    return not any(component_problems(component, ("signals",), TERM_SETTINGS))


def _term(component: Component, name: str) -> Term:
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
