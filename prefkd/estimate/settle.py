"""What a config leaves to the memory of the GPU: settled by plans, the fastest choice that fits."""

import logging
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any, Literal

from prefkd.config.fields import name_of, setting
from prefkd.errors import PrefkdError
from prefkd.estimate.memory import Card
from prefkd.estimate.plan import Plan, make_plan
from prefkd.estimate.reading import can_be_planned
from prefkd.training.settings import TrainingConfig

logger = logging.getLogger(__name__)

# The fastest first.
KINDS: tuple[Literal["none", "selective", "full"], ...] = ("none", "selective", "full")


def settle(
    recipe: ModuleType, name: str, config: Any, ranks: int, card: Card | None, *, counts_scores: bool = True
) -> tuple[Any, Plan]:
    """A config without `activation_checkpointing: auto`, and its plan.

    Args:
        name: The recipe's name.
        ranks: Processes.
        card: The GPU of each. The choice that needs least memory is taken where it is not known, or nothing fits.
        counts_scores: As in `make_plan`.
    """
    plan_of = partial(make_plan, recipe, name, ranks=ranks, card=card, counts_scores=counts_scores)
    training = setting(config, TrainingConfig)
    if training is None or training.activation_checkpointing != "auto":
        return config, plan_of(config)
    for kind in KINDS if card is not None else KINDS[-1:]:
        config = _with(config, kind)
        plan = plan_of(config)
        if card is not None and card.fits(plan.peak):
            break
    return config, plan


def settle_for_run(recipe: ModuleType, name: str, config: Any, ranks: int, card: Card) -> Any:
    """The config of a run that begins on a card. Where no plan can be made, activations are recomputed in full."""
    if not can_be_planned(recipe):
        return _with(config, KINDS[-1])
    try:
        return settle(recipe, name, config, ranks, card, counts_scores=False)[0]
    except PrefkdError as error:
        logger.warning("activation_checkpointing: full, since there is no plan to settle it by: %s", error)
        return _with(config, KINDS[-1])


def _with(config: Any, kind: Literal["none", "selective", "full"]) -> Any:
    training: Any = setting(config, TrainingConfig)
    return replace(config, **{name_of(config, training): replace(training, activation_checkpointing=kind)})
