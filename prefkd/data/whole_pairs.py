"""Pairs as each side writes and tokenizes them, whole: nothing of them is cut yet."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from prefkd.data.formats import check_answers
from prefkd.data.frames import Frame
from prefkd.data.messages import Answer, Message, unpack_calls
from prefkd.data.rows import ANSWERS, INSTRUCTIONS, AlignedRow, Reading
from prefkd.data.shared_answers import write_answers
from prefkd.data.sides import ModelSide
from prefkd.errors import DataError


@dataclass(frozen=True)
class _WrittenPair:
    """A pair as text.

    Attributes:
        frames: Reading -> what stands around the answers: one for each side, and for each instruction of a contrast.
        answers: The chosen and the rejected answer, which is empty where there is none.
        is_cut: Whether each answer is not finished as it stands in the data.
    """

    frames: dict[str, Frame]
    answers: tuple[str, str]
    is_cut: tuple[bool, bool]


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

    def cut(
        self, cut: Callable[[int, slice, tuple[bool, bool]], Reading | AlignedRow], names: Iterable[str]
    ) -> dict[str, list]:
        """Columns of all pairs, and `problem`: why a row cannot be used, or None.

        Args:
            cut: Makes a pair from its place in `prompts`, that of its answers in `responses`, and whether each of these
                is not finished in the data. What it raises as a DataError is the problem.
            names: The columns.
        """
        for place, (i, pair) in enumerate(self.written.items()):
            answers = slice(2 * place, 2 * place + (2 if pair.answers[1] else 1))  # there may be no rival
            try:
                self.rows[i] |= cut(place, answers, pair.is_cut).columns()
            except DataError as error:
                self.rows[i]["problem"] = str(error)
        return {name: [row.get(name) for row in self.rows] for name in (*names, "problem")}


def read_pairs(
    rows: Mapping[str, list], sides: Mapping[str, ModelSide], contrast: tuple[str, str] | None = None
) -> ReadPairs:
    """Write pairs as each side has them and tokenize them.

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
            first, second = (name in rows and bool(rows[name][i]) for name in ("chosen_is_cut", "rejected_is_cut"))
            conversation = unpack_calls(rows["prompt"][i], answers, packed)
            written[i] = _write_pair(*conversation, sides, contrast, (first, second))
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
    is_cut: tuple[bool, bool],
) -> _WrittenPair:
    written = [answers[name] for name in ANSWERS if answers[name]]
    frames, (chosen, *rivals), thoughts = write_answers(messages, written, sides, tools)
    rejected = rivals[0] if rivals else ""
    if rivals:
        check_answers(chosen, rejected)
    for name, instruction in zip(INSTRUCTIONS, contrast, strict=True) if contrast else ():
        frames[name] = sides["teacher"].frame(with_instruction(messages, instruction), thoughts=thoughts, tools=tools)
    return _WrittenPair(frames, (chosen, rejected), is_cut)


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


def with_instruction(messages: Sequence[Message], instruction: str) -> list[Message]:
    """The conversation with an instruction around the user's last message."""
    last = max(i for i, turn in enumerate(messages) if turn["role"] == "user")
    asked = Message(role="user", content=instruction.replace("{prompt}", messages[last]["content"]))
    return [*messages[:last], asked, *messages[last + 1 :]]
