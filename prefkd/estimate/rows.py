"""The largest pairs that a config allows, without their text."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from prefkd.data.batches import count_targets
from prefkd.data.kept_rows import KEPT, kept_columns
from prefkd.data.pairs import DataConfig
from prefkd.data.tokenizing import ANSWERS, INSTRUCTIONS, SIDES
from prefkd.method.top_rows import rows_of

SCORES = ("reference", *INSTRUCTIONS)
TOKENS = 64  # all of a small vocabulary are kept: without content it makes no difference


def full_pairs(data: DataConfig, count: int) -> Dataset:
    """Aligned pairs whose prompts have `max_prompt_length` tokens and whose answers fill `max_length`, on both sides.

    They come with scores and with prompts under instructions; a recipe takes what it needs.
    """
    prompt, answer = data.max_prompt_length, data.max_length - data.max_prompt_length
    row: dict[str, Any] = {"file": "a full pair", "row": 1, "prompt": [0] * prompt}
    for token, prompted in enumerate((*SIDES, *INSTRUCTIONS)):  # which begin with nothing in common, the worst case
        row[f"{prompted}_prompt"] = [token] * prompt
    for name in ANSWERS:
        row[name] = [0] * answer
        row |= {f"{side}_{name}": [0] * answer for side in SIDES}
        row |= {f"{side}_{name}_parents": [*range(answer)] for side in SIDES}  # a token each: the most there can be
        row |= {f"{name}_parents": answer, f"{name}_ends": True}
        row |= {f"{name}_{score}": [0.0] * answer for score in SCORES}
        for model in KEPT:
            kept = rows_of(torch.zeros(answer, TOKENS), torch.arange(64).expand(answer, -1), 2.0)
            row |= kept_columns(model, name, kept, 0.0)
    row |= {"kept_temperature": 2.0, "kept_tokens": TOKENS}
    return count_targets(Dataset.from_list([row] * count))


def without_content(value: Any, mode: FakeTensorMode) -> Any:
    """A batch whose tensors are fake tensors."""
    if isinstance(value, Tensor):
        return mode.from_tensor(value)
    if not is_dataclass(value):
        return value
    return replace(value, **{part.name: without_content(getattr(value, part.name), mode) for part in fields(value)})  # pyright: ignore
