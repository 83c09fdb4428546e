"""Ranked answers as training data without pairs: each with a weight from its score."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from prefkd.candidates.rankers import Scores
from prefkd.candidates.reading import Question


def answer_weights(scores: Sequence[float], temperature: float) -> list[float]:
    """w_i = N softmax(s_i / temperature) over the N answers to a prompt: their mean is 1.

    As the temperature falls, only the best answer is left (best of N); as it rises, all count alike.
    """
    logits = np.asarray(scores, dtype=float) / temperature
    odds = np.exp(logits - logits.max())
    return (len(odds) * odds / odds.sum()).tolist()


def weighted_rows(questions: Sequence[Question], scores: Scores, temperature: float) -> Iterator[dict[str, Any]]:
    """All answers that have a score, as rows of format `answers` (`prefkd.data.formats`) with model, score, weight.

    Args:
        temperature: In standard deviations of the scores over all candidates, so that it means the same whatever ranks.
    """
    spread = float(np.std(list(scores.values()))) if scores else 0.0
    for question in questions:
        scored = [number for number in range(len(question.candidates)) if (question.key, number) in scores]
        own = [scores[question.key, number] for number in scored]
        weights = answer_weights(own, temperature * spread) if own and spread else [1.0] * len(own)
        for number, score, weight in zip(scored, own, weights, strict=True):
            candidate = question.candidates[number]
            row = {"prompt": question.messages, "answer": candidate.answer, "model": candidate.model}
            yield row | {"finish": candidate.finish, "score": score, "weight": weight}
