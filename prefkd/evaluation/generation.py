"""Answers of a model to prompts: in batches of like length, greedy or sampled, kept as JSON lines."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from prefkd.config.hints import size_problems
from prefkd.data.fingerprints import Fingerprint
from prefkd.data.templates import ModelSide, PlainTemplate
from prefkd.data.truncation import Limits, cut_prompt
from prefkd.errors import DataError
from prefkd.evaluation.prompts import Prompt
from prefkd.files import fingerprint


@dataclass
class SamplingConfig:
    """How answers are generated.

    Attributes:
        max_new_tokens: Most tokens of an answer.
        max_prompt_length: Most tokens of a prompt; of a longer one the end is kept.
        temperature: 0 takes the likeliest token each time; above, tokens are drawn.
        top_p: Tokens are drawn among the likeliest that have this probability together.
        batch_size: Prompts that are answered at the same time.
        seed: Seed of the draws.
    """

    max_new_tokens: int = 128
    max_prompt_length: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    batch_size: int = 8
    seed: int = 0

    def problems(self) -> Iterator[str]:
        yield from size_problems(self, "max_new_tokens", "max_prompt_length", "batch_size")
        if not 0 <= self.temperature < math.inf:
            yield f"temperature: {self.temperature} is not a temperature; use 0 for the likeliest tokens, 1 to sample"
        if not 0 < self.top_p <= 1:
            yield f"top_p: {self.top_p} is no probability; use 1.0 for all tokens"

    def fingerprint(self) -> Fingerprint:
        """What answers depend on. Which prompts share a batch is part of it, as it seeds the draws."""
        return {f"sampling.{name}": value for name, value in vars(self).items()}


@dataclass(frozen=True)
class PromptBatch:
    """Prompts that are answered together.

    Attributes:
        number: Its place among the batches of a task.
        prompts: The prompts.
        ids: The token ids of each.
    """

    number: int
    prompts: list[Prompt]
    ids: list[list[int]]


def plan_batches(prompts: Sequence[Prompt], side: ModelSide, config: SamplingConfig) -> list[PromptBatch]:
    """All batches of a task, the longest prompts first. They depend on prompts, tokenizer and settings alone.

    Raises:
        DataError: The model has no embedding for a token of a prompt.
    """
    limits = Limits(config.max_prompt_length + config.max_new_tokens, config.max_prompt_length, "keep_end")
    encoded = side.encode_prompts([side.frame(prompt.messages) for prompt in prompts])
    for prompt, ids in zip(prompts, encoded, strict=True):
        problem = side.unreadable(ids)
        if problem:
            raise DataError(f"{prompt.key}: {problem}")
    encoded = [cut_prompt(ids, config.max_prompt_length, limits, side.bos_id) for ids in encoded]
    longest_first = sorted(range(len(prompts)), key=lambda index: len(encoded[index]), reverse=True)
    parts = [longest_first[i : i + config.batch_size] for i in range(0, len(prompts), config.batch_size)]
    return [
        PromptBatch(number, [prompts[index] for index in part], [encoded[index] for index in part])
        for number, part in enumerate(parts)
    ]


@torch.no_grad()
def answer_batch(lm: PreTrainedModel, side: ModelSide, batch: PromptBatch, config: SamplingConfig) -> list[str]:
    """The answers of a model to the prompts of a batch, without special tokens."""
    width = max(map(len, batch.ids))
    pad_id = side.tokenizer.pad_token_id if side.tokenizer.pad_token_id is not None else side.eos_id
    input_ids = torch.tensor([[pad_id] * (width - len(ids)) + ids for ids in batch.ids], device=lm.device)
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in batch.ids], device=lm.device)
    ends = {side.eos_id, side.tokenizer.eos_token_id} - {None}
    settings: dict[str, Any] = {"do_sample": False}
    if config.temperature > 0:
        settings = {"do_sample": True, "temperature": config.temperature, "top_p": config.top_p, "top_k": 0}
    # Not the checkpoint's own settings: checkpoints are compared on equal terms.
    lm.generation_config = GenerationConfig(
        max_new_tokens=config.max_new_tokens, eos_token_id=sorted(ends), pad_token_id=pad_id, **settings
    )
    with torch.random.fork_rng(devices=[lm.device] if lm.device.type == "cuda" else []):
        # Each batch has draws of its own, so that a run that was killed resumes with the same ones.
        torch.manual_seed(int(fingerprint(config.seed, batch.number), 16) % 2**63)
        generated: Any = lm.generate(input_ids=input_ids, attention_mask=mask)  # pyright: ignore
    return [_text(row, side, ends) for row in generated[:, width:].tolist()]


def _text(ids: list[int], side: ModelSide, ends: set[int]) -> str:
    """The answer up to its end. Without a chat template a model may continue with the user's next turn."""
    length = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    text = side.tokenizer.decode(ids[:length], skip_special_tokens=True)
    if side.stop_text:
        text = text.partition(side.stop_text)[0]
    if not side.uses_chat_template:
        for heading in PlainTemplate.headings.values():
            text = text.partition(f"\n\n{heading}:\n")[0]
    return text.strip()
