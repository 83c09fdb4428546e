"""Candidates as recipe `sample` or anybody else wrote them: JSON lines -> prompts, each with its different answers.

A row has `prompt` (text or messages) and `answer`; `system`, `model`, `finish` and `references` are read where they
stand.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefkd.data.formats import SAMPLED, check_context, check_prompt, is_cut, normal, with_system
from prefkd.data.messages import Message, decode_messages, read_messages
from prefkd.data.sources import is_unfinished
from prefkd.errors import DataError, Problem
from prefkd.evaluation.prompts import read_references

READ = frozenset({"prompt", "answer", "system", "reference", *SAMPLED})


@dataclass(frozen=True)
class Candidate:
    """An answer.

    Attributes:
        model: Who gave it; empty if nobody says.
        is_cut: Whether it is not finished.
    """

    answer: str
    model: str
    is_cut: bool

    @property
    def finish(self) -> str:
        """How it ended, as rows of data say it."""
        return "length" if self.is_cut else "stop"


@dataclass(frozen=True)
class Question:
    """A prompt and its candidates, which differ.

    Attributes:
        key: Its number among the questions, which names it in messages and records.
        references: Texts that an answer can be compared with.
    """

    key: str
    messages: list[Message]
    references: list[str]
    candidates: list[Candidate] = field(default_factory=list)


def candidate_files(path: Path) -> list[Path]:
    """The files of JSON lines at a path: itself, or those in a folder."""
    return sorted(path.glob("*.jsonl")) if path.is_dir() else [path]


def candidate_problems(path: Path, key: str) -> Iterator[Problem]:
    """What keeps candidates from being read, as far as can be seen without reading them."""
    if not os.path.exists(path):  # unlike Path.exists, for any text
        yield Problem(key, f"{path} does not exist; write it with recipe sample", about="data", paths=(path,))
    elif not candidate_files(path):
        text = f"{path} holds no *.jsonl; name the folder `candidates` that recipe sample wrote"
        yield Problem(key, text, about="data", paths=(path,))
    for file in candidate_files(path):
        if is_unfinished(file):
            text = f"{file} is not finished; run recipe sample again with the same command; it resumes"
            yield Problem(key, text, about="data", paths=(path,))


def read_candidates(path: Path) -> tuple[list[Question], Counter[str]]:
    """Read all candidates, those to the same prompt together.

    Returns:
        The prompts in the order in which they first occur, and how many candidates are left out by reason: `empty`,
        `duplicate` (another candidate for the prompt has the same text, blanks apart).

    Raises:
        DataError: A row cannot be used; or there are none.
    """
    questions: dict[str, Question] = {}
    texts: set[tuple[str, str]] = set()
    left_out: Counter[str] = Counter()
    for file in candidate_files(path):
        # As bytes: texts may hold line separators of Unicode, which do not end a line of JSON.
        for number, line in enumerate(file.read_bytes().splitlines(), start=1):
            if not line.strip():
                continue
            try:
                messages, references, candidate = _read_row(json.loads(line))
            except (DataError, ValueError) as error:
                raise DataError(f"row {number} of {file}: {error}; fix the data") from error
            key = json.dumps(messages)
            question = questions.setdefault(key, Question(str(len(questions)), messages, []))
            question.references.extend([text for text in references if text not in question.references])
            text = " ".join(candidate.answer.split())
            if not text:
                left_out["empty"] += 1
            elif (key, text) in texts:
                left_out["duplicate"] += 1
            else:
                question.candidates.append(candidate)
                texts.add((key, text))
    if not questions:
        raise DataError(f"{path}: there are no rows in it; run recipe sample again")
    return [*questions.values()], left_out


def _read_row(row: Any) -> tuple[list[Message], list[str], Candidate]:
    if not isinstance(row, dict):
        raise DataError(f"it is of type {type(row).__name__}: expected an object with named fields")
    prompt = decode_messages(row.get("prompt"), "prompt")
    if isinstance(prompt, str):
        messages = [Message(role="user", content=prompt)]
    elif isinstance(prompt, list):
        messages = read_messages(prompt, "prompt")
    else:
        raise DataError("field 'prompt' is missing or neither text nor messages with 'role' and 'content'")
    messages = with_system(normal(messages, "prompt"), row.get("system"))
    check_context(row, READ, messages)
    check_prompt(messages)
    answer = row.get("answer")
    if not isinstance(answer, str):
        raise DataError("field 'answer' is missing or not text")
    candidate = Candidate(normal(answer, "answer"), str(row.get("model") or ""), is_cut(row))
    return messages, read_references(row), candidate
