"""What an objective asks of the models that are only read, and why they cannot answer."""

from collections.abc import Iterator
from typing import Any

from prefkd.data.rows import INSTRUCTIONS
from prefkd.data.scores import Scores, open_scores, scores_problems
from prefkd.errors import Problem
from prefkd.method import preference as losses_by_name
from prefkd.models.questions import Asks
from prefkd.training.objective import Objective
from prefkd.training.signals import Need
from prefkd.weighting import contrast_problems

STATES: dict[str, Need] = {"teacher": "teacher_states", "positive": "positive_states", "negative": "negative_states"}


def asks_of(config: Any, objective: Objective) -> Asks:
    """What is asked of the teacher, and of pi+ and pi- where they are models of their own.

    What scores keep of distributions is taken from them where no term needs more, and no model is named; else hidden
    states, if they keep those too.

    Args:
        config: A recipe's config with `teacher`, `reference`, `weights` and `contrast`.
    """
    needs, kept = objective.needs, kept_names(config, objective)
    states = tuple(name for name in INSTRUCTIONS if STATES[name] in needs and name not in kept)
    from_scores, asked = takes_states(config, objective), "teacher_states" in needs and "teacher" not in kept
    weighted = config.weights.prompts if "weights" in needs else None
    return Asks(
        reference="reference" in needs and config.reference == "teacher",
        instructions=config.contrast.instructions if states and weighted is None else weighted,
        pair={name: model for name, model in config.contrast.models.items() if name in states},
        logprobs="teacher_logprobs" in needs,
        states=asked and not from_scores,
        rejected_states=asked and "teacher_states" in objective.rejected_needs,
        contrast_logprobs=weighted is not None,
        contrast_states=states,
        kept=kept,
        kept_states=from_scores,
        own_start="reference" in needs and config.reference == "student",
    )


def kept_names(config: Any, objective: Objective) -> tuple[str, ...]:
    """The models, of teacher, positive and negative, whose distributions are taken from scores."""
    if config.teacher.scores is None:
        return ()
    stored = _stored(config)  # None if an earlier stage has yet to write them
    live = {"teacher"} if config.teacher.path is not None else set()
    live |= set(INSTRUCTIONS) if config.contrast.kind == "models" else set()
    return tuple(
        name
        for name, need in STATES.items()
        if need in objective.needs
        and need not in objective.uncached_needs
        and name not in live
        and (stored is None or name in stored.kept_models)
    )


def takes_states(config: Any, objective: Objective) -> bool:
    """Whether the teacher's hidden states are taken from scores."""
    if config.teacher.scores is None or config.teacher.path is not None or "teacher_states" not in objective.needs:
        return False
    stored, only_chosen = _stored(config), "teacher_states" not in objective.rejected_needs
    is_there = stored is None or stored.has_states  # None if an earlier stage has yet to write them
    return is_there and only_chosen and "teacher" not in kept_names(config, objective)


def kept_temperatures(config: Any, objective: Objective) -> dict[Need, float]:
    """The temperature at which scores know the distributions of each of `kept_names`."""
    stored = _stored(config)
    return {STATES[name]: stored.kept_temperature for name in kept_names(config, objective)} if stored else {}


def asks_problems(config: Any, objective: Objective) -> Iterator[Problem | str]:
    """Why the models of a config cannot answer what is asked of them, and which of them stand there in vain.

    Args:
        config: A recipe's config with `teacher`, `reference`, `weights` and `contrast`.
    """
    needs, asks = objective.needs, asks_of(config, objective)
    yield from (f"teacher.{problem}" for problem in asks.problems(config.teacher))
    weighted, contrast = config.weights.prompts if "weights" in needs else None, config.contrast
    if "weights" in needs:
        yield from contrast_problems(config.weights, config.teacher.scores)
    for index, component in enumerate(config.objective if config.reference == "teacher" else ()):
        loss = component.get("loss") if component.get("_component_", "").endswith(".terms.preference") else None
        if "apart" in getattr(getattr(losses_by_name, str(loss), None), "needs", ()):
            yield (
                f"objective[{index}].loss: {loss} looks at each answer apart, and the teacher as reference shifts both "
                "by tens of nats; set reference: student, or use recipe dpo_distill with centre: true"
            )
    if not any(STATES[name] in needs for name in INSTRUCTIONS):
        if contrast.kind == "models":
            yield "contrast: no term of the objective compares with pi+ or pi-; add align_distil, or remove it"
        return
    if not asks.contrast_states:
        return  # all of it comes from scores
    what = "pi+ and pi-" if len(asks.contrast_states) > 1 else "pi+"
    served = [name for name in asks.contrast_states if name in asks.pair and asks.pair[name].server is not None]
    if served:
        yield f"contrast.{served[0]}.server: has no logits, which the objective asks for; use a model in memory (path)"
    elif contrast.kind == "none":
        yield f"contrast.kind: none, but the objective asks for {what}; use prompts or models"
    elif contrast.kind == "prompts" and config.teacher.scores is not None:
        yield (
            f"contrast.kind: prompts needs a teacher in memory to be {what}, of which the scores keep nothing; "
            "use models, remove scores, or score with keep.models"
        )
    elif weighted is not None and contrast.kind == "models":
        yield "weights.contrast: prompt_pair conflicts with contrast.kind: models; use scores or uniform"
    elif weighted is not None and weighted != contrast.instructions:
        yield "contrast: its instructions are not those of weights; give both the same"


def _stored(config: Any) -> Scores | None:
    folder = config.teacher.scores
    return None if folder is None or any(scores_problems(folder)) else open_scores(folder)
