"""The reference of DPO is the model itself before training, so that it can be read ahead: no second model in memory."""

import time
from collections.abc import Callable, Iterable

import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets

from prefkd.data.batches import Microbatch, PairBatch, ParentScores, pair_lengths, split_step
from prefkd.models.logprob_model import LogprobModel
from prefkd.ranks import Ranks
from prefkd.training.display import Display

COLUMNS = ("chosen_reference", "rejected_reference")


@torch.no_grad()
def read_reference(
    model: LogprobModel,
    aligned: Dataset,
    rows: Iterable[int],
    *,
    collate: Callable[[Dataset, Microbatch], PairBatch],
    microbatch_size: int,
    ranks: Ranks,
    display: Display,
) -> Dataset:
    """Add the log-prob of each parent under a model as it is now, where a teacher's scores would stand.

    Args:
        model: The model that is going to be trained; with new adapters, which change nothing yet, it is its base.
        aligned: An aligned data set (`prefkd.data.tokenizing`), with or without scores.
        rows: Those of its rows that will be asked for; each is read once.
        collate: Makes a batch.

    Returns:
        The data set with the columns of `COLUMNS`, in which the other rows are empty.
    """
    lengths = pair_lengths(aligned)
    longest_first = sorted(set(rows), key=lengths.__getitem__, reverse=True)
    found, began = {}, time.perf_counter()
    was_training = model.training
    model.eval()
    with display.progress(len(longest_first)) as bar:
        for microbatch in split_step(longest_first, microbatch_size, ranks.rank, ranks.world_size):
            batch = collate(aligned, microbatch).to(ranks.device)
            scores = ParentScores(batch.parent_sums(model(batch.student), batch.student))
            found |= zip(microbatch.rows, scores.columns(batch.parent_mask), strict=True)
            speed = len(found) / (time.perf_counter() - began)
            bar.advance(f"reading the reference, {speed:.1f} pairs/s", steps=len(microbatch.rows) * ranks.world_size)
    model.train(was_training)
    found = {row: columns for part in ranks.gather(found) for row, columns in part.items()}
    read = {name: [found[row][name] if row in found else [] for row in range(len(aligned))] for name in COLUMNS}
    columns = Dataset.from_dict(read, features=Features({name: List(Value("float32")) for name in COLUMNS}))
    others = aligned.remove_columns([name for name in COLUMNS if name in aligned.column_names])
    return concatenate_datasets([others, columns], axis=1)
