"""What the pairs of a microbatch are worth in the loss, and to which source they belong."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from prefkd.data.arrow import column, numbers
from prefkd.data.rows import Contents
from prefkd.data.steps import Microbatch


class _Columns(NamedTuple):
    """Columns of an aligned data set as arrays, (n,); None where they say nothing."""

    weight: np.ndarray | None
    margin: np.ndarray | None
    source: np.ndarray | None
    names: Sequence[str]


def pair_worth(aligned: Dataset, microbatch: Microbatch) -> dict[str, Any]:
    """The fields `weight`, `margin` and `sources` of a batch.

    Weights come over their mean in the whole step. So a mean of weighted losses over the pairs of the step is the
    weighted mean, ``sum_i w_i l_i / sum_i w_i``, however the step is split into microbatches and ranks.
    """
    columns, rows, count = _columns(aligned), microbatch.rows, len(microbatch.rows)
    step = list(microbatch.step or rows)
    weight = torch.ones(count)
    if columns.weight is not None:
        mean = columns.weight[step].mean()
        weight = torch.from_numpy(columns.weight[rows] / mean) if mean else torch.zeros(count)
    margin = torch.zeros(count) if columns.margin is None else torch.from_numpy(columns.margin[rows])
    sources = {}
    if columns.source is not None:
        for code, name in enumerate(columns.names):
            share = (columns.source[step] == code).mean()
            if share:
                sources[name] = torch.from_numpy((columns.source[rows] == code) / share).float()
    return {"weight": weight.float(), "margin": margin.float(), "sources": sources}


def by_source(metrics: dict[str, Tensor], sources: dict[str, Tensor]) -> dict[str, Tensor]:
    """The accuracies of each source, `accuracy/NAME`, so scaled that their means over all pairs are its own means.

    Args:
        metrics: (B,) values by name.
        sources: Name -> (B,) 1 over its share of all pairs where a pair is of the source, 0 elsewhere.
    """
    accuracies = [name for name in ("accuracy", "logprob_accuracy") if name in metrics]
    return {f"{name}/{source}": metrics[name] * of for source, of in sources.items() for name in accuracies}


@lru_cache(maxsize=4)
def _columns(aligned: Dataset) -> _Columns:
    found: dict[str, np.ndarray | None] = {}
    worth = Contents.of(aligned).worth
    for name, ordinary in (("weight", 1.0), ("margin", 0.0)):
        values = numbers(aligned, name) if name in worth else None
        found[name] = None if values is None or (values == ordinary).all() else values
    names: list[str] = []
    if "source" in worth and len(aligned):
        codes: Any = column(aligned, "source").combine_chunks().dictionary_encode()
        names = codes.dictionary.to_pylist()
        found["source"] = codes.indices.to_numpy(zero_copy_only=False) if len(names) > 1 else None
    return _Columns(found["weight"], found["margin"], found.get("source"), names)
