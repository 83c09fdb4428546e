"""What an objective asks of the models that are only read, and why they cannot answer."""

from collections.abc import Collection, Iterator
from typing import Any

from prefkd.data.tokenizing import INSTRUCTIONS
from prefkd.errors import Problem
from prefkd.models.teacher import Asks
from prefkd.training.signals import Need
from prefkd.weighting import contrast_problems


def asks_of(config: Any, needs: Collection[Need]) -> Asks:
    """What is asked of the teacher, and of pi+ and pi- where they are models of their own.

    Args:
        config: A recipe's config with `reference`, `weights` and `contrast`.
        needs: Those of the terms.
    """
    states = tuple(name for name in INSTRUCTIONS if f"{name}_states" in needs)
    weighted = config.weights.prompts if "weights" in needs else None
    return Asks(
        reference="reference" in needs and config.reference == "teacher",
        instructions=config.contrast.instructions if states and weighted is None else weighted,
        pair={name: model for name, model in config.contrast.models.items() if name in states},
        logprobs="teacher_logprobs" in needs,
        states="teacher_states" in needs,
        contrast_logprobs=weighted is not None,
        contrast_states=states,
        own_start="reference" in needs and config.reference == "student",
    )


def asks_problems(config: Any, needs: Collection[Need]) -> Iterator[Problem | str]:
    """Why the models of a config cannot answer what is asked of them, and which of them stand there in vain.

    Args:
        config: A recipe's config with `teacher`, `reference`, `weights` and `contrast`.
        needs: Those of the terms.
    """
    yield from (f"teacher.{problem}" for problem in asks_of(config, needs).problems(config.teacher))
    weighted, contrast = config.weights.prompts if "weights" in needs else None, config.contrast
    if "weights" in needs:
        yield from contrast_problems(config.weights, config.teacher.scores)
    states = [name for name in INSTRUCTIONS if f"{name}_states" in needs]
    if not states:
        if contrast.kind == "models":
            yield "contrast: no term of the objective compares with pi+ or pi-; add align_distil, or remove it"
        return
    what = "pi+ and pi-" if len(states) > 1 else "pi+"
    if contrast.kind == "none":
        yield f"contrast.kind: none, but the objective asks for {what}; use prompts or models"
    elif contrast.kind == "prompts" and config.teacher.scores is not None:
        yield f"contrast.kind: prompts needs a teacher in memory to be {what}, not scores; use models, or remove scores"
    elif weighted is not None and contrast.kind == "models":
        yield "weights.contrast: prompt_pair stands beside contrast.kind: models; use scores or uniform"
    elif weighted is not None and weighted != contrast.instructions:
        yield "contrast: its instructions are not those of weights; give both the same"
