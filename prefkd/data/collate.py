"""Rows of a data set -> a batch: how pairs become token sequences that a model reads once.

The shape letters are those of `prefkd.data.batches`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from prefkd.data.arrow import list_lengths
from prefkd.data.batches import AnswerBatch, PairBatch, ParentScores, Segment, StepCounts, TokenBatch, TokenPairBatch
from prefkd.data.kept_rows import kept_rows, kept_states
from prefkd.data.packing import pack, pack_together
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
