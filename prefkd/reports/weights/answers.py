"""The parents of many answers end to end, with their scores and with the weights that training would give them."""

from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset

from prefkd.data.collate import collate_pairs
from prefkd.data.rows import ANSWERS
from prefkd.data.steps import Microbatch
from prefkd.errors import PrefkdError
from prefkd.weighting import WeightConfig, parent_log_ratio, parent_weights

PAIRS_PER_BATCH = 64


@dataclass(frozen=True)
class WeightedAnswers:
    """All chosen or all rejected answers of a data set.

    N answers have n parents together, in the order of the data set, EOS parents included.

    Attributes:
        counts: (N,) parents of each answer.
        is_end: (n,) whether a parent is the EOS.
        reference: (n,) log-prob of a parent under the reference, in nats.
        sequence_ratio: (n,) log pi+ - log pi- of a parent, summed over its tokens.
        log_ratio: (n,) the same as the weights see it: summed, or averaged over the teacher's tokens.
        weights: (n,) what a parent counts in the loss.
    """

    counts: np.ndarray
    is_end: np.ndarray
    reference: np.ndarray
    sequence_ratio: np.ndarray
    log_ratio: np.ndarray
    weights: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        """(N,) the first parent of each answer."""
        return self.counts.cumsum() - self.counts

    @property
    def is_text(self) -> np.ndarray:
        """(n,) whether a parent is text."""
        return ~self.is_end

    def sums(self, values: np.ndarray) -> np.ndarray:
        """(N,) sums of values of parents, (n,), over each answer."""
        return np.add.reduceat(values, self.starts)

    def text_means(self, values: np.ndarray) -> np.ndarray:
        """(N,) means of values of parents, (n,), over the text of each answer."""
        return self.sums(values * self.is_text) / self.sums(self.is_text.astype(float))


def weigh_answers(scored: Dataset, config: WeightConfig) -> dict[str, WeightedAnswers]:
    """The chosen and the rejected answers of an aligned data set with scores, weighted by the code that trains on it.

    Args:
        scored: Columns of `prefkd.data.tokenizing` and, of `prefkd.data.scores`, those of all three models. At least
            one row.
        config: How weights come from scores.

    Raises:
        PrefkdError: A score is not finite.
    """
    parts: list[list[tuple[np.ndarray, ...]]] = [[], []]
    for first in range(0, len(scored), PAIRS_PER_BATCH):
        rows = list(range(first, min(first + PAIRS_PER_BATCH, len(scored))))
        batch = collate_pairs(scored, Microbatch(rows), share_prompt=(True, True))
        scores, mask = batch.scores, batch.parent_mask
        assert scores is not None and scores.positive is not None and scores.negative is not None, "scores are missing"
        finite = torch.stack([scores.reference, scores.positive, scores.negative]).isfinite().all(0).all(-1).all(0)
        if not finite.all():
            name = batch.names[int(finite.float().argmin())]
            raise PrefkdError(f"{name}: a score of this pair is not a finite number; score with dtype: float32")
        log_ratio = parent_log_ratio(scores, batch, config.reduce)
        weights = parent_weights(config, scores, batch)
        columns = (batch.eos_mask, scores.reference, scores.positive - scores.negative, log_ratio, weights)
        for side, collected in enumerate(parts):
            # Float64, because sums over millions of parents follow.
            values = [column[side][mask[side]].numpy() for column in columns]
            values[1:] = [column.astype(np.float64) for column in values[1:]]
            collected.append((mask[side].sum(-1).numpy(), *values))
    return {
        answer: WeightedAnswers(*(np.concatenate(column) for column in zip(*collected, strict=True)))
        for answer, collected in zip(ANSWERS, parts, strict=True)
    }
