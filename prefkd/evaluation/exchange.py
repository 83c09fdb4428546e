"""Answers in the formats of tools that judge them: AlpacaEval 2 and Arena-Hard-Auto 2. The user runs these tools."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from prefkd.evaluation.prompts import Prompt
from prefkd.files import fingerprint, whole


def write_alpaca_eval(folder: Path, checkpoint: str, prompts: Sequence[Prompt], answers: Mapping[str, str]) -> Path:
    """Write what `alpaca_eval --model_outputs` reads: a list of instruction, output, generator."""
    rows = [
        {
            "instruction": prompt.messages[-1]["content"],
            "output": answers[prompt.key],
            "generator": checkpoint,
        }
        for prompt in prompts
    ]
    path = folder / f"{checkpoint}.json"
    _write(path, json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    return path


def write_arena_hard(folder: Path, checkpoint: str, prompts: Sequence[Prompt], answers: Mapping[str, str]) -> Path:
    """Write what Arena-Hard-Auto reads in data/BENCH/model_answer: a line for each question, by its uid."""
    now = time.time()
    rows = [
        {
            "uid": prompt.uid,
            "ans_id": fingerprint("answer", checkpoint, prompt.uid, answers[prompt.key]),
            "model": checkpoint,
            "messages": [*prompt.messages, {"role": "assistant", "content": {"answer": answers[prompt.key]}}],
            "tstamp": now,
            "metadata": {},
        }
        for prompt in prompts
    ]
    path = folder / f"{checkpoint}.jsonl"
    _write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


WRITERS: dict[str, Callable[[Path, str, Sequence[Prompt], Mapping[str, str]], Path]] = {
    "alpaca_eval": write_alpaca_eval,
    "arena_hard": write_arena_hard,
}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
