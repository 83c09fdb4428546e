"""Batches: the pairs of a forward pass as tensors, as each model reads them.

Shape letters used here and in the recipes:
    B  pairs of a microbatch            A = 2B answers: the B chosen ones, then the B rejected ones
    R  rows of a model's input          S  padded length of a row
    N  target tokens (response tokens of all answers, EOS included)
    P  parents of the longest answer of the microbatch
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from torch import Tensor

from prefkd.data.kept_rows import KeptRows
from prefkd.data.packing import Movable, Packing
from prefkd.data.places import Places
from prefkd.data.rows import ANSWERS, score_column
from prefkd.method.logprobs import parent_logprobs


class Segment(IntEnum):
    """The part of a pair that a position belongs to. A position sees its own segment and the prompt."""

    PROMPT = 0
    CHOSEN = 1
    REJECTED = 2
    PADDING = 3


@dataclass(frozen=True)
class TokenBatch(Movable):
    """One model's view of a microbatch.

    Attributes:
        input_ids: (R, S) token ids, right-padded. With a shared prompt R = B and a row is [prompt, chosen, rejected];
            otherwise R = 2B and a row is [prompt, answer].
        position_ids: (R, S) positions; those of the rejected answer continue from the prompt, as if it stood alone.
        segments: (R, S) a `Segment` for each position.
        shares_prompt: Whether the rows hold both answers, so that the model needs the mask of `shared_prompt_mask`.
        predictors: (N,) index into the R*S positions: the position whose hidden state predicts the target.
        targets: (N,) token ids to be predicted.
        parents: (N,) index into the A*P parents: the parent token that the target belongs to. Where one model reads
            alone, each target is its own.
        lengths: A numbers of targets, those of each answer, in whose order the targets stand.
        packing: Where the tokens lie in one row without padding.
        largest_target: The largest of `targets`, known without asking the device.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: Tensor
    shares_prompt: bool
    predictors: Tensor
    targets: Tensor
    parents: Tensor
    lengths: tuple[int, ...]
    packing: Packing
    largest_target: int


@dataclass(frozen=True)
class ParentScores(Movable):
    """What models say of the parents of a microbatch: log-probs, summed over the tokens of each parent. Constants.

    Attributes:
        reference: (2, B, P) under the model that the student is compared with.
        positive, negative: (2, B, P) under pi+ and pi-, from which importance weights come, or None.
    """

    reference: Tensor
    positive: Tensor | None = None
    negative: Tensor | None = None

    def columns(self, parent_mask: Tensor) -> list[dict[str, np.ndarray]]:
        """The scores of each pair without padding: `chosen_reference` and so on -> float32 (P of that answer,)."""
        return score_columns({name: values for name, values in vars(self).items() if values is not None}, parent_mask)


@dataclass(frozen=True)
class StepCounts:
    """How much there is in all microbatches and ranks of an optimizer step, or of an evaluation.

    Attributes:
        pairs: Pairs.
        tokens: The student's target tokens of all chosen and of all rejected answers, EOS included.
        parents: Parents of all chosen and of all rejected answers.
    """

    pairs: int
    tokens: tuple[int, int]
    parents: tuple[int, int]


@dataclass(frozen=True)
class NumberedPairs(Movable):
    """The B pairs of a microbatch, whoever reads them.

    Attributes:
        counted: (B,) 1.0 for a pair, 0.0 for a filler that keeps ranks in step and must not count.
        names: B texts "file:row" that name the pairs in messages.
        data: Names the data set.
        rows: B row indices of the pairs in their data set.
        rows_of_step: Row indices of all pairs of the step, on all ranks.
        weight: (B,) weight of each pair in the loss, over the mean weight of the step.
        margin: (B,) by how much, in units of the reward, the chosen answer must win.
        sources: Name of each source, where there are several -> (B,) 1 over its share of the step for its pairs, 0 for
            others.
    """

    counted: Tensor
    names: list[str]
    data: str
    rows: Sequence[int]
    rows_of_step: Sequence[int]
    weight: Tensor
    margin: Tensor
    sources: dict[str, Tensor]


@dataclass(frozen=True)
class PairBatch(NumberedPairs):
    """A microbatch of preference pairs, tokenized for the student and the teacher.

    Attributes:
        student, teacher: The pairs as each model reads them.
        positive, negative: The pairs under the positive and the negative instruction (teacher's tokens), or None.
        together: Several of the last three in one packed row, for a model that attends without a mask, or None. Its
            targets are those of each reading in turn.
        scores: Log-probs that the teacher gave them earlier, or None.
        kept: Next-token distributions that were kept then, by the names of `prefkd.data.rows.KEPT`.
        states: (n, H) the teacher's hidden states at the targets of chosen answers, if they were kept then.
        parent_mask: (2, B, P) True for the parents that exist; index 0 is the chosen answer, 1 the rejected one.
        eos_mask: (2, B, P) True for the parent that is the end of the answer.
        text_parents: 2 x B numbers of parents without the end of the answer, known without asking the device.
        step: How much there is in the whole step, if the data set has the columns of `count_targets`.
        places: Where both models predict what follows the same text, if that is asked for.
    """

    student: TokenBatch
    teacher: TokenBatch
    positive: TokenBatch | None
    negative: TokenBatch | None
    scores: ParentScores | None
    parent_mask: Tensor
    eos_mask: Tensor
    text_parents: tuple[list[int], list[int]]
    step: StepCounts | None = None
    together: TokenBatch | None = None
    places: Places | None = None
    kept: dict[str, KeptRows] = field(default_factory=dict)
    states: Tensor | None = None

    @property
    def has_rivals(self) -> bool:
        """Whether the chosen answers have rejected ones next to them; else `TokenBatch` holds B answers."""
        return len(self.student.lengths) > self.parent_mask.shape[1]

    def parent_sums(self, token_values: Tensor, tokens: TokenBatch) -> Tensor:
        """Sum values of target tokens (N,) inside each parent, -> (2, B, P); spec: l(P) = sum of l_t for t in P."""
        sums = parent_logprobs(token_values[None], tokens.parents[None], self.parent_mask.numel())
        return sums.view(self.parent_mask.shape)

    def answer_sums(self, token_values: Tensor) -> Tensor:
        """Sum values of the student's target tokens (N,) inside each answer, -> (2, B)."""
        return self.parent_sums(token_values, self.student).sum(-1)


@dataclass(frozen=True)
class TokenPairBatch(NumberedPairs):
    """A microbatch of preference pairs, tokenized for one model. T: target tokens of the longest answer.

    Attributes:
        tokens: The pairs as the model reads them.
        mask: (2, B, T) True for the tokens that exist; index 0 is the chosen answer, 1 the rejected one.
        reference: (2, B, T) log-prob of each token under the model's own start, or None.
    """

    tokens: TokenBatch
    mask: Tensor
    reference: Tensor | None

    def padded(self, token_values: Tensor) -> Tensor:
        """Values of target tokens (N,), answer by answer: (2, B, T), 0 where there is no token."""
        values = token_values.new_zeros(self.mask.numel())
        return values.index_add(0, self.tokens.parents, token_values).view(self.mask.shape)

    def answer_sums(self, token_values: Tensor) -> Tensor:
        """Sum values of target tokens (N,) inside each answer, -> (2, B)."""
        return self.padded(token_values).sum(-1)


@dataclass(frozen=True)
class AnswerBatch(Movable):
    """A microbatch of single answers, one a row.

    Attributes:
        tokens: The answers as the model reads them.
        counted: (B,) 1.0 for an answer, 0.0 for a filler that keeps ranks in step and must not count.
        weight: (B,) weight of each answer in the loss, over the mean weight of the step.
        names: B texts "file:row" that name the rows in messages.
    """

    tokens: TokenBatch
    counted: Tensor
    weight: Tensor
    names: list[str]

    def sums(self, token_values: Tensor) -> Tensor:
        """Sum values of target tokens (N,) inside each answer, -> (B,)."""
        answers = self.tokens.predictors // self.tokens.input_ids.shape[1]
        return token_values.new_zeros(len(self.counted)).index_add(0, answers, token_values)


def score_columns(scores: Mapping[str, Tensor], mask: Tensor) -> list[dict[str, np.ndarray]]:
    """Scores of each pair without padding.

    Args:
        scores: NAME -> (2, B, P).
        mask: (2, B, P) True for what exists.

    Returns:
        For each pair `chosen_NAME` and `rejected_NAME` -> float32 (P of that answer,).
    """
    values = {name: score.float().cpu().numpy() for name, score in scores.items()}
    exists = mask.cpu().numpy()
    return [
        {
            score_column(answer, name): score[side, pair][exists[side, pair]]
            for side, answer in enumerate(ANSWERS)
            for name, score in values.items()
        }
        for pair in range(exists.shape[1])
    ]
