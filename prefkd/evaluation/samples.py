"""Answers of a model in training to a few held-out prompts, `prefkd.training.samples`."""

from typing import Any

from transformers import PreTrainedModel

from prefkd.config.fields import setting
from prefkd.data.pairs import DataConfig, load_pairs
from prefkd.data.templates import ModelSide
from prefkd.evaluation.generation import SamplingConfig, answer_batch, plan_batches
from prefkd.evaluation.prompts import Prompt
from prefkd.ranks import Ranks
from prefkd.training.samples import Sample, write_samples


class Samples:
    """Lets a model answer the same prompts again and again, the likeliest token each time.

    Of several processes none answers: a model that is split over them cannot generate.

    Args:
        config: The recipe's config, with `output_dir`, `training` and pairs.
        lm: The model.
        side: How it reads.
    """

    def __init__(self, config: Any, lm: PreTrainedModel, side: ModelSide, ranks: Ranks):
        training, data = config.training, setting(config, DataConfig)
        assert data is not None, "a recipe trains on pairs"
        self._lm, self._side, self._output_dir = lm, side, config.output_dir
        self._sampling = SamplingConfig(
            max_new_tokens=training.sample_tokens,
            max_prompt_length=data.max_prompt_length,
            batch_size=max(training.sample_answers, 1),
        )
        asked = training.sample_answers if ranks.world_size == 1 else 0
        self._prompts: list[Prompt] = []
        if asked:
            held_out = load_pairs(data).held_out
            rows: list[Any] = [held_out[i] for i in range(min(asked, len(held_out)))]
            better = "rejected" if data.reverse else "chosen"
            self._prompts = [Prompt(f"{row['file']}:{row['row']}", row["prompt"], [row[better]]) for row in rows]

    def __call__(self, step: int) -> dict[str, float]:
        """Answer the prompts after a step, and append the answers to samples.jsonl.

        Returns:
            samples/words, the mean length of the answers; nothing without prompts.
        """
        found = self._answer(step)
        if not found:
            return {}
        write_samples(self._output_dir, found)
        return {"samples/words": sum(len(sample.answer.split()) for sample in found) / len(found)}

    def _answer(self, step: int) -> list[Sample]:
        """Answer the prompts with the weights as they are."""
        lm, own = self._lm, self._lm.generation_config
        was_training = lm.training
        lm.eval()
        try:
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
