"""Pairs -> the same pairs as tokens of the student and of the teacher, aligned by parent tokens.

The columns of an aligned data set are those of `prefkd.data.rows`. A response is aligned whole and cut afterwards: two
truncated tokenizations would end at different characters.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from datasets import Dataset

from prefkd.data.mapping import NO_PARENT, NO_TOKEN, SAME_TOKENS, map_pairs
from prefkd.data.pairs import DataConfig
from prefkd.data.rows import INSTRUCTIONS, NO_ANSWER, SIDES, AlignedAnswer, AlignedRow, Reading, aligned_features
from prefkd.data.sides import ModelSide
from prefkd.data.truncation import Limits, cut_prompt, kept_lengths
from prefkd.data.whole_pairs import read_pairs
from prefkd.data.workers import Shared, one_thread_in_workers
from prefkd.errors import DataError, PrefkdError
from prefkd.method.parent_tokens import find_parents_batch, keep_complete

# Part of every fingerprint: raise it when the same pairs come to give other tokens.
VERSION = 5


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

    def cut(place: int, there: slice, is_cut: tuple[bool, bool]) -> AlignedRow:
        prompts = {name: ids[place] for name, ids in read.prompts.items()}
        answers = {side: read.responses[side][0][there] for side in SIDES}
        return cut_pair(prompts, answers, parents[there], sides, limits, is_cut)

    return read.cut(cut, aligned_features(with_contrast=contrast is not None))


def cut_pair(
    prompts: Mapping[str, list[int]],
    answers: Mapping[str, Sequence[list[int]]],
    parents: Sequence[np.ndarray],
    sides: Mapping[str, ModelSide],
    limits: Limits,
    is_cut: tuple[bool, bool] = (False, False),
) -> AlignedRow:
    """Cut an aligned pair to its limits and add the end where nothing of an answer is missing.

    Args:
        prompts: Token ids for student and teacher, and for positive and negative with a contrast.
        answers: Side -> token ids of the chosen answer, and of the rejected one if there is one, without their end.
        parents: (P, 6) of each of them, whole.
        sides: Student and teacher.
        limits: Maximum tokens of a prompt and an answer.
        is_cut: Whether each of them is not finished as it stands in the data.

    Raises:
        DataError: A prompt has no token, an answer has no parent, none is left, or both answers have the same tokens on
            a side.
    """
    kept_prompts, room, whole = dict(prompts), {}, {}
    for side in SIDES:
        # The teacher reads the answers behind up to three prompts; the longest decides, so that all of them fit.
        readings = ["student"] if side == "student" else [name for name in prompts if name != "student"]
        longest = max(len(prompts[name]) for name in readings)
        ends = [0 if unfinished else len(sides[side].end_ids) for unfinished in is_cut]
        whole[side] = [len(ids) + end for ids, end in zip(answers[side], ends, strict=False)]  # there may be no rival
        kept_prompt, room[side] = kept_lengths(longest, whole[side], limits)
        for name in readings:
            kept_prompts[name] = cut_prompt(prompts[name], kept_prompt, limits, sides[side].bos_id)

    found, tokens = [], {side: ([], []) for side in SIDES}
    for i in range(len(parents)):
        if not len(parents[i]):
            raise DataError(NO_TOKEN)
        kept = keep_complete(parents[i], *(min(len(answers[side][i]), room[side]) for side in SIDES))
        if not len(kept):
            raise DataError(NO_PARENT)
        ends = not is_cut[i] and all(whole[side][i] <= room[side] for side in SIDES)
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
        first, second = [*whole[side], 0][:2]
        cut = len(prompts[side]) - len(kept_prompts[side]), first - len(chosen), second - len(rejected)
        return Reading(kept_prompts[side], (chosen, rejected), tuple(owners), cut)

    instructed = {name: kept_prompts[name] for name in INSTRUCTIONS if name in prompts}
    return AlignedRow(reading("student"), reading("teacher"), (found[0], found[1]), instructed)
