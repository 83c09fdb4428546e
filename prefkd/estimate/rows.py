"""A microbatch of the largest pairs that a config allows, without their text."""

from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any

from datasets import Dataset
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from prefkd.data.batches import Microbatch, collate_answers, collate_pairs, count_targets
from prefkd.data.pairs import DataConfig
from prefkd.data.tokenizing import ANSWERS, INSTRUCTIONS, SIDES


def full_pairs(data: DataConfig, count: int, *, scores: tuple[str, ...] = ()) -> Dataset:
    """Aligned pairs whose prompts have `max_prompt_length` tokens and whose answers fill `max_length`, on both sides.

    Args:
        scores: What is stored of each parent: reference, positive, negative.
    """
    prompt, answer = data.max_prompt_length, data.max_length - data.max_prompt_length
    row: dict[str, Any] = {"file": "a full pair", "row": 1}
    for prompted in (*SIDES, *INSTRUCTIONS):
        row[f"{prompted}_prompt"] = [0] * prompt
    for name in ANSWERS:
        row |= {f"{side}_{name}": [0] * answer for side in SIDES}
        row |= {f"{side}_{name}_parents": [*range(answer)] for side in SIDES}  # a token each: the most there can be
        row |= {f"{name}_parents": answer, f"{name}_ends": True}
        row |= {f"{name}_{score}": [0.0] * answer for score in scores}
    return count_targets(Dataset.from_list([row] * count))


def full_batch(config: Any, count: int, *, scores: tuple[str, ...] = (), mode: FakeTensorMode) -> Any:
    """The microbatch that the recipe of a config would make of so many full pairs."""
    rows = full_pairs(config.data, count, scores=scores)
    if hasattr(config, "target"):
        collate = partial(collate_answers, answer=config.target)
    else:
        sides = (config.student, config.teacher) if hasattr(config, "student") else (config.model, config.model)
        collate = partial(collate_pairs, share_prompt=(sides[0].share_prompt, sides[1].share_prompt))
    return _without_content(collate(rows, Microbatch([*range(count)])), mode)


def _without_content(value: Any, mode: FakeTensorMode) -> Any:
    if isinstance(value, Tensor):
        return mode.from_tensor(value)
    if not is_dataclass(value):
        return value
    return replace(value, **{part.name: _without_content(getattr(value, part.name), mode) for part in fields(value)})  # pyright: ignore
