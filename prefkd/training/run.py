"""What every training recipe has in its hands: pairs, which of them make each optimizer step, and what trains."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import torch
from datasets import Dataset
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from prefkd.config import save_config
from prefkd.data.packing import Movable
from prefkd.data.rows import Contents
from prefkd.data.sides import ModelSide
from prefkd.data.steps import Microbatch, learner_tokens, pair_lengths, plan_epochs, split_step
from prefkd.errors import PrefkdError
from prefkd.files import write_json
from prefkd.models.compiled import Recompilations
from prefkd.models.logprob_model import LogprobModel
from prefkd.models.shard import after_microbatches, before_microbatch
from prefkd.ranks import Ranks, worker
from prefkd.training.aligned import AlignedPairs
from prefkd.training.checkpoint import Checkpoints
from prefkd.training.display import Display
from prefkd.training.following import Compared, FollowingReference
from prefkd.training.settings import TrainingConfig
from prefkd.training.watch import Watch

Split = Literal["train", "held_out"]
Batch = TypeVar("Batch", bound=Movable)


@dataclass(frozen=True)
class Portions:
    """How the rows of a step, or of an evaluation, are shared out among forward passes.

    Attributes:
        size: Rows of a forward pass at most, or tokens.
        tokens: Split -> tokens of each of its rows; None where rows are counted.
    """

    size: int
    tokens: Mapping[str, Sequence[int]] | None = None

    @classmethod
    def of(
        cls, config: Any, count: Callable[[Dataset], Sequence[int]], *, name: str = "training.", **splits: Dataset
    ) -> Self:
        """What a config asks for.

        Args:
            config: A section with `microbatch_size` and `microbatch_tokens`.
            count: Tokens of each row.
            name: Where the section stands in the config.
            splits: The rows, by split.

        Raises:
            PrefkdError: The longest row is longer than `microbatch_tokens`.
        """
        budget = config.microbatch_tokens
        if budget is None:
            return cls(config.microbatch_size)
        tokens = {split: count(rows) for split, rows in splits.items()}
        longest = max(map(max, filter(len, tokens.values())))
        if longest > budget:
            raise PrefkdError(
                f"{name}microbatch_tokens: the longest row has {longest} tokens, more than {budget}; raise it, or "
                "lower max_length"
            )
        return cls(budget, tokens)

    def split(self, split: str, rows: Sequence[int], ranks: Ranks) -> list[Microbatch]:
        """The microbatches of this rank."""
        tokens = self.tokens[split] if self.tokens is not None else None
        return split_step(rows, self.size, ranks.rank, ranks.world_size, tokens=tokens)


@dataclass
class TrainingData:
    """The data of a run.

    Attributes:
        side: How the model that learns reads.
        train_pairs, held_out_pairs: Tokenised pairs.
        steps: The rows of `train_pairs` that make each optimizer step.
        held_out_rows: All rows of `held_out_pairs`, the longest first.
        portions: How rows are shared out among forward passes.
        report: Counts of what became of the pairs, and how they align where two models read them.
        description: Lines for the terminal.
    """

    side: ModelSide
    train_pairs: Dataset
    held_out_pairs: Dataset
    steps: list[list[int]]
    held_out_rows: list[int]
    portions: Portions
    report: dict[str, Any]
    description: dict[str, str]

    @property
    def report_name(self) -> str:
        """What the report is called: only what two models read is aligned."""
        return "alignment" if len(Contents.of(self.train_pairs).sides) > 1 else "data"

    def report_file(self, folder: Path) -> Path:
        """Where the report is, in an output folder."""
        return folder / f"{self.report_name}_report.json"


@dataclass
class TrainingRun(TrainingData):
    """What `setup` prepares and `train` uses, apart from the recipe's models."""

    ranks: Ranks
    display: Display
    optimizer: Optimizer
    lr_schedule: LRScheduler
    checkpoints: Checkpoints
    watch: Watch
    recompilations: Recompilations = field(default_factory=Recompilations, init=False)
    following: FollowingReference | None = field(default=None, init=False)

    def with_reference(self, batch: Compared) -> Compared:
        """A microbatch with the log-probs of a reference that follows the model; any other is in it already.

        All ranks call it together.
        """
        return batch if self.following is None else self.following.read(batch)

    def batches(
        self, collate: Callable[[Dataset, Microbatch], Batch], split: Split, rows: Sequence[int]
    ) -> Iterator[Batch]:
        """The microbatches of this rank, on its device; each is made while the one before is worked on.

        Those of held-out pairs, which are one step, show how far they are.
        """
        pairs = {"train": self.train_pairs, "held_out": self.held_out_pairs}[split]
        portions = self.portions.split(split, rows, self.ranks)
        if split == "held_out":
            with self.display.passing(sum(len(portion.rows) - portion.fillers for portion in portions)) as bar:
                for portion, batch in zip(
                    portions, ahead(partial(collate, pairs), portions, self.ranks.device), strict=True
                ):
                    yield batch
                    bar.advance("held-out pairs", steps=len(portion.rows) - portion.fillers)
            return
        self.recompilations.before_step()
        made = ahead(partial(collate, pairs), portions, self.ranks.device)
        for number, batch in enumerate(made, start=1):
            if split == "train" and torch.is_grad_enabled():
                before_microbatch(learner_of(self), is_last=number == len(portions))
            yield batch
        if split == "train" and torch.is_grad_enabled():
            after_microbatches(learner_of(self))
        if new := self.recompilations.after_step():
            self.display.say(f"torch has compiled {new} more graph(s) for this step, which is slow while it lasts")


def learner_of(run: TrainingRun) -> LogprobModel:
    """The model that learns, whatever its recipe calls it."""
    return next(part for part in vars(run).values() if isinstance(part, LogprobModel))


def ahead(
    make: Callable[[Microbatch], Batch], microbatches: Iterable[Microbatch], device: torch.device
) -> Iterator[Batch]:
    """Batches on a device. A thread makes the next while the last is worked on, and a GPU copies without blocking."""

    def prepare(microbatch: Microbatch) -> Batch:
        batch = make(microbatch)
        return batch.pin_memory() if device.type == "cuda" else batch

    with worker(device) as thread:
        prepared = (thread.submit(prepare, microbatch) for microbatch in microbatches)
        upcoming = next(prepared, None)
        while upcoming is not None:
            batch = upcoming.result()
            upcoming = next(prepared, None)
            yield batch.to(device, non_blocking=True)


def share_out(pairs: AlignedPairs, side: ModelSide, training: TrainingConfig, *, shares_prompt: bool) -> TrainingData:
    """Share aligned pairs out among the steps of a run.

    Args:
        side: How the model that learns reads.
        shares_prompt: Whether it reads the prompt once for both answers.

    Raises:
        PrefkdError: A pair has more tokens than a microbatch may have.
    """
    count = partial(learner_tokens, shares_prompt=shares_prompt)
    return TrainingData(
        side=side,
        train_pairs=pairs.train,
        held_out_pairs=pairs.held_out,
        steps=epochs_of_steps(pair_lengths(pairs.train), training),
        held_out_rows=longest_first(pair_lengths(pairs.held_out)),
        portions=Portions.of(training, count, train=pairs.train, held_out=pairs.held_out),
        report=pairs.report,
        description=pairs.description,
    )


def epochs_of_steps(lengths: Sequence[int], training: TrainingConfig) -> list[list[int]]:
    """The rows of each optimizer step of a run, epoch by epoch.

    Args:
        lengths: Tokens of each row; rows of like length make a step.
    """
    epochs, max_steps = training.epochs, training.max_steps
    return plan_epochs(lengths, training.batch_size, seed=training.seed, epochs=epochs, max_steps=max_steps)


def longest_first(lengths: Sequence[int]) -> list[int]:
    """All rows, so ordered that what does not fit into memory is found at once."""
    return sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)


def begin_output(config: Any, data: TrainingData, ranks: Ranks) -> None:
    """Write the resolved config of a run, and the report of its data into its output folder."""
    if ranks.is_main:
        config.output_dir.mkdir(parents=True, exist_ok=True)
        save_config(config, config.output_dir / "config.yaml")
        write_json(data.report_file(config.output_dir), data.report)
