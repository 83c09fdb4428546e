"""The largest pairs that a config allows, without their text."""

from typing import Any

import torch
from datasets import Dataset

from prefkd.data.collate import count_targets
from prefkd.data.kept_rows import TEMPERATURE, TOKENS, kept_columns, state_columns
from prefkd.data.pairs import DataConfig
from prefkd.data.rows import (
    ANSWERS,
    INSTRUCTIONS,
    KEPT,
    NO_ANSWER,
    SCORED,
    AlignedAnswer,
    AlignedRow,
    Reading,
    score_column,
    token_column,
)
from prefkd.method.top_rows import rows_of

TOKENS_KEPT = 64  # all of a small vocabulary: without content it makes no difference


def full_pairs(data: DataConfig, count: int, *, kept_size: int = 0) -> Dataset:
    """Aligned pairs whose prompts have `max_prompt_length` tokens and whose answers fill `max_length`, on both sides.

    They come with scores and with prompts under instructions; a recipe takes what it needs.

    Args:
        kept_size: H of hidden states that they come with too, 0 without.
    """
    prompt, length = [0] * data.max_prompt_length, data.max_length - data.max_prompt_length
    answer, parents = [0] * length, range(length)  # a token each: the most parents there can be
    aligned = AlignedAnswer(parents=length, ends=True, characters=length, single=length)
    answers, owners, both = (answer, answer), (parents, parents), (aligned, aligned)
    if not data.has_rivals:
        answers, owners, both = (answer, []), (parents, []), (aligned, NO_ANSWER)
    reading = Reading(prompt, answers, owners)
    # Prompts that begin with nothing in common are the worst case.
    instructed = {name: [token] * len(prompt) for token, name in enumerate(INSTRUCTIONS, start=1)}
    pair = AlignedRow(reading, reading, both, instructed)
    row: dict[str, Any] = {"file": "a full pair", "row": 1, **reading.columns(), **pair.columns()}
    kept = rows_of(torch.zeros(length, TOKENS_KEPT), torch.arange(TOKENS_KEPT).expand(length, -1), 2.0)
    for name in ANSWERS:
        row |= {score_column(name, model): [0.0] * len(row[token_column("teacher", name)]) for model in SCORED}
        for model in KEPT:
            row |= kept_columns(model, name, kept, 0.0)
    row |= state_columns(torch.zeros(length, kept_size)) if kept_size else {}
    row |= {TEMPERATURE: kept.temperature, TOKENS: kept.tokens}
    return count_targets(Dataset.from_list([row] * count))
