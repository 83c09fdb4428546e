"""The largest pairs that a config allows, without their text."""

from typing import Any

import torch
from datasets import Dataset

from prefkd.data.batches import count_targets
from prefkd.data.kept_rows import TEMPERATURE, TOKENS, kept_columns
from prefkd.data.pairs import DataConfig
from prefkd.data.rows import ANSWERS, INSTRUCTIONS, KEPT, SCORED, AlignedAnswer, AlignedRow, Reading, score_column
from prefkd.method.top_rows import rows_of

TOKENS_KEPT = 64  # all of a small vocabulary: without content it makes no difference


def full_pairs(data: DataConfig, count: int) -> Dataset:
    """Aligned pairs whose prompts have `max_prompt_length` tokens and whose answers fill `max_length`, on both sides.

    They come with scores and with prompts under instructions; a recipe takes what it needs.
    """
    prompt, length = [0] * data.max_prompt_length, data.max_length - data.max_prompt_length
    answer, parents = [0] * length, range(length)  # a token each: the most parents there can be
    reading = Reading(prompt, (answer, answer), (parents, parents))
    aligned = AlignedAnswer(parents=length, ends=True, characters=length, single=length)
    pair = AlignedRow(reading, reading, (aligned, aligned), dict.fromkeys(INSTRUCTIONS, prompt))
    row: dict[str, Any] = {"file": "a full pair", "row": 1, **reading.columns(), **pair.columns()}
    kept = rows_of(torch.zeros(length, TOKENS_KEPT), torch.arange(TOKENS_KEPT).expand(length, -1), 2.0)
    for name in ANSWERS:
        row |= {score_column(name, model): [0.0] * length for model in SCORED}
        for model in KEPT:
            row |= kept_columns(model, name, kept, 0.0)
    row |= {TEMPERATURE: kept.temperature, TOKENS: kept.tokens}
    return count_targets(Dataset.from_list([row] * count))
