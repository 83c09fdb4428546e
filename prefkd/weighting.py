"""From a teacher's scores to the weights of parent tokens, as the config says."""

import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from prefkd.config.hints import describe, fits
from prefkd.data.batches import PairBatch, ParentScores
from prefkd.data.rows import ANSWERS
from prefkd.data.scores import open_scores, scores_problems
from prefkd.errors import Problem, nearest
from prefkd.files import fingerprint
from prefkd.method.weights import TRANSFORMS, importance_weights, transform_scores


@dataclass
class WeightConfig:
    """How much each parent token counts.

    Attributes:
        contrast: Where pi+ and pi- come from. `uniform`: nowhere, all weights are 1. `prompt_pair`: a teacher in memory
            reads under a positive and a negative instruction, TIS-DPO (P), arXiv 2410.04350. `scores`: they stand in
            `teacher.scores`, whichever contrast was scored.
        positive, negative: The two instructions of `prompt_pair`; `{prompt}` stands for the user's last message.
        method: `exp` is the paper's weight; the others are the transforms of the published code.
        parameters: Arguments of the method, for `exp`: k, low, high. `random` draws anew for each answer, from `seed`,
            or 0, and the name of the answer, so that it has the same weights in every epoch and after a resume.
        reduce: A parent's score is the sum or the mean of its tokens' scores.
        eos_weight: Weight of the end of the answer. 1.0 makes uniform weights equal to DPO, 0.0 is the published code.
    """

    contrast: Literal["uniform", "prompt_pair", "scores"] = "prompt_pair"
    # Behind the message, since truncation takes the start of a long prompt away.
    positive: str = "{prompt}\n\nGive a helpful, honest and harmless answer."
    negative: str = "{prompt}\n\nGive an unhelpful, dishonest and harmful answer."
    method: Literal["exp", "origin", "binary", "threshold", "threshold_and_scale", "random", "rank_based"] = "exp"
    parameters: dict[str, Any] = field(default_factory=dict)
    reduce: Literal["sum", "mean"] = "sum"
    eos_weight: float = 1.0

    def response_weights(self, log_ratio: Tensor, sign: float, pair: str = "") -> Tensor:
        """Weights (n,) of the parents of one response from their log-ratios (n,); mu = +1 if chosen, -1 if rejected.

        Args:
            pair: Names the pair that the response is of.
        """
        if self.method == "exp":
            return importance_weights(log_ratio, sign, **self.parameters)
        parameters = self.parameters
        if self.method == "random":
            seed = int(fingerprint(parameters.get("seed") or 0, pair, sign), 16)
            parameters = parameters | {"seed": seed}
        return transform_scores(sign * log_ratio, self.method, **parameters)  # score s = mu d

    @property
    def prompts(self) -> tuple[str, str] | None:
        """The positive and the negative instruction, None where a teacher in memory is not asked to follow any."""
        return (self.positive, self.negative) if self.contrast == "prompt_pair" else None

    def problems(self) -> Iterator[str]:
        for name in ("positive", "negative"):
            if "{prompt}" not in getattr(self, name):
                yield f"{name}: {getattr(self, name)!r} lacks {{prompt}}; put it where the user's message belongs"
        if self.eos_weight < 0:
            yield f"eos_weight: {self.eos_weight} is negative; use 0.0 to leave the end of the answer out"
        elif self.eos_weight == math.inf:
            yield "eos_weight: inf leaves nothing to the text; use 1.0"
        wrong = list(self._parameter_problems())
        yield from wrong
        if not wrong:
            yield from (f"parameters: {problem}" for problem in self._weight_problems())

    def _weight_problems(self) -> Iterator[str]:
        """What the method makes of some log-ratios that is no use as weights."""
        log_ratios = torch.linspace(-2, 2, 9)
        try:
            weights = torch.stack([self.response_weights(log_ratios, sign) for sign in (1.0, -1.0)])
        except (ValueError, TypeError, ArithmeticError) as error:
            yield str(error)
            return
        if not weights.isfinite().all():
            yield "they make weights that are not finite; use smaller ones"
        elif not weights.any():
            yield "they make all weights 0, so nothing would be learned; use larger ones"
        elif self.method != "origin" and (weights <= 0).all():
            yield "they make no weight positive, which teaches the opposite; use positive ones"

    def _parameter_problems(self) -> Iterator[str]:
        function = importance_weights if self.method == "exp" else TRANSFORMS[self.method]
        accepted = {name: parameter.annotation for name, parameter in inspect.signature(function).parameters.items()}
        for name in ("log_ratio", "sign", "scores"):
            accepted.pop(name, None)
        for name, value in self.parameters.items():
            if name not in accepted:
                yield f"parameters.{name}: unknown to method {self.method}{nearest(name, accepted)}"
            elif not fits(value, accepted[name]):
                yield f"parameters.{name}: {value!r} is not {describe(accepted[name])}"


def contrast_problems(config: WeightConfig, scores: Path | None) -> Iterator[Problem]:
    """Why weights cannot be had from a teacher.

    Args:
        scores: The teacher's folder of scores, None for a model in memory.
    """
    if scores is None and config.contrast == "scores":
        text = "scores, but there is no teacher.scores; use prompt_pair, uniform, or score first"
        yield Problem("weights.contrast", text)
    elif scores is not None and config.contrast == "prompt_pair":
        text = "prompt_pair needs a model in memory; use scores (whichever contrast was scored) or uniform"
        yield Problem("weights.contrast", text)
    elif scores is None or config.contrast == "uniform" or any(scores_problems(scores)):
        return
    elif not open_scores(scores).has_contrast:
        text = f"scores, but {scores} was written without a contrast; use uniform, or score with one"
        yield Problem("weights.contrast", text, paths=(scores,))


def parent_log_ratio(scores: ParentScores, batch: PairBatch, reduce: Literal["sum", "mean"]) -> Tensor:
    """d(P) = log pi+(P) - log pi-(P), (2, B, P), or its mean over the teacher's tokens in P."""
    assert scores.positive is not None and scores.negative is not None, "a config without a contrast has weights 1"
    log_ratio = scores.positive - scores.negative  # d(P) = sum of log pi+(y_t) - log pi-(y_t) for t in P
    if reduce == "mean":
        tokens = batch.parent_sums(torch.ones_like(batch.teacher.targets, dtype=log_ratio.dtype), batch.teacher)
        log_ratio = log_ratio / tokens.clamp(min=1)
    return log_ratio


def parent_weights(config: WeightConfig, scores: ParentScores | None, batch: PairBatch) -> Tensor:
    """The weights of all parents of a batch, (2, B, P); 0 where there is no parent.

    Args:
        scores: Log-probs of the teacher, None where all weights are 1.
    """
    weights = batch.parent_mask.float()
    if config.contrast != "uniform":
        assert scores is not None, "a teacher is asked for its contrast"
        log_ratio = parent_log_ratio(scores, batch, config.reduce)
        # The end of an answer has a weight of its own and no rank among its text.
        signed = zip(log_ratio, (1.0, -1.0), batch.text_parents, strict=True)
        if config.method == "exp":  # of each parent alone
            each = torch.stack([config.response_weights(answers, sign) for answers, sign, _ in signed])
            weights = torch.where(batch.parent_mask & ~batch.eos_mask, each, weights)
        else:
            for side, (answers, sign, counts) in enumerate(signed):
                for pair, count in enumerate(counts):
                    own = config.response_weights(answers[pair, :count], sign, batch.names[pair])
                    weights[side, pair, :count] = own
    return torch.where(batch.eos_mask, config.eos_weight, weights)


def weight_metrics(
    config: WeightConfig, weights: Tensor, scores: ParentScores | None, batch: PairBatch
) -> dict[str, Tensor]:
    """What to log of weights (2, B, P) and of the contrast that made them, (B,) each.

    Of each chosen and each rejected answer the mean and the standard deviation of its weights, and of each pair
    `contrast_accuracy`: 1 if the contrast finds the chosen answer better, 0 if the rejected one, 1/2 if neither.
    """
    metrics = {}
    if config.contrast != "uniform":
        assert scores is not None, "a teacher is asked for its contrast"
        assert scores.positive is not None and scores.negative is not None, "a config without a contrast has weights 1"
        chosen, rejected = (scores.positive - scores.negative).sum(-1)
        metrics["contrast_accuracy"] = ((chosen - rejected).sign() + 1) / 2
    for name, values, exists in zip(ANSWERS, weights, batch.parent_mask, strict=True):
        count = exists.sum(-1)
        mean = values.sum(-1) / count
        variance = ((values - mean[:, None]).square() * exists).sum(-1) / count
        metrics |= {f"{name}_weight_mean": mean, f"{name}_weight_deviation": variance.sqrt()}
    return metrics
