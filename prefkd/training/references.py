"""A model's own start as its reference. Unless it follows the model, it is read ahead: no second model in memory.

What was read lies in the cache of data sets, next to the aligned pairs, under a fingerprint of all that it depends on.
So a killed run continues where it was, and a run that is resumed, or repeated with another learning rate or loss, reads
nothing. It takes 4 bytes a parent, and is removed as the rest of that cache is: by the user.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets.config import HF_DATASETS_CACHE
from filelock import FileLock

from prefkd.data.batches import PairBatch, ParentScores, TokenPairBatch, score_columns
from prefkd.data.fingerprints import Fingerprint, own_columns, pairs_fingerprint
from prefkd.data.rows import ANSWERS, Contents, score_column
from prefkd.data.scores import Scores, Shard, begin_scores, is_finished, plan_shards, write_shard
from prefkd.data.steps import Microbatch, pair_lengths
from prefkd.files import fingerprint, whole
from prefkd.models.contrast import weights_fingerprint
from prefkd.models.load import LearnerConfig
from prefkd.models.logprob_model import LogprobModel
from prefkd.training.following import FollowingReference, Refresh
from prefkd.training.run import TrainingRun, ahead
from prefkd.training.settings import TrainingConfig

Collate = Callable[[Dataset, Microbatch], PairBatch | TokenPairBatch]

COLUMNS = [score_column(answer, "reference") for answer in ANSWERS]
PAIRS_PER_SHARD = 256


def use_own_reference(
    run: TrainingRun,
    model: LogprobModel,
    config: LearnerConfig,
    collate: Collate,
    training: TrainingConfig,
    refresh: Refresh | None,
) -> None:
    """Let a model that is going to be trained have its own start as its reference. All ranks call it together.

    Args:
        refresh: Has the reference follow the model; None = it stays, so that it is read ahead (`add_own_start`).
    """
    if refresh is None:
        add_own_start(run, model, config, collate, training)
    else:
        run.following = FollowingReference(refresh, model, run.optimizer, run.lr_schedule)
        run.checkpoints.remember("reference", run.following)


def describe_own_reference(refresh: Refresh | None) -> str:
    """A few words about a reference that is the model's own."""
    return f"its own start, {'read ahead' if refresh is None else f'refreshed every {refresh.every} steps'}"


@torch.no_grad()
def add_own_start(
    run: TrainingRun, model: LogprobModel, config: LearnerConfig, collate: Collate, training: TrainingConfig
) -> None:
    """Add the log-prob of each parent under a model as it is now, where a teacher's scores would stand.

    Where the model reads alone, that is the log-prob of each token.

    Pairs that no step asks for are not read; their columns stay empty.

    Args:
        run: Its pairs get the columns of `COLUMNS`.
        model: The model that is going to be trained; with new adapters, which change nothing yet, it is its base.
        config: Where it came from.
        collate: Makes a batch.
    """
    ranks, lengths = run.ranks, pair_lengths(run.train_pairs)
    used = {row for rows in run.steps for row in rows}
    splits = {
        "train": _Rows(run.train_pairs, sorted(used, key=lengths.__getitem__, reverse=True)),
        "held_out": _Rows(run.held_out_pairs, run.held_out_rows),
    }
    parts: Fingerprint = pairs_fingerprint({name: split.content() for name, split in splits.items()}) | {
        "model": ranks.gather(weights_fingerprint(config) if ranks.is_main else None)[0],
        "dtype": str(next(model.lm.parameters()).dtype),
        "quantization": config.quantization,
        "precision": training.precision,
        # These decide about the last digits only; with them in it, a run gives the same numbers whatever ran before.
        "microbatch_size": run.portions.size,
        "microbatch_is_of": "rows" if run.portions.tokens is None else "tokens",
        "attention": "varlen" if model.packs else "mask",
        "chunk_size": training.chunk_size,
        "share_prompt": config.share_prompt,
        "pairs_per_shard": PAIRS_PER_SHARD,
    }
    start = Scores(Path(HF_DATASETS_CACHE) / "prefkd_own_start" / fingerprint("own start", parts), parts)
    if ranks.is_main:
        start.folder.mkdir(parents=True, exist_ok=True)
    # The main rank alone looks and writes there: the nodes of a cluster need not share the cache. Runs that start
    # together wait for the first of them.
    with FileLock(start.folder / ".lock") if ranks.is_main else nullcontext():
        if ranks.is_main:
            begin_scores(start.folder, parts)
        left = [shard for shard in plan_shards(parts) if ranks.is_main and not is_finished(start.folder, shard)]
        left = ranks.gather(left)[0]
        if left:
            was_training = model.training
            model.eval()
            _read_shards(start.folder, left, splits, model, collate=collate, run=run)
            model.train(was_training)
    for shard in plan_shards(parts):  # one at a time: all of them may be larger than the memory
        [read, *_] = ranks.gather(shard.path(start.folder).read_bytes() if ranks.is_main else None)
        _write_copy(shard.path(start.folder), read)
    run.train_pairs, run.held_out_pairs = (split.with_columns(start.read(name)) for name, split in splits.items())


@dataclass(frozen=True)
class _Rows:
    """Rows of aligned pairs, the longest first.

    Attributes:
        pairs: The pairs.
        rows: Which of them.
    """

    pairs: Dataset
    rows: list[int]

    def content(self) -> Dataset:
        """What the model's log-probs of them depend on."""
        return self.pairs.select_columns(["file", "row", *own_columns(self.pairs)]).select(self.rows)

    def with_columns(self, read: Dataset | None) -> Dataset:
        """All pairs, these rows with what was read of them."""
        others = self.pairs.remove_columns(COLUMNS if "reference" in Contents.of(self.pairs).scores else [])
        features = Features({name: List(Value("float32")) for name in COLUMNS})
        empty = Dataset.from_dict({name: [[]] for name in COLUMNS}, features=features)
        stored = empty if read is None else concatenate_datasets([read.select_columns(COLUMNS), empty])
        places = np.full(len(self.pairs), len(stored) - 1)
        places[self.rows] = np.arange(len(self.rows))
        return concatenate_datasets([others, stored.select(places)], axis=1)


def _write_copy(path: Path, content: bytes) -> None:
    """A shard for a node that does not share the main rank's cache."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # several ranks of a node come here together
            if not path.is_file():
                with whole(path) as unfinished:
                    unfinished.write_bytes(content)


def _read_shards(
    folder: Path,
    shards: Sequence[Shard],
    splits: Mapping[str, _Rows],
    model: LogprobModel,
    *,
    collate: Collate,
    run: TrainingRun,
) -> None:
    """Read the pairs of shards, each written as soon as it is complete."""
    ranks, began, done = run.ranks, time.perf_counter(), 0
    with run.display.progress(sum(len(shard.rows) for shard in shards)) as bar:
        for shard in shards:
            split, found = splits[shard.split], {}
            rows = [split.rows[index] for index in shard.rows]
            microbatches = run.portions.split(shard.split, rows, ranks)
            batches = ahead(partial(collate, split.pairs), microbatches, ranks.device)
            for microbatch, batch in zip(microbatches, batches, strict=True):
                logprobs = _own_logprobs(model, batch)
                counted = len(microbatch.rows) - microbatch.fillers
                found |= zip(microbatch.rows[:counted], logprobs[:counted], strict=True)
                done += counted * ranks.world_size
                speed = done / (time.perf_counter() - began)
                bar.advance(f"reading the reference, {speed:.1f} pairs/s", steps=counted * ranks.world_size)
            found = {row: columns for part in ranks.gather(found) for row, columns in part.items()}
            if ranks.is_main:
                numbered = {index: found[row] for index, row in zip(shard.rows, rows, strict=True)}
                write_shard(folder, shard, split.content(), numbered)


def _own_logprobs(model: LogprobModel, batch: PairBatch | TokenPairBatch) -> list[dict[str, Any]]:
    """The columns of `COLUMNS` for each pair of a microbatch."""
    if isinstance(batch, TokenPairBatch):
        return score_columns({"reference": batch.padded(model(batch.tokens))}, batch.mask)
    return ParentScores(batch.parent_sums(model(batch.student), batch.student)).columns(batch.parent_mask)
