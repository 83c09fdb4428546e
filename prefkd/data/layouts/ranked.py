"""Layouts with several answers that have a rank or a score. Each docstring gives the published columns."""

import json
from contextlib import suppress
from typing import Any

from prefkd.data.layouts.candidates import Candidates, Row, number, take, text
from prefkd.data.messages import Message, kind
from prefkd.data.transcripts import read_transcript_prompt
from prefkd.errors import DataError


def nectar(row: Row) -> Candidates:
    """berkeley-nest/Nectar: prompt (a transcript of Human and Assistant), answers [{answer, model, rank}] (rank 1 is
    the best), turns, num_responses, source, good_natured."""
    answers = [(text(one, "answer"), -number(one, "rank")) for one in _objects(row, "answers")]
    prompt = read_transcript_prompt(text(row, "prompt"), "prompt")
    return Candidates(take(row, "answers") | {"prompt": prompt}, answers)


def ultrafeedback_completions(row: Row) -> Candidates:
    """openbmb/UltraFeedback: instruction, completions [{response, overall_score, fine-grained_score, model, critique,
    annotations, custom_system_prompt, principle}], models, source, correct_answers, incorrect_answers."""
    answers = [(text(one, "response"), number(one, "overall_score")) for one in _objects(row, "completions")]
    rest = take(row, "instruction", "completions", "correct_answers", "incorrect_answers")
    return Candidates(rest | {"prompt": [Message(role="user", content=text(row, "instruction"))]}, answers)


def nemo_rl(row: Row) -> Candidates:
    """NeMo-RL's preference rows: context [messages], completions [{rank, completion [messages]}] (rank 0 is the best),
    task_name."""
    answers = [(one.get("completion"), -number(one, "rank")) for one in _objects(row, "completions")]
    return Candidates(take(row, "context", "completions") | {"prompt": row["context"]}, answers)


def _objects(row: Row, name: str) -> list[dict[str, Any]]:
    value = row[name]
    if isinstance(value, str):
        with suppress(ValueError):
            value = json.loads(value)
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise DataError(f"field '{name}' is {kind(value)}: expected a list of answers")
    if len(value) < 2:
        raise DataError(f"field '{name}' has {len(value)} answers: expected two or more")
    return value
