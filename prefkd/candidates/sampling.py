"""Candidates: several answers of several models to the same prompts, as JSON lines.

A row of <folder>/<model>.jsonl is

    key          prompt and number of the answer, file:row#number
    prompt       messages
    prompt_cut   whether the model read only its end, since it has more than `max_prompt_length` tokens
    references   what an answer can be compared with; may be empty
    model        name of the model in the config
    number       which of its answers to the prompt, from 0
    answer       text, without special tokens
    finish       `stop` where the model ended it, `length` where `max_new_tokens` did
    tokens       tokens that were generated
    seed         seed of its draws, which SGLang does not take
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from prefkd.data.sides import ModelSide
from prefkd.errors import PrefkdError, Problem
from prefkd.evaluation.checkpoints import Checkpoint, CheckpointConfig, in_rounds, on_all
from prefkd.evaluation.generation import PromptBatch, SamplingConfig, plan_batches, sample_batch
from prefkd.evaluation.prompts import Prompt, prompts_fingerprint
from prefkd.evaluation.records import Records
from prefkd.models.load import TeacherConfig
from prefkd.ranks import Ranks
from prefkd.training.display import Bar


@dataclass
class SampledConfig(CheckpointConfig):
    """A model that answers. Here, unlike in an evaluation, one that is missing is a mistake."""

    def problems(self) -> Iterator[Problem | str]:
        yield from TeacherConfig.problems(self)


def distinct(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Each prompt once, with the references of all rows that have it: draws follow from the prompt, so that a second
    one like it would get the same answers."""
    found: dict[str, Prompt] = {}
    for prompt in prompts:
        first = found.setdefault(json.dumps(prompt.messages), prompt)
        more = [text for text in prompt.references if text not in first.references]
        found[json.dumps(prompt.messages)] = replace(first, references=[*first.references, *more])
    return [*found.values()]


def sample_answers(
    checkpoint: Checkpoint,
    prompts: Sequence[Prompt],
    sampling: SamplingConfig,
    *,
    answers: int,
    folder: Path,
    bar: Bar,
    ranks: Ranks,
) -> list[dict[str, Any]]:
    """Let a model answer the prompts that it has not answered before.

    Args:
        checkpoint: The model, which is loaded only if an answer is missing.
        answers: How many answers each prompt gets.
        folder: Where the candidates go.

    Returns:
        All rows of the model.

    Raises:
        PrefkdError: The model cannot be loaded, its server does not answer, or the folder holds answers that were
            sampled with other settings.
    """
    parts = checkpoint.fingerprint | sampling.fingerprint() | {"prompts": prompts_fingerprint([*prompts])}
    records = Records(folder / f"{checkpoint.name}.jsonl", parts | {"answers": answers}, ranks)
    if records.others:
        raise PrefkdError(
            f"{records.path} holds answers that were sampled with other settings ({', '.join(records.others)}); "
            "restore them, or name another output_dir"
        )
    if records.finished:
        bar.advance(f"{checkpoint.name}, answered earlier", steps=len(prompts) * answers)
        return [*records.rows.values()]
    batches = plan_batches(prompts, checkpoint.side, sampling, answers)
    left = [batch for batch in batches if any(key not in records.rows for key in _keys(batch))]
    bar.advance(checkpoint.name, steps=sum(len(batch.prompts) for batch in batches if batch not in left))
    if left:
        on_all(ranks, checkpoint.load)

    def answer(batch: PromptBatch) -> list[dict[str, Any]]:
        return list(_rows(checkpoint, batch, sampling, checkpoint.side))

    for found in in_rounds(ranks, left, answer):
        records.add(found)
        bar.advance(checkpoint.name, steps=len(found))
    records.finish()
    return [*records.rows.values()]


def _keys(batch: PromptBatch) -> list[str]:
    return [f"{prompt.key}#{number}" for prompt, number in zip(batch.prompts, batch.numbers, strict=True)]


def _rows(
    checkpoint: Checkpoint, batch: PromptBatch, sampling: SamplingConfig, side: ModelSide
) -> Iterator[dict[str, Any]]:
    given, seeds = sample_batch(checkpoint.served or checkpoint.lm, side, batch, sampling), batch.seeds(sampling.seed)
    for index, (key, prompt) in enumerate(zip(_keys(batch), batch.prompts, strict=True)):
        yield {
            "key": key,
            "prompt": prompt.messages,
            "prompt_cut": batch.is_cut[index],
            "references": prompt.references,
            "model": checkpoint.name,
            "number": batch.numbers[index],
            "answer": given[index].text,
            "finish": given[index].finish,
            "tokens": given[index].tokens,
            "seed": seeds[index] if sampling.temperature else None,
        }


def describe(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a reader must know of the answers of a model before pairs are made of them.

    Returns:
        answers, prompts; tokens: mean, median, most; empty; cut (ended by max_new_tokens); duplicates (the same text as
        an earlier answer to the same prompt, blanks apart); prompts_cut (longer than max_prompt_length). The last is a
        count of prompts, the three before it of answers.
    """
    tokens = np.array([row["tokens"] for row in rows])
    texts = Counter((str(row["prompt"]), " ".join(row["answer"].split())) for row in rows)
    return {
        "answers": len(rows),
        "prompts": len({str(row["prompt"]) for row in rows}),
        "tokens": {"mean": float(tokens.mean()), "median": float(np.median(tokens)), "most": int(tokens.max())},
        "empty": sum(not row["answer"] for row in rows),
        "cut": sum(row["finish"] == "length" for row in rows),
        "duplicates": sum(count - 1 for count in texts.values()),
        "prompts_cut": len({str(row["prompt"]) for row in rows if row.get("prompt_cut")}),
    }
