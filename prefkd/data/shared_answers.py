"""Answers as text that two models write alike, whatever each of their templates does to it."""

import json
import re
from collections.abc import Mapping, Sequence

from prefkd.data.frames import Frame, rewrites
from prefkd.data.messages import Answer, Message, answer_text
from prefkd.data.sides import ModelSide
from prefkd.data.templates import Tools
from prefkd.errors import DataError

_THOUGHT = re.compile(r"\A\s*<think>.*?</think>\s*", re.DOTALL)


def without_thought(answer: Answer) -> Answer:
    """An answer without the thought that it begins with."""
    if isinstance(answer, str):
        return _THOUGHT.sub("", answer)
    return Message({**answer, "content": _THOUGHT.sub("", answer["content"])})


def write_answers(
    messages: Sequence[Message],
    answers: Sequence[Answer],
    sides: Mapping[str, ModelSide],
    tools: Tools | None = None,
) -> tuple[dict[str, Frame], list[str], bool]:
    """What two models read around some answers to the same messages, and the answers as text that both write alike.

    Where one of the sides drops thoughts, all answers lose theirs, those in the messages too.

    Args:
        tools: The tools that can be called.

    Returns:
        The frames of each side; the texts; and `thoughts` of `ModelSide.frame`, which is set if an answer has a thought
        that a template writes where other answers get an empty one.

    Raises:
        DataError: A template refuses the conversation or leaves out a part of an answer.
    """
    if not all(side.keeps_thoughts for side in sides.values()):
        messages = [
            Message({**turn, "content": _THOUGHT.sub("", turn["content"])}) if turn["role"] == "assistant" else turn
            for turn in messages
        ]
        answers = [without_thought(answer) for answer in answers]
    for thoughts in (False, True):
        frames = {name: side.frame(messages, thoughts=thoughts, tools=tools) for name, side in sides.items()}
        framed = [(side, frames[name]) for name, side in sides.items()]
        try:
            return frames, [shared_response(messages, answer, framed) for answer in answers], thoughts
        except DataError:
            if thoughts or not any("think>" in answer_text(answer) for answer in answers):
                raise
    raise AssertionError("the second time either returns or raises")


def shared_response(messages: Sequence[Message], answer: Answer, sides: Sequence[tuple[ModelSide, Frame]]) -> str:
    """The text of an answer that all templates write alike: each in turn trims it until none changes it.

    Raises:
        DataError: They never agree, or one leaves out a part of the answer.
    """
    if isinstance(answer, dict):
        return _shared_call(messages, answer, sides)
    text = answer
    for _ in range(4):
        before = text
        for side, frame in sides:
            text = side.response(messages, text, frame)
        if text == before:
            break
    else:
        raise DataError("the chat templates of the two models write this answer in different ways")
    if not _has_all_of(text, answer):
        changing = [
            side.name for side, frame in sides if not _has_all_of(side.response(messages, answer, frame), answer)
        ]
        raise DataError(f"the chat template of {' and that of '.join(changing)} {rewrites(answer)}")
    return text


def _shared_call(messages: Sequence[Message], answer: Message, sides: Sequence[tuple[ModelSide, Frame]]) -> str:
    """The text of an answer that calls tools, which both models must write in the same notation."""
    texts = dict.fromkeys(side.response(messages, answer, frame) for side, frame in sides)
    if len(texts) > 1:
        one, other = (json.dumps(text[:60], ensure_ascii=False) for text in [*texts][:2])
        raise DataError(
            f"the two chat templates write the calls of this answer in different ways, {one} and {other}: give both "
            "models one template"
        )
    return next(iter(texts))


def _has_all_of(written: str, answer: str) -> bool:
    return written == answer or _without_blanks(written).endswith(_without_blanks(answer))


def _without_blanks(text: str) -> str:
    return "".join(text.split())
