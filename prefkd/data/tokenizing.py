"""Pairs -> the same pairs as tokens of the student and of the teacher, aligned by parent tokens.

The columns of an aligned data set are those of `prefkd.data.rows`. A response is aligned whole and cut afterwards: two
truncated tokenizations would end at different characters.
"""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Features, Value

from prefkd.data.arrow import present
from prefkd.data.formats import check_answers
from prefkd.data.messages import Answer, Message, unpack_calls
from prefkd.data.pairs import BadRow, DataConfig, bad_rows_error
from prefkd.data.rows import (
    ANSWERS,
    INSTRUCTIONS,
    NO_ANSWER,
    SIDES,
    WORTH,
    AlignedAnswer,
    AlignedRow,
    Contents,
    Reading,
    aligned_features,
    read_columns,
)
from prefkd.data.shared_answers import write_answers
from prefkd.data.sides import Frame, ModelSide
from prefkd.data.truncation import Limits, cut_prompt, kept_lengths
from prefkd.data.workers import Shared, available_cores, one_thread_in_workers, same_environment
from prefkd.errors import DataError, PrefkdError
from prefkd.files import fingerprint
from prefkd.method.parent_tokens import find_parents_batch, keep_complete

logger = logging.getLogger(__name__)

# Part of every fingerprint: raise it when the same pairs come to give other tokens.
VERSION = 4

PAIRS_PER_BATCH = 256
# Below so many pairs for each, starting another process takes longer than it saves.
PAIRS_PER_WORKER = 2000

# Why a pair is always left out, whatever `on_bad_row` says: nothing is wrong with the data.
NO_PARENT = "no parent token of an answer is left after truncation"
NOTHING_LEFT = "no token of an answer is left after truncation"
NO_TOKEN = "a tokenizer has no token for an answer"
SAME_TOKENS = "both answers have the same tokens after truncation"


def align_pairs(
    pairs: Dataset,
    student: ModelSide,
    teacher: ModelSide,
    *,
    config: DataConfig,
    contrast: tuple[str, str] | None = None,
    description: str = "Aligning",
    left_out: Counter[str] | None = None,
) -> Dataset:
    """Tokenise and align pairs in worker processes. The result is cached under a fingerprint of all it depends on.

    Args:
        pairs: A data set of `prefkd.data.pairs`.
        student, teacher: How the two models read.
        config: Lengths, truncation, workers, and what a bad row does.
        contrast: A positive and a negative instruction with `{prompt}` for the user's last message.
        description: Title of the progress bar.
        left_out: Gets the number of pairs that are left out, by reason.

    Returns:
        The aligned data set. A pair is not in it if an answer has no parent left, or if the answers have the same
        tokens on a side: nothing of it can be preferred. How many there are is logged.

    Raises:
        DataError: A template refuses a pair, or a model has no embedding for one of its tokens, and `on_bad_row` is
            `error`.
        PrefkdError: A pair has more tokens than a model has positions.
    """
    for instruction in contrast or ():
        if "{prompt}" not in instruction:
            raise PrefkdError(f"the instruction {instruction!r} lacks {{prompt}}, the place of the user's message")
    return map_pairs(
        pairs,
        _align_batch,
        columns=aligned_features(with_contrast=contrast is not None),
        sides={"student": student, "teacher": teacher},
        config=config,
        arguments={"contrast": contrast},
        made_from=("aligned", VERSION, student.fingerprint, teacher.fingerprint, contrast),
        description=description,
        left_out=left_out,
    )


def map_pairs(
    pairs: Dataset,
    work: Callable[..., dict[str, list]],
    *,
    columns: Features,
    sides: Mapping[str, ModelSide],
    config: DataConfig,
    arguments: Mapping[str, Any],
    made_from: Sequence[Any],
    description: str,
    left_out: Counter[str] | None,
) -> Dataset:
    """Let worker processes make other columns of pairs, or find them in the cache.

    Args:
        work: Called with columns of some rows, `shared_sides`, `limits` and the arguments; returns the new columns and
            `problem`, the reason why a row cannot be used.
        columns: The new columns.
        sides: Who reads the pairs: the student and the teacher, or a model `ALONE`.
        made_from: Everything that the columns depend on, apart from pairs and limits.
    """
    columns = Features({name: hint for name, hint in WORTH.items() if name in pairs.column_names} | columns)
    if not len(pairs):
        return Dataset.from_dict({name: [] for name in columns}, features=columns)
    limits = Limits(config.max_length, config.max_prompt_length, config.truncation)
    workers = config.workers or min(available_cores(), len(pairs) // PAIRS_PER_WORKER)
    with same_environment():
        rows = pairs.map(
            work,
            batched=True,
            batch_size=PAIRS_PER_BATCH,
            remove_columns=[name for name in pairs.column_names if name not in WORTH],
            features=Features({**columns, "problem": Value("string")}),
            num_proc=workers if workers > 1 else None,
            fn_kwargs={"shared_sides": Shared(dict(sides)), "limits": limits, **arguments},
            new_fingerprint=fingerprint(*made_from, pairs._fingerprint, limits),
            desc=description,
        )
    kept = _without_problems(rows, config, _unreadable_rows(rows, sides), left_out)
    _require_positions(kept, sides, config.max_length)
    return kept


def with_instruction(messages: Sequence[Message], instruction: str) -> list[Message]:
    """The conversation with an instruction around the user's last message."""
    last = max(i for i, turn in enumerate(messages) if turn["role"] == "user")
    asked = Message(role="user", content=instruction.replace("{prompt}", messages[last]["content"]))
    return [*messages[:last], asked, *messages[last + 1 :]]


@dataclass(frozen=True)
class _WrittenPair:
    """A pair as text. `frames` has an entry for student and teacher, and for each instruction of a contrast."""

    frames: dict[str, Frame]
    answers: tuple[str, str]


def _align_batch(
    rows: Mapping[str, list],
    shared_sides: Shared,
    limits: Limits,
    contrast: tuple[str, str] | None,
) -> dict[str, list]:
    """The aligned columns of some rows, and `problem`: why a row cannot be used, or None."""
    one_thread_in_workers()
    sides = shared_sides.value
    read = read_pairs(rows, sides, contrast)
    (_, student), (_, teacher) = (read.responses[side] for side in SIDES)
    texts = [answer for pair in read.written.values() for answer in pair.answers]
    parents = find_parents_batch(student, teacher, texts)
    for n, i in enumerate(read.written):
        there = slice(2 * n, 2 * n + (2 if read.written[i].answers[1] else 1))  # there may be no rival
        prompts = {name: ids[n] for name, ids in read.prompts.items()}
        answers = {side: read.responses[side][0][there] for side in SIDES}
        is_cut = "cut" in rows and bool(rows["cut"][i])
        try:
            read.rows[i] |= cut_pair(prompts, answers, parents[there], sides, limits, is_cut).columns()
        except DataError as error:
            read.rows[i]["problem"] = str(error)
    names = [*aligned_features(with_contrast=contrast is not None), "problem"]
    return {name: [row.get(name) for row in read.rows] for name in names}


@dataclass(frozen=True)
class ReadPairs:
    """Pairs as text and as tokens, before anything is cut.

    Attributes:
        rows: For each pair, where it comes from, and `problem` if it cannot be read.
        written: The pairs that can be read, by their index in `rows`.
        prompts: Reading -> the token ids of each prompt.
        responses: Side -> token ids of the answers, two for each pair, and their offsets.
    """

    rows: list[dict[str, Any]]
    written: dict[int, _WrittenPair]
    prompts: dict[str, Any]
    responses: dict[str, Any]


def read_pairs(
    rows: Mapping[str, list], sides: Mapping[str, ModelSide], contrast: tuple[str, str] | None = None
) -> ReadPairs:
    """Write pairs as each side has them and tokenise them.

    Args:
        rows: Columns of `prefkd.data.pairs`.
        sides: Who reads them.
        contrast: A positive and a negative instruction, under which the teacher reads the prompts too.
    """
    places = zip(rows["file"], rows["row"], strict=True)
    found: list[dict[str, Any]] = [{"file": file, "row": row} for file, row in places]
    written: dict[int, _WrittenPair] = {}
    for i in range(len(found)):
        try:
            answers = {name: rows[name][i] for name in ANSWERS}
            packed = rows["calls"][i] if "calls" in rows else None
            written[i] = _write_pair(*unpack_calls(rows["prompt"][i], answers, packed), sides, contrast)
        except DataError as error:
            found[i]["problem"] = str(error)
    try:
        return ReadPairs(found, written, *_encode(written.values(), sides))
    except DataError:
        for i, pair in list(written.items()):
            try:
                _encode([pair], sides)
            except DataError as error:
                found[i]["problem"] = str(error)
                del written[i]
        return ReadPairs(found, written, *_encode(written.values(), sides))


def _write_pair(
    messages: list[Message],
    answers: Mapping[str, Answer],
    tools: list[dict[str, Any]] | None,
    sides: Mapping[str, ModelSide],
    contrast: tuple[str, str] | None,
) -> _WrittenPair:
    written = [answers[name] for name in ANSWERS if answers[name]]
    frames, (chosen, *rivals), thoughts = write_answers(messages, written, sides, tools)
    rejected = rivals[0] if rivals else ""
    if rivals:
        check_answers(chosen, rejected)
    for name, instruction in zip(INSTRUCTIONS, contrast, strict=True) if contrast else ():
        frames[name] = sides["teacher"].frame(with_instruction(messages, instruction), thoughts=thoughts, tools=tools)
    return _WrittenPair(frames, (chosen, rejected))


def _encode(pairs: Collection[_WrittenPair], sides: Mapping[str, ModelSide]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Token ids of the prompts of each reading; ids and offsets of the answers of each side, two for each pair."""
    answers = [pair.answers for pair in pairs]
    readings = {name for pair in pairs for name in pair.frames}
    prompts = {
        name: sides["teacher" if name in INSTRUCTIONS else name].encode_prompts(
            [pair.frames[name] for pair in pairs], answers
        )
        for name in readings
    }
    responses = {
        name: side.encode_responses([*chain(*answers)], [pair.frames[name] for pair in pairs for _ in pair.answers])
        for name, side in sides.items()
    }
    return prompts, responses


def cut_pair(
    prompts: Mapping[str, list[int]],
    answers: Mapping[str, Sequence[list[int]]],
    parents: Sequence[np.ndarray],
    sides: Mapping[str, ModelSide],
    limits: Limits,
    is_cut: bool = False,
) -> AlignedRow:
    """Cut an aligned pair to its limits and add the end where nothing of an answer is missing.

    Args:
        prompts: Token ids for student and teacher, and for positive and negative with a contrast.
        answers: Side -> token ids of the chosen answer, and of the rejected one if there is one, without their end.
        parents: (P, 6) of each of them, whole.
        sides: Student and teacher.
        limits: Most tokens of a prompt and an answer.
        is_cut: Whether the answers are not finished as they stand in the data.

    Raises:
        DataError: An answer has no parent, none is left, or both answers have the same tokens on a side.
    """
    kept_prompts, room = dict(prompts), {}
    for side in SIDES:
        # The teacher reads the answers behind up to three prompts; the longest decides, so that all of them fit.
        readings = ["student"] if side == "student" else [name for name in prompts if name != "student"]
        longest = max(len(prompts[name]) for name in readings)
        whole = [len(ids) + len(sides[side].end_ids) for ids in answers[side]]
        kept_prompt, room[side] = kept_lengths(longest, whole, limits)
        for name in readings:
            kept_prompts[name] = cut_prompt(prompts[name], kept_prompt, limits, sides[side].bos_id)

    found, tokens = [], {side: ([], []) for side in SIDES}
    for i in range(len(parents)):
        if not len(parents[i]):
            raise DataError(NO_TOKEN)
        kept = keep_complete(parents[i], *(min(len(answers[side][i]), room[side]) for side in SIDES))
        if not len(kept):
            raise DataError(NO_PARENT)
        ends = not is_cut and all(len(answers[side][i]) + len(sides[side].end_ids) <= room[side] for side in SIDES)
        # Parents lie end to end, so that the ends of the last are the lengths of all together.
        _, characters, _, students, _, teachers = kept[-1].tolist()
        widths = (kept[:, 1::2] - kept[:, ::2]).T
        single = (widths[1] == 1) & (widths[2] == 1)
        found.append(AlignedAnswer(len(kept) + ends, ends, characters, int(widths[0] @ single)))
        for side, lengths, count in zip(SIDES, widths[1:], (students, teachers), strict=True):
            end = sides[side].end_ids if ends else []
            ids, owners = tokens[side]
            ids.append([*answers[side][i][:count], *end])
            owners.append([*np.arange(len(kept)).repeat(lengths).tolist(), *([len(kept)] * len(end))])
    if len(parents) == 1:  # there is no rival
        found.append(NO_ANSWER)
        for ids, owners in tokens.values():
            ids.append([])
            owners.append([])
    if any(chosen == rejected for (chosen, rejected), _ in tokens.values()):
        raise DataError(SAME_TOKENS)

    def reading(side: str) -> Reading:
        (chosen, rejected), owners = tokens[side]
        first, second = [*(len(ids) + len(sides[side].end_ids) for ids in answers[side]), 0][:2]
        cut = len(prompts[side]) - len(kept_prompts[side]), first - len(chosen), second - len(rejected)
        return Reading(kept_prompts[side], (chosen, rejected), tuple(owners), cut)

    instructed = {name: kept_prompts[name] for name in INSTRUCTIONS if name in prompts}
    return AlignedRow(reading("student"), reading("teacher"), (found[0], found[1]), instructed)


def _unreadable_rows(rows: Dataset, sides: Mapping[str, ModelSide]) -> dict[int, str]:
    """The rows with a token that a model has no embedding for, and what it is; not cached, since models may change."""
    found: dict[int, str] = {}
    for name, side in sides.items():
        prompts, answers = read_columns(name, instructed=Contents.of(rows).instructed)
        for column in (*prompts, *answers) if side.embeddings is not None else ():
            largest = pc.max(pc.list_flatten(rows.data[column])).as_py()  # pyright: ignore[reportAttributeAccessIssue]
            if largest is not None and largest >= side.embeddings:
                unreadable = ((i, side.unreadable(ids or ())) for i, ids in enumerate(rows[column][:]))
                found |= {i: problem for i, problem in unreadable if problem}
    return found


def _require_positions(rows: Dataset, sides: Mapping[str, ModelSide], max_length: int) -> None:
    """Refuse rows that are longer than a model can tell apart; not cached, since models may change."""
    for name, side in sides.items():
        if side.positions is None or side.positions >= max_length:
            continue  # no row is longer than `max_length`
        prompts, answers = read_columns(name, instructed=Contents.of(rows).instructed)
        for index, row in enumerate(rows.select_columns([*prompts, *answers])):
            parts: dict[str, list[int]] = row  # pyright: ignore[reportAssignmentType]
            length = sum(max(len(parts[column]) for column in columns) for columns in (prompts, answers))
            if length > side.positions:
                raise PrefkdError(
                    f"row {rows[index]['row']} of {rows[index]['file']} has {length} tokens, and {side.name} has "
                    f"{side.positions} positions; set data.max_length={side.positions}"
                )


def _without_problems(
    rows: Dataset, config: DataConfig, unreadable: Mapping[int, str], left_out: Counter[str] | None
) -> Dataset:
    """The rows that could be aligned. The others are an error or left out, which is said and counted."""
    problems = present(rows, "problem")
    problems[list(unreadable)] = True
    places = problems.nonzero()[0].tolist()
    told: Any = rows.select_columns(["file", "row", "problem"]).select(places)
    bad = [
        BadRow(row["file"], row["row"], row["problem"] or unreadable[i]) for i, row in zip(places, told, strict=True)
    ]
    refused = [row for row in bad if row.reason not in (NO_PARENT, NOTHING_LEFT, NO_TOKEN, SAME_TOKENS)]
    if refused and config.on_bad_row == "error":
        raise bad_rows_error(refused)
    reasons = Counter(row.reason for row in bad)
    if left_out is not None:
        left_out.update(reasons)
    for reason, count in reasons.items():
        first = next(row for row in bad if row.reason == reason)
        logger.warning("%d of %d pairs are left out; %s", count, len(rows), first)
    return rows.remove_columns("problem").select((~problems).nonzero()[0])
