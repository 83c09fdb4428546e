"""Who says during a training whether sampled answers are better than those before it: `training.win_rate`.

    training:
      sample_answers: 32
      win_rate: {_component_: prefkd.evaluation.win_rate.ByRewardModel, path: models/my-reward-model}

A class of your own can take their place: its arguments are the settings, and `wins` is called at each evaluation. It
may have `problems`, which is asked before a model is loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from prefkd.evaluation.judge import Comparison, JudgeConfig, judge
from prefkd.evaluation.records import Records
from prefkd.evaluation.reward_model import RewardModel, RewardModelConfig
from prefkd.evaluation.statistics import preferred
from prefkd.ranks import Ranks


@dataclass
class ByRewardModel(RewardModelConfig):
    """A reward model, which stays in memory next to the models of the run; its settings."""

    _model: RewardModel | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.path = str(self.path)  # YAML reads a folder called 7 as a number

    def wins(self, comparisons: Sequence[Comparison], *, folder: Path, device: torch.device) -> list[float]:
        """1 for each answer with the higher reward, 0 for the lower, 1/2 where both have the same.

        Raises:
            PrefkdError: The model cannot be loaded.
        """
        self._model = self._model or RewardModel(self, device)
        rewards = [
            self._model.score([(one.messages, answer) for answer in (one.own, one.other)]) for one in comparisons
        ]
        return preferred(np.subtract(*np.array(rewards).T)).tolist()


@dataclass
class ByJudge(JudgeConfig):
    """A judge behind an OpenAI-compatible endpoint, asked in both orders; its settings."""

    def wins(self, comparisons: Sequence[Comparison], *, folder: Path, device: torch.device) -> list[float]:
        """The verdict on each comparison that has one. Replies are kept in `judge.jsonl` and never asked for again.

        Raises:
            PrefkdError: The endpoint refuses the key or the model, or does not answer.
        """
        records = Records(folder / "judge.jsonl", self.fingerprint(), Ranks(0, 1, device))
        return list(judge(comparisons, self, records).wins.values())
