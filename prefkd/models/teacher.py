"""What a teacher says about a batch: log-probs of parent tokens as reference, and how it tells good text from bad."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from prefkd.data.batches import PairBatch
from prefkd.models.logprob_model import LogprobModel


@dataclass(frozen=True)
class TeacherScores:
    """Scores of the parents of a batch; constants, no gradient.

    Attributes:
        reference: (2, B, P) log-prob of each parent under the reference.
        log_ratio: (2, B, P) log pi+ - log pi- of each parent, summed or averaged over its tokens, or None.
    """

    reference: Tensor
    log_ratio: Tensor | None


class LiveTeacher:
    """Scores a batch with models in memory.

    Args:
        teacher: The teacher, or None where nothing is asked of it.
        reference: The frozen start of the student, if that is the reference; None = the teacher is.
        reduce: How a parent's log-ratio comes from its tokens.
    """

    def __init__(
        self, teacher: LogprobModel | None, *, reference: LogprobModel | None, reduce: Literal["sum", "mean"] = "sum"
    ):
        self.teacher = teacher
        self.reference = reference
        self.reduce = reduce

    @torch.no_grad()
    def __call__(self, batch: PairBatch) -> TeacherScores:
        log_ratio = None
        if self.teacher is not None and batch.positive is not None and batch.negative is not None:
            # Both instructions are followed by the same response tokens, so the difference is one of the prompts alone.
            token_ratio = self.teacher(batch.positive) - self.teacher(batch.negative)
            log_ratio = batch.parent_sums(token_ratio, batch.positive)
            if self.reduce == "mean":
                log_ratio /= batch.parent_sums(torch.ones_like(token_ratio), batch.positive).clamp(min=1)
        if self.reference is not None:
            reference = batch.parent_sums(self.reference(batch.student), batch.student)
        else:
            assert self.teacher is not None, "either the teacher or the student's start is the reference"
            reference = batch.parent_sums(self.teacher(batch.teacher), batch.teacher)
        return TeacherScores(reference=reference, log_ratio=log_ratio)
