"""Steps: which rows make an optimizer step, and how ranks and microbatches share them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import torch
from datasets import Dataset
from transformers.trainer_pt_utils import get_length_grouped_indices

from prefkd.data.arrow import list_lengths
from prefkd.data.rows import PARTS, Contents, token_column


@dataclass(frozen=True)
class Microbatch:
    """Row indices of one forward pass; the last `fillers` of them are repeats that must not count.

    Attributes:
        step: The row indices of all forward passes that this one belongs to, on all ranks; empty where it is alone.
    """

    rows: list[int]
    fillers: int = 0
    step: Sequence[int] = ()


def pair_lengths(pairs: Dataset) -> list[int]:
    """Tokens of each pair in the rows of all models that read it: what a microbatch is sorted by."""
    columns = [token_column(side, part) for side in Contents.of(pairs).sides for part in PARTS]
    return sum(list_lengths(pairs, columns).values(), np.zeros(len(pairs), dtype=np.int64)).tolist()


def plan_steps(lengths: Sequence[int], pairs_per_step: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Which rows make each optimizer step of an epoch: shuffled, yet of like length within a step.

    Every row occurs once; the last step may be smaller.

    Returns:
        A list of row indices for each step.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = get_length_grouped_indices(list(lengths), pairs_per_step, generator=generator)
    steps = [order[i : i + pairs_per_step] for i in range(0, len(order), pairs_per_step)]
    shuffled = torch.randperm(len(steps), generator=generator).tolist()
    return [steps[i] for i in shuffled]


def plan_epochs(
    lengths: Sequence[int], pairs_per_step: int, *, seed: int, epochs: int, max_steps: int | None
) -> list[list[int]]:
    """Which rows make each optimizer step of a training: its epochs one after the other, up to `max_steps`."""
    planned = (plan_steps(lengths, pairs_per_step, seed=seed, epoch=epoch) for epoch in range(epochs))
    return list(islice(chain.from_iterable(planned), max_steps))


def split_step(
    rows: Sequence[int], size: int, rank: int = 0, world_size: int = 1, *, tokens: Sequence[int] | None = None
) -> list[Microbatch]:
    """The microbatches that `rank` runs for a step.

    All ranks get the same number of microbatches, since each forward pass of a sharded model is a meeting of all
    ranks; a rank with no rows left repeats one that does not count. No row is dropped, none counts twice.

    Args:
        size: Rows of a microbatch at most; with `tokens`, its tokens at most.
        tokens: Tokens of each row of the data set, none of which has more than `size`.
    """
    if tokens is None:
        chunks = [list(rows[i : i + size]) for i in range(0, len(rows), size)]
    else:
        chunks = _within_budget(rows, size, tokens)
    rounds = math.ceil(len(chunks) / world_size)
    mine = [Microbatch(chunk, step=rows) for chunk in chunks[rank::world_size]]
    return mine + [Microbatch([rows[0]], fillers=1, step=rows) for _ in range(rounds - len(mine))]


def _within_budget(rows: Sequence[int], budget: int, tokens: Sequence[int]) -> list[list[int]]:
    """Rows in their order, each group as large as a budget of tokens allows."""
    groups: list[list[int]] = []
    left = 0
    for row in rows:
        if not groups or tokens[row] > left:
            groups.append([])
            left = budget
        groups[-1].append(row)
        left -= tokens[row]
    return groups


def learner_tokens(pairs: Dataset, *, shares_prompt: bool) -> list[int]:
    """Tokens of each pair that the model that learns reads, padding apart.

    Args:
        shares_prompt: Whether it reads the prompt once for both answers.
    """
    columns = [token_column(Contents.of(pairs).learner, part) for part in PARTS]
    prompt, chosen, rejected = list_lengths(pairs, columns).values()
    return ((1 if shares_prompt else 2) * prompt + chosen + rejected).tolist()
