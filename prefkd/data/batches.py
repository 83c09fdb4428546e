"""Batches: which rows make a step, and how one pair becomes token sequences that a model reads once.

Shape letters used here and in the recipes:
    B  pairs of a microbatch            A = 2B answers: the B chosen ones, then the B rejected ones
    R  rows of a model's input          S  padded length of a row
    N  target tokens (response tokens of all answers, EOS included)
    P  parents of the longest answer of the microbatch
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from prefkd.data.arrow import list_lengths
from prefkd.data.kept_rows import KeptRows, kept_rows, kept_states
from prefkd.data.packing import Movable, Packing, pack, pack_together
from prefkd.data.pair_worth import pair_worth
from prefkd.data.places import Places
from prefkd.data.rows import (
    ANSWERS,
    INSTRUCTIONS,
    AlignedRow,
    Contents,
    Reading,
    answer_column,
    row_name,
    score_column,
    target_column,
    token_column,
)
from prefkd.data.steps import Microbatch
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
    """A microbatch of preference pairs, tokenised for the student and the teacher.

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
    """A microbatch of preference pairs, tokenised for one model. T: target tokens of the longest answer.

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


def collate_pairs(
    aligned: Dataset,
    microbatch: Microbatch,
    *,
    share_prompt: tuple[bool, bool],
    instructed: bool = True,
    together: Sequence[str] = (),
    pair_up: Callable[[TokenBatch, TokenBatch], Places] | None = None,
) -> PairBatch:
    """Make a microbatch of rows of an aligned data set (`prefkd.data.tokenizing.align_pairs`).

    Args:
        aligned: The data set, with or without a teacher's scores (`prefkd.data.scores`).
        microbatch: Which of its rows.
        share_prompt: Whether the student and the teacher read a pair as one row.
        instructed: Whether a model reads the pairs under the two instructions, if they have any.
        together: Names of the views, among teacher, positive and negative, that a model may read in one pass.
        pair_up: Finds the places where student and teacher predict what follows the same text, if anybody asks.
    """
    rows: list[dict[str, Any]] = [aligned[index] for index in microbatch.rows]
    contents, pairs = Contents.of(aligned), [AlignedRow.of(row) for row in rows]
    counts = torch.tensor([[pair.answers[i].parents for pair in pairs] for i in range(2)])
    ends = torch.tensor([[pair.answers[i].ends for pair in pairs] for i in range(2)])
    chosen_text, rejected_text = (counts - ends.long()).tolist()
    num_parents = int(counts.max())
    index = torch.arange(num_parents)
    student_shares, teacher_shares = share_prompt
    has_rivals = bool(counts[1].any())

    def tokens(readings: Iterable[Reading], shared: bool) -> TokenBatch:
        asked = (Segment.CHOSEN, Segment.REJECTED) if has_rivals else (Segment.CHOSEN,)
        return _token_batch([*readings], asked, shares_prompt=shared and has_rivals, num_parents=num_parents)

    scores = {name: _padded_scores(rows, name, num_parents) for name in contents.scores}
    readings = {"teacher": [pair.teacher for pair in pairs]}
    if contents.instructed and instructed:
        readings |= {name: [pair.under(name) for pair in pairs] for name in INSTRUCTIONS}
    views = {name: tokens(own, teacher_shares) for name, own in readings.items()}
    joined = {name: readings[name] for name in together} if teacher_shares else {}
    student = tokens((pair.student for pair in pairs), student_shares)
    return PairBatch(
        student=student,
        teacher=views["teacher"],
        positive=views.get("positive"),
        negative=views.get("negative"),
        together=_together(joined, [views[name] for name in joined]) if joined else None,
        places=pair_up(student, views["teacher"]) if pair_up else None,
        scores=ParentScores(**scores) if scores else None,
        parent_mask=index < counts[:, :, None],
        eos_mask=(index == counts[:, :, None] - 1) & ends[:, :, None],
        text_parents=(chosen_text, rejected_text),
        step=_step_counts(aligned, microbatch),
        kept={name: kept_rows(rows, name) for name in contents.kept},
        states=kept_states(rows) if contents.states else None,
        **_numbered(aligned, microbatch, rows),
    )


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


def count_targets(aligned: Dataset) -> Dataset:
    """Add the number of the student's target tokens to each row, from which `collate_pairs` counts those of a step."""
    lengths = list_lengths(aligned, [token_column("student", answer) for answer in ANSWERS])
    for answer, values in zip(ANSWERS, lengths.values(), strict=True):
        aligned = aligned.add_column(target_column(answer), values.astype(np.int32))  # pyright: ignore[reportArgumentType]
    return aligned


def _step_counts(aligned: Dataset, microbatch: Microbatch) -> StepCounts | None:
    if not Contents.of(aligned).targets:
        return None
    rows = microbatch.step or microbatch.rows
    columns = [*map(target_column, ANSWERS), *(answer_column(answer, "parents") for answer in ANSWERS)]
    sums = {name: int(np.sum(values)) for name, values in aligned.select_columns(columns)[list(rows)].items()}
    chosen_tokens, rejected_tokens, chosen_parents, rejected_parents = (sums[name] for name in columns)
    return StepCounts(len(rows), (chosen_tokens, rejected_tokens), (chosen_parents, rejected_parents))


def collate_tokens(tokenized: Dataset, microbatch: Microbatch, *, share_prompt: bool) -> TokenPairBatch:
    """Make a microbatch of rows of a tokenized data set (`prefkd.data.tokens.tokenize_pairs`).

    Args:
        tokenized: The data set, with or without a reference's log-probs (`prefkd.training.references`).
        microbatch: Which of its rows.
        share_prompt: Whether the model reads a pair as one row.
    """
    rows: list[dict[str, Any]] = [tokenized[index] for index in microbatch.rows]
    readings = [Reading.of(row) for row in rows]
    lengths = torch.tensor([[len(reading.answers[i]) for reading in readings] for i in range(2)])
    longest = int(lengths.max())
    has_reference = "reference" in Contents.of(tokenized).scores
    return TokenPairBatch(
        tokens=_token_batch(readings, shares_prompt=share_prompt, num_parents=longest),
        mask=torch.arange(longest) < lengths[:, :, None],
        reference=_padded_scores(rows, "reference", longest) if has_reference else None,
        **_numbered(tokenized, microbatch, rows),
    )


def collate_answers(
    tokenized: Dataset, microbatch: Microbatch, *, answer: Literal["chosen", "rejected"]
) -> AnswerBatch:
    """One of the two answers of each row, a row each; for supervised fine-tuning."""
    rows: list[dict[str, Any]] = [tokenized[index] for index in microbatch.rows]
    readings, asked = [Reading.of(row) for row in rows], Segment[answer.upper()]
    longest = max(len(reading.answers[asked - 1]) for reading in readings)
    return AnswerBatch(
        tokens=_token_batch(readings, (asked,), shares_prompt=False, num_parents=longest),
        counted=_counted(microbatch),
        weight=pair_worth(tokenized, microbatch)["weight"],
        names=[row_name(row) for row in rows],
    )


def _numbered(pairs: Dataset, microbatch: Microbatch, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fields of `NumberedPairs`."""
    return {
        "counted": _counted(microbatch),
        "names": [row_name(row) for row in rows],
        "data": pairs._fingerprint,
        "rows": microbatch.rows,
        "rows_of_step": microbatch.step or microbatch.rows,
        **pair_worth(pairs, microbatch),
    }


def _counted(microbatch: Microbatch) -> Tensor:
    counted = torch.ones(len(microbatch.rows))
    counted[len(microbatch.rows) - microbatch.fillers :] = 0.0
    return counted


def _padded_scores(rows: Sequence[Mapping[str, Any]], name: str, length: int) -> Tensor:
    """What a model of `prefkd.data.rows.SCORED` says of each answer, (2, B, length)."""
    answers = [torch.tensor(row[score_column(answer, name)]) for answer in ANSWERS for row in rows]
    padded = [torch.nn.functional.pad(values, (0, length - len(values))) for values in answers]
    return torch.stack(padded).view(2, len(rows), length)


def _token_batch(
    readings: Sequence[Reading],
    answers: Sequence[Segment] = (Segment.CHOSEN, Segment.REJECTED),
    *,
    shares_prompt: bool,
    num_parents: int,
) -> TokenBatch:
    """The view of one model.

    Args:
        readings: The pairs as it reads them.
        answers: Both answers, or one of them.
    """
    order = [(segment, pair) for segment in answers for pair in range(len(readings))]
    sizes = [[len(readings[pair].prompt), len(readings[pair].answers[segment - 1])] for segment, pair in order]
    if shares_prompt:
        half = len(readings)
        sizes = [[*sizes[i], sizes[i + half][1]] for i in range(half)]
    input_ids = torch.zeros(len(sizes), max(map(sum, sizes)), dtype=torch.long)
    position_ids = torch.zeros_like(input_ids)
    segments = torch.full_like(input_ids, Segment.PADDING)
    predictors, targets, parents = [], [], []

    def write(row: int, first: int, ids: Sequence[int], position: int, segment: Segment) -> None:
        end = first + len(ids)
        input_ids[row, first:end] = torch.tensor(ids, dtype=torch.long)
        position_ids[row, first:end] = torch.arange(position, position + len(ids))
        segments[row, first:end] = segment

    for answer, (segment, pair) in enumerate(order):
        reading = readings[pair]
        prompt, response = reading.prompt, reading.answers[segment - 1]
        row = pair if shares_prompt else answer
        first = len(prompt)
        if shares_prompt and segment is Segment.REJECTED:
            first += len(reading.answers[0])
        else:
            write(row, 0, prompt, 0, Segment.PROMPT)
        write(row, first, response, len(prompt), segment)
        # The first token of an answer is predicted by the last token of the prompt, the others by their neighbour.
        start = row * input_ids.shape[1]
        positions = torch.arange(start + first - 1, start + first - 1 + len(response))
        positions[0] = start + len(prompt) - 1
        predictors.append(positions)
        targets.append(torch.tensor(response, dtype=torch.long))
        parents.append(torch.tensor(reading.parents[segment - 1], dtype=torch.long) + answer * num_parents)
    places, ids = torch.cat(predictors), torch.cat(targets)
    return TokenBatch(
        input_ids=input_ids,
        position_ids=position_ids,
        segments=segments,
        shares_prompt=shares_prompt,
        predictors=places,
        targets=ids,
        parents=torch.cat(parents),
        lengths=tuple(map(len, targets)),
        packing=pack(sizes, input_ids.shape[1], places),
        largest_target=int(ids.max()),
    )


def _together(readings: Mapping[str, Sequence[Reading]], views: Sequence[TokenBatch]) -> TokenBatch:
    """Views of the teacher in one packed row, which only a model without a mask can read."""
    packing = pack_together(
        [[[len(pair.prompt), *map(len, pair.answers)] for pair in pairs] for pairs in readings.values()],
        [[pair.prompt for pair in pairs] for pairs in readings.values()],
        [view.input_ids.shape[1] for view in views],
        [view.predictors for view in views],
    )

    def packed(name: str) -> Tensor:
        return torch.cat([getattr(view, name).flatten() for view in views])[packing.places][None]

    return TokenBatch(
        input_ids=packed("input_ids"),
        position_ids=packed("position_ids"),
        segments=packed("segments"),
        shares_prompt=True,
        predictors=packing.predictors,
        targets=torch.cat([view.targets for view in views]),
        parents=torch.cat([view.parents for view in views]),
        lengths=tuple(length for view in views for length in view.lengths),
        packing=replace(packing, places=torch.arange(len(packing.places))),
        largest_target=max(view.largest_target for view in views),
    )
