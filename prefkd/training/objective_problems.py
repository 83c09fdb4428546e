"""Why an objective cannot be computed, or not from what a config has: found before any model is loaded."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch

from prefkd.config import Component
from prefkd.config.components import infinite_arguments
from prefkd.config.fields import setting
from prefkd.data.vocabulary import Vocabularies
from prefkd.errors import PrefkdError, Problem
from prefkd.method.dual_space import DualSpaceProjectors
from prefkd.method.dual_space_v2 import ExactProjectors
from prefkd.models.load import read_vocabularies
from prefkd.models.logprob_model import TokenStates
from prefkd.models.top_states import smallest_top_states
from prefkd.training.asks import asks_problems, kept_temperatures
from prefkd.training.following import Refresh, refresh_problems
from prefkd.training.objective import Objective, is_sound, make_term, sound_objective
from prefkd.training.signals import PROJECTORS, Need, Signals
from prefkd.training.single_answers import single_answer_problems


def objective_problems(config: Any) -> Iterator[Problem | str]:
    """Why the objective of a config cannot be computed, and which other settings do not go with it.

    Args:
        config: A recipe's config with `objective`, `student`, `teacher`, `data`, `reference`, `weights`, `contrast`,
            `projectors` and `training`.
    """
    objective = sound_objective(config.objective)
    vocabularies = partial(read_vocabularies, config.student, config.teacher)
    yield from _term_problems(config.objective, vocabularies, kept_temperatures(config, objective))
    yield from asks_problems(config, objective)
    yield from single_answer_problems(config, objective)
    yield from _needless_settings(config, objective)


def _needless_settings(config: Any, objective: Objective) -> Iterator[str]:
    """Settings that no term of an objective has a use for, or that do not go with each other.

    Args:
        config: A recipe's config with `data`, `reference`, `projectors` and `training`.
    """
    if config.data.has_margins and "margin" not in objective.needs:
        yield "data.margin: no term of the objective asks for a margin; add dpo or tis_dpo, or remove it"
    if config.projectors.warmup_steps and not objective.needs & PROJECTORS:
        yield "projectors.warmup_steps: no term of the objective has projectors; add dual_space, or use 0"
    if setting(config, Refresh) is not None:
        missing = None if "reference" in objective.needs else "no term of the objective compares with a reference"
        yield from refresh_problems(missing, config.reference == "teacher", config.training)


def _term_problems(
    components: Sequence[Component], vocabularies: Callable[[], Vocabularies | None], kept: Mapping[Need, float]
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
        yield "objective: no term has a weight above 0, so nothing would be learned; give one"
    needs = sound_objective(components).needs
    if needs >= PROJECTORS:
        yield "objective: dual_space and dual_space_v2 have projectors of two kinds; use one of the two"
    for index, component in enumerate(components):
        if sound[index]:
            yield from (f"objective[{index}]{line}" for line in _problems_of_term(component, vocabularies, kept))


def _problems_of_term(
    component: Component, vocabularies: Callable[[], Vocabularies | None], kept: Mapping[Need, float]
) -> Iterator[str]:
    term = make_term(component, component["_component_"])
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
