"""Answers of a model to prompts: in batches of like length, greedy or sampled, kept as JSON lines."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel, TopPLogitsWarper

from prefkd.config.hints import MOST_TOKENS, size_problems
from prefkd.data.fingerprints import Fingerprint
from prefkd.data.sides import ModelSide
from prefkd.data.templates import PlainTemplate
from prefkd.data.truncation import Limits, cut_prompt
from prefkd.errors import DataError, PrefkdError
from prefkd.evaluation.prompts import Prompt
from prefkd.files import fingerprint
from prefkd.models.served import Answer, ServedModel


@dataclass
class SamplingConfig:
    """How answers are generated.

    Attributes:
        max_new_tokens: Maximum tokens of an answer.
        max_prompt_length: Maximum tokens of a prompt; of a longer one the end is kept.
        temperature: 0 takes the likeliest token each time; above, tokens are drawn.
        top_p: Tokens are drawn among the likeliest that have this probability together.
        batch_size: Answers that are written at the same time. A server writes as many as its `concurrency` at most.
        seed: Seed of the draws. Each answer has draws of its own, whatever shares a batch with it.
    """

    max_new_tokens: int = 128
    max_prompt_length: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    batch_size: int = 8
    seed: int = 0

    def problems(self) -> Iterator[str]:
        yield from size_problems(self, "batch_size")
        yield from size_problems(self, "max_new_tokens", "max_prompt_length", most=MOST_TOKENS)
        if not 0 <= self.temperature < math.inf:
            yield f"temperature: {self.temperature} is not a temperature; use 0 for the likeliest tokens, 1 to sample"
        if not 0 < self.top_p <= 1:
            yield f"top_p: {self.top_p} is not a probability; use 1.0 for all tokens"

    def fingerprint(self) -> Fingerprint:
        """What answers depend on. Which prompts share a batch is part of it, as it decides about the last digits."""
        return {f"sampling.{name}": value for name, value in vars(self).items()}


@dataclass(frozen=True)
class PromptBatch:
    """Prompts that are answered together.

    Attributes:
        number: Its place among the batches of a task.
        prompts: The prompts.
        ids: The token ids of each.
        numbers: Which answer to its prompt is wanted, from 0.
        is_cut: Whether the start of each prompt is missing, since it has more than `max_prompt_length` tokens.
    """

    number: int
    prompts: list[Prompt]
    ids: list[list[int]]
    numbers: list[int]
    is_cut: list[bool]

    def seeds(self, seed: int) -> list[int]:
        """The seed of each answer, which follows from its prompt and its number."""
        parts = zip(self.prompts, self.numbers, strict=True)
        return [int(fingerprint(seed, prompt.messages, number), 16) % 2**31 for prompt, number in parts]


def plan_batches(
    prompts: Sequence[Prompt], side: ModelSide, config: SamplingConfig, answers: int = 1
) -> list[PromptBatch]:
    """All batches of a task, the longest prompts first. They depend on prompts, tokenizer and settings alone.

    Args:
        answers: How many answers each prompt gets; those to one prompt stand next to each other.

    Raises:
        DataError: The model has no embedding for a token of a prompt, or no position for the end of an answer.
    """
    limits = Limits(config.max_prompt_length + config.max_new_tokens, config.max_prompt_length, "keep_end")
    encoded = side.encode_prompts([side.frame(prompt.messages) for prompt in prompts])
    for prompt, ids in zip(prompts, encoded, strict=True):
        problem = side.unreadable(ids)
        if problem:
            raise DataError(f"{prompt.key}: {problem}")
    is_cut = [len(ids) > config.max_prompt_length for ids in encoded]
    encoded = [cut_prompt(ids, config.max_prompt_length, limits, side.bos_id) for ids in encoded]
    for prompt, ids in zip(prompts, encoded, strict=True):
        if side.positions is not None and len(ids) + config.max_new_tokens > side.positions:
            raise DataError(
                f"{prompt.key}: {len(ids)} tokens and an answer of {config.max_new_tokens} are more than the "
                f"{side.positions} positions of {side.name}; set sampling.max_prompt_length or max_new_tokens lower"
            )
    longest_first = sorted(range(len(prompts)), key=lambda index: len(encoded[index]), reverse=True)
    wanted = [(index, number) for index in longest_first for number in range(answers)]
    parts = [wanted[i : i + config.batch_size] for i in range(0, len(wanted), config.batch_size)]
    return [
        PromptBatch(
            batch,
            [prompts[index] for index, _ in part],
            [encoded[index] for index, _ in part],
            [number for _, number in part],
            [is_cut[index] for index, _ in part],
        )
        for batch, part in enumerate(parts)
    ]


def answer_batch(
    lm: PreTrainedModel | ServedModel, side: ModelSide, batch: PromptBatch, config: SamplingConfig
) -> list[str]:
    """The texts of `sample_batch`."""
    return [answer.text for answer in sample_batch(lm, side, batch, config)]


def sample_batch(
    lm: PreTrainedModel | ServedModel, side: ModelSide, batch: PromptBatch, config: SamplingConfig
) -> list[Answer]:
    """The answers of a model to the prompts of a batch, without special tokens."""
    if isinstance(lm, ServedModel):
        return [_ended(*answer, side) for answer in _ask_server(lm, batch, config)]
    return [_ended(*answer, side) for answer in _generate(lm, side, batch, config)]


def _ask_server(model: ServedModel, batch: PromptBatch, config: SamplingConfig) -> list[Answer]:
    def ask(one: tuple[list[int], int]) -> Answer:
        ids, seed = one
        settings = {"temperature": config.temperature, "top_p": config.top_p, "seed": seed}
        return model.answer(ids, max_new_tokens=config.max_new_tokens, **settings)

    return model.server.map(ask, list(zip(batch.ids, batch.seeds(config.seed), strict=True)))


@torch.no_grad()
def _generate(lm: PreTrainedModel, side: ModelSide, batch: PromptBatch, config: SamplingConfig) -> list[Answer]:
    width = max(map(len, batch.ids))
    pad_id = side.tokenizer.pad_token_id if side.tokenizer.pad_token_id is not None else side.eos_id
    input_ids = torch.tensor([[pad_id] * (width - len(ids)) + ids for ids in batch.ids], device=lm.device)
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in batch.ids], device=lm.device)
    ends = {side.eos_id, side.tokenizer.eos_token_id} - {None}
    draws = LogitsProcessorList([FiniteLogits(side.name)])
    if config.temperature > 0:
        draws.append(SeededDraws(batch.seeds(config.seed), config.temperature, config.top_p, lm.device))
    # Not the checkpoint's own settings: checkpoints are compared on equal terms.
    lm.generation_config = GenerationConfig(
        max_new_tokens=config.max_new_tokens, eos_token_id=sorted(ends), pad_token_id=pad_id, do_sample=False
    )
    with torch.compiler.set_stance("force_eager"):  # layers that are compiled would be compiled again for each length
        generated: Any = lm.generate(input_ids=input_ids, attention_mask=mask, logits_processor=draws)  # pyright: ignore
    found = []
    for ids in generated[:, width:].tolist():
        length = next((place for place, token in enumerate(ids) if token in ends), None)
        text = side.tokenizer.decode(ids[:length], skip_special_tokens=True)
        found.append(Answer(text, "length", len(ids)) if length is None else Answer(text, "stop", length + 1))
    return found


class FiniteLogits(LogitsProcessor):
    """Refuses a model whose first logits are not numbers, since its answers would be noise.

    Args:
        name: The model's name in messages.
    """

    def __init__(self, name: str):
        self.name = name
        self.is_known = False

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(B, V) logits -> the same."""
        if not self.is_known and bool(scores.isnan().any()):
            raise PrefkdError(f"{self.name}: its logits are not numbers, so it cannot write; use dtype: float32")
        self.is_known = True
        return scores


class SeededDraws(LogitsProcessor):
    """Turns the likeliest token into a drawn one: the largest of log-prob + Gumbel noise is a draw from the model.

    Each row has a generator of its own, so that an answer does not depend on what shares the batch with it.

    Args:
        seeds: One for each row.
        temperature, top_p: See `SamplingConfig`.
        device: Device of the logits.

    Source: the Gumbel-max trick, e.g. Maddison et al., A* sampling, arXiv 1411.0030, section 2.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, top_p: float, device: torch.device):
        self.temperature = temperature
        self.nucleus = TopPLogitsWarper(top_p) if top_p < 1 else None
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(B, V) logits -> (B, V) logits with noise."""
        scores = scores.float() / self.temperature
        if self.nucleus is not None:
            scores = self.nucleus(input_ids, scores)  # pyright: ignore[reportArgumentType]
        waits = torch.empty_like(scores)
        for row, generator in zip(waits, self.generators, strict=True):
            row.exponential_(generator=generator)
        return scores - waits.log()  # -log of an exponential variable is a Gumbel variable


def _ended(text: str, finish: str, tokens: int, side: ModelSide) -> Answer:
    """The answer up to its end. Without a chat template a model may continue with the user's next turn."""
    ends = [side.stop_text] if side.stop_text else []
    if not side.uses_chat_template:
        ends += [f"\n\n{heading}:\n" for heading in PlainTemplate.headings.values()]
    for end in ends:
        text, found, _ = text.partition(end)
        finish = "stop" if found else finish
    return Answer(text.strip(), finish, tokens)
