"""Answers of a model in training to a few held-out prompts, `prefkd.training.samples`, and how often they win."""

import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from prefkd.config import build
from prefkd.config.fields import setting
from prefkd.data.pairs import DataConfig, load_pairs
from prefkd.data.rows import row_name
from prefkd.data.sides import ModelSide
from prefkd.errors import DataError, PrefkdError
from prefkd.evaluation.generation import SamplingConfig, answer_batch, plan_batches
from prefkd.evaluation.judge import Comparison
from prefkd.evaluation.prompts import Prompt
from prefkd.models.logprob_model import LogprobModel
from prefkd.ranks import Ranks
from prefkd.training.samples import Sample, first_answers, read_samples, write_samples

logger = logging.getLogger(__name__)


class Samples:
    """Lets a model answer the same prompts again and again, the likeliest token each time.

    Of several processes none answers: a model that is split over them cannot generate.

    Args:
        config: The recipe's config, with `output_dir`, `training` and pairs.
        model: The model.
        side: How it reads.
    """

    def __init__(self, config: Any, model: LogprobModel, side: ModelSide, ranks: Ranks):
        training, data = config.training, setting(config, DataConfig)
        assert data is not None, "a recipe trains on pairs"
        self._model, self._side, self._output_dir, self._device = model, side, config.output_dir, ranks.device
        self._sampling = SamplingConfig(
            max_new_tokens=training.sample_tokens,
            max_prompt_length=data.max_prompt_length,
            batch_size=max(training.sample_answers, 1),
        )
        self._judge = build(training.win_rate) if training.win_rate is not None else None
        asked = training.sample_answers if ranks.world_size == 1 else 0
        self._prompts: list[Prompt] = []
        if asked:
            better = "rejected" if data.reverse else "chosen"
            rows: Iterator[Any] = map(dict, load_pairs(data).held_out)
            prompts = (Prompt(row_name(row), row["prompt"], [row[better]]) for row in rows)
            self._prompts = list(islice(filter(self._can_read, prompts), asked))

    def __call__(self, step: int) -> dict[str, float]:
        """Answer the prompts after a step, and append the answers to samples.jsonl.

        Returns:
            samples/words, the mean length of the answers; samples/win_rate, the share that is better than before
            training, if `training.win_rate` says who decides; nothing without prompts.

        Raises:
            PrefkdError: Before training, and who decides cannot do it.
        """
        found = self._answer(step)
        if not found:
            return {}
        write_samples(self._output_dir, found)
        words = sum(len(sample.answer.split()) for sample in found) / len(found)
        return {"samples/words": words, **self._win_rate(step, found)}

    def _win_rate(self, step: int, found: Sequence[Sample]) -> dict[str, float]:
        if self._judge is None:
            return {}
        first = first_answers(read_samples(self._output_dir))
        if [sample.prompt for sample in first] != [sample.prompt for sample in found]:
            logger.warning("step %d: no win rate, since the answers before training are to other prompts", step)
            return {}
        comparisons = [
            Comparison(prompt.key, prompt.messages, own.answer, other.answer)
            for prompt, own, other in zip(self._prompts, found, first, strict=True)
        ]
        try:
            wins = self._judge.wins(comparisons, folder=self._output_dir, device=self._device)
        except PrefkdError as error:  # a training of hours is worth more than a verdict on the way
            if not step:
                raise
            logger.warning("step %d: no win rate: %s", step, error)
            return {}
        return {"samples/win_rate": sum(wins) / len(wins)} if wins else {}

    def _can_read(self, prompt: Prompt) -> bool:
        """Whether the model takes a prompt; a pair that it refuses is left out of the training too."""
        try:
            return not self._side.unreadable(self._side.encode_prompts([self._side.frame(prompt.messages)])[0])
        except DataError:
            return False

    def _answer(self, step: int) -> list[Sample]:
        """Answer the prompts with the weights as they are."""
        lm: Any = self._model.lm
        own = lm.generation_config
        was_training = lm.training
        lm.eval()
        try:
            with self._model.whole():
                answers = {
                    prompt.key: answer
                    for batch in plan_batches(self._prompts, self._side, self._sampling)
                    for prompt, answer in zip(
                        batch.prompts, answer_batch(lm, self._side, batch, self._sampling), strict=True
                    )
                }
        finally:
            lm.generation_config = own
            lm.train(was_training)
        return [
            Sample(step, prompt.messages[-1]["content"], answers[prompt.key], prompt.references[0])
            for prompt in self._prompts
        ]
