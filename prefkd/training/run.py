"""What every training recipe has in its hands: pairs, which of them make each optimizer step, and what trains."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from prefkd.config import save_config
from prefkd.data.aligned import AlignedPairs
from prefkd.data.steps import pair_lengths, plan_epochs
from prefkd.data.templates import ModelSide
from prefkd.ranks import Ranks
from prefkd.training.checkpoint import Checkpoints
from prefkd.training.display import Display
from prefkd.training.settings import TrainingConfig
from prefkd.training.watch import Watch


@dataclass
class TrainingData:
    """The data of a run.

    Attributes:
        side: How the model that learns reads.
        train_pairs, held_out_pairs: Tokenised pairs.
        steps: The rows of `train_pairs` that make each optimizer step.
        held_out_rows: All rows of `held_out_pairs`, the longest first.
        report: The alignment report, None where one model reads them.
        description: Lines for the terminal.
    """

    side: ModelSide
    train_pairs: Dataset
    held_out_pairs: Dataset
    steps: list[list[int]]
    held_out_rows: list[int]
    report: dict[str, Any] | None
    description: dict[str, str]


@dataclass
class TrainingRun(TrainingData):
    """What `setup` prepares and `train` uses, apart from the recipe's models."""

    ranks: Ranks
    display: Display
    optimizer: Optimizer
    lr_schedule: LRScheduler
    checkpoints: Checkpoints
    watch: Watch


def share_out(pairs: AlignedPairs, side: ModelSide, training: TrainingConfig) -> TrainingData:
    """Share aligned pairs out among the steps of a run.

    Args:
        side: How the model that learns reads.
    """
    return TrainingData(
        side=side,
        train_pairs=pairs.train,
        held_out_pairs=pairs.held_out,
        steps=epochs_of_steps(pair_lengths(pairs.train), training),
        held_out_rows=longest_first(pair_lengths(pairs.held_out)),
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
    """Write the resolved config of a run, and the alignment report if there is one, into its output folder."""
    if ranks.is_main:
        config.output_dir.mkdir(parents=True, exist_ok=True)
        save_config(config, config.output_dir / "config.yaml")
        if data.report is not None:
            report = json.dumps(data.report, indent=2) + "\n"
            (config.output_dir / "alignment_report.json").write_text(report)
