"""Answers of all checkpoints to the same prompts, and what functions, a reward model and a judge make of them.

    <folder>/answers/<checkpoint>.jsonl     key, prompt, prompt_cut, checkpoint, answer, settings
    <folder>/rewards/<checkpoint>.jsonl     key, reward, truncated
    <folder>/judge/<checkpoint>.jsonl       key, prompt, order, reply; against the baseline
    <folder>/alpaca_eval/<checkpoint>.json  what that tool reads; other tools of `write_for` in the same way

What is on disk is not made again, so that answers can be scored again without the models that gave them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from prefkd.config.components import bind, component_problems, import_dotpath
from prefkd.data.fingerprints import Fingerprint, folder_fingerprint
from prefkd.errors import PrefkdError, nearest
from prefkd.evaluation.checkpoints import Checkpoint, in_rounds, on_all
from prefkd.evaluation.exchange import WRITERS
from prefkd.evaluation.generation import PromptBatch, SamplingConfig, answer_batch, plan_batches
from prefkd.evaluation.judge import Comparison, JudgeConfig, Judgement, judge
from prefkd.evaluation.prompts import Prompt, PromptsConfig, prompts_fingerprint, read_prompts
from prefkd.evaluation.records import Records
from prefkd.evaluation.reward_model import RewardModel, RewardModelConfig
from prefkd.evaluation.scorers import contains, exact_match, rouge_l
from prefkd.evaluation.statistics import preferred
from prefkd.evaluation.table import Series
from prefkd.evaluation.tasks import Attempts
from prefkd.files import fingerprint
from prefkd.ranks import Ranks
from prefkd.training.display import Bar

# Scorers of prefkd that compare with references, and whose numbers are read as percent.
COMPARING = (exact_match, contains, rouge_l)


@dataclass
class AnswersConfig:
    """Prompts that checkpoints answer, and who scores the answers.

    Attributes:
        prompts: The prompts to answer.
        sampling: How it is answered.
        scorers: Name -> a component that is called with `answer` and `references` (`prefkd.evaluation.scorers`, or
            your own).
        reward_model: A model that scores each answer; with a baseline also the win rate against it.
        judge: A model behind an endpoint that compares each answer with the baseline's.
        write_for: Tools in whose formats the answers are written as well: alpaca_eval, arena_hard.
    """

    prompts: PromptsConfig
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    scorers: dict[str, Any] = field(default_factory=dict)
    reward_model: RewardModelConfig | None = None
    judge: JudgeConfig | None = None
    write_for: list[str] = field(default_factory=list)

    def problems(self) -> Iterator[str]:
        for tool in self.write_for:
            if tool not in WRITERS:
                yield f"write_for: there is no format {tool}{nearest(tool, WRITERS)}; use {' or '.join(WRITERS)}"
        for name, scorer in self.scorers.items():
            if not isinstance(scorer, dict):
                yield f"scorers.{name}: {scorer!r} is not a component, a section with _component_: dotted.path"
            else:
                lines = component_problems(scorer, supplied=("answer", "references"))
                yield from (f"scorers.{name}.{line}" for line in lines)


class AnswersTask:
    """Lets checkpoints answer prompts, and others score the answers.

    Args:
        name: Name of the task.
        config: Prompts, sampling and scorers.
        folder: Where answers and scores go.
        baseline: Name of the checkpoint that the others are compared with, or None.
        ranks: The processes that share the prompts.

    Raises:
        PrefkdError: A prompt lacks the references that a scorer compares with.
    """

    def __init__(self, name: str, config: AnswersConfig, *, folder: Path, baseline: str | None, ranks: Ranks):
        self.name = name
        self.config = config
        self.folder = folder
        self.baseline = baseline
        self.ranks = ranks
        self.prompts = read_prompts(config.prompts)
        self.size = len(self.prompts)
        self.answers: dict[str, dict[str, str]] = {}
        self._scores: list[Series] = []
        self._notes: list[str] = []
        unnamed = next((prompt.key for prompt in self.prompts if prompt.uid is None), None)
        if "arena_hard" in config.write_for and unnamed is not None:
            raise PrefkdError(f"answers.{name}.write_for: {unnamed} has no uid, by which Arena-Hard finds its question")
        bare = next((prompt.key for prompt in self.prompts if not prompt.references), None)
        for scorer, component in config.scorers.items():
            if bare is not None and import_dotpath(component["_component_"]) in COMPARING:
                raise PrefkdError(
                    f"answers.{name}.scorers.{scorer}: {bare} has no references to compare with; add them"
                )

    def ask(self, checkpoint: Checkpoint, bar: Bar) -> None:
        """Let a checkpoint answer the prompts that it has not answered before."""
        settings = self.config.sampling.fingerprint()
        parts = checkpoint.fingerprint | settings | {"prompts": prompts_fingerprint(self.prompts)}
        records = Records(self.folder / "answers" / f"{checkpoint.name}.jsonl", parts, self.ranks)
        if records.finished:
            bar.advance(f"{self.name}: {checkpoint.name}, answered earlier", steps=self.size)
        else:
            self._answer(checkpoint, records, settings, bar)
        rows = [records.rows[prompt.key] for prompt in self.prompts]
        self.answers[checkpoint.name] = {row["key"]: row["answer"] for row in rows}
        cut = sum(row.get("prompt_cut", False) for row in rows)  # answers of an older version do not tell
        if cut:
            most = f"more than {self.config.sampling.max_prompt_length} tokens"
            self._notes.append(
                f"{self.name}, {checkpoint.name}: {cut} of {self.size} prompts have {most}; only their end was read"
            )

    def score(self, attempts: Attempts) -> None:
        """Score all answers, and write them for the tools that are named."""
        for tool in self.config.write_for:
            for checkpoint, answers in self.answers.items():
                WRITERS[tool](self.folder / tool, checkpoint, self.prompts, answers)
        self._score_by_functions(attempts)
        if self.config.reward_model is not None:
            self._score_by_reward_model(self.config.reward_model, attempts)
        if self.config.judge is not None:
            self._score_by_judge(self.config.judge, attempts)

    def series(self) -> Iterator[Series]:
        """The scores of all checkpoints."""
        yield from self._scores

    def notes(self) -> Iterator[str]:
        """What was not read as a whole, and what became of comparisons that are neither a win nor a loss."""
        yield from self._notes

    def _answer(self, checkpoint: Checkpoint, records: Records, settings: Fingerprint, bar: Bar) -> None:
        batches = plan_batches(self.prompts, checkpoint.side, self.config.sampling)
        left = [batch for batch in batches if any(prompt.key not in records.rows for prompt in batch.prompts)]
        bar.advance(f"{self.name}: {checkpoint.name}", steps=self.size - sum(len(batch.prompts) for batch in left))
        if left:
            on_all(self.ranks, checkpoint.load)

        def answer(batch: PromptBatch) -> list[dict[str, Any]]:
            answers = answer_batch(checkpoint.served or checkpoint.lm, checkpoint.side, batch, self.config.sampling)
            return [
                {
                    "key": prompt.key,
                    "prompt": prompt.messages,
                    "prompt_cut": is_cut,
                    "checkpoint": checkpoint.name,
                    "answer": text,
                    "settings": settings,
                }
                for prompt, is_cut, text in zip(batch.prompts, batch.is_cut, answers, strict=True)
            ]

        for found in in_rounds(self.ranks, left, answer):
            records.add(found)
            bar.advance(f"{self.name}: {checkpoint.name}", steps=len(found))
        records.finish()

    def _score_by_functions(self, attempts: Attempts) -> None:
        for metric, component in self.config.scorers.items():
            scorer, is_percent = bind(component), import_dotpath(component["_component_"]) in COMPARING
            for checkpoint, answers in self.answers.items():
                with attempts.attempt(checkpoint, f"{self.name}, {metric}"):
                    values = {
                        prompt.key: float(scorer(answer=answers[prompt.key], references=prompt.references))
                        for prompt in self.prompts
                    }
                    self._keep(metric, checkpoint, values, is_percent=is_percent)

    def _score_by_reward_model(self, config: RewardModelConfig, attempts: Attempts) -> None:
        model: RewardModel | None = None
        rewards: dict[str, dict[str, float]] = {}
        folder = Path(config.path)
        parts: Fingerprint = {f"reward_model.{name}": value for name, value in vars(config).items()}
        if folder.is_dir():
            parts["reward_model.model"] = folder_fingerprint(folder)
        for checkpoint, answers in self.answers.items():
            with attempts.attempt(checkpoint, f"{self.name}, reward"):
                path = self.folder / "rewards" / f"{checkpoint}.jsonl"
                own: Fingerprint = {"answers": fingerprint("answers", prompts_fingerprint(self.prompts), answers)}
                records = Records(path, parts | own, _alone(self.ranks))
                for batch in _batches(self.prompts, answers, config.batch_size):
                    if all(prompt.key in records.rows for prompt in batch):
                        continue
                    model = model or RewardModel(config, self.ranks.device)
                    records.add(_reward_rows(model, batch, answers))
                records.finish()
                rows = [records.rows[prompt.key] for prompt in self.prompts]
                rewards[checkpoint] = {row["key"]: row["reward"] for row in rows}
                truncated = sum(row.get("truncated", False) for row in rows)  # rewards of an older version do not tell
                if truncated:
                    self._notes.append(
                        f"{self.name}, {checkpoint}: {truncated} of {self.size} conversations have more than "
                        f"{config.max_length} tokens; the reward model read only their end"
                    )
                self._keep("reward", checkpoint, rewards[checkpoint], is_percent=False)
        for checkpoint, own_rewards in rewards.items():
            if self.baseline in rewards and checkpoint != self.baseline:
                margins = np.array([own_rewards[key] - rewards[self.baseline][key] for key in own_rewards])
                wins = dict(zip(own_rewards, preferred(margins).tolist(), strict=True))
                self._keep("reward_win_rate", checkpoint, wins)

    def _score_by_judge(self, config: JudgeConfig, attempts: Attempts) -> None:
        assert self.baseline is not None, "the config says so"
        others = self.answers.get(self.baseline)
        for checkpoint, answers in self.answers.items():
            if checkpoint == self.baseline:
                continue
            with attempts.attempt(checkpoint, f"{self.name}, judge"):
                if others is None:
                    raise PrefkdError(f"the baseline {self.baseline} has no answers to compare with")
                records = Records(
                    self.folder / "judge" / f"{checkpoint}.jsonl", config.fingerprint(), _alone(self.ranks)
                )
                comparisons = [
                    Comparison(prompt.key, prompt.messages, answers[prompt.key], others[prompt.key])
                    for prompt in self.prompts
                ]
                judgement = judge(comparisons, config, records)
                self._keep("judge_win_rate", checkpoint, judgement.wins)
                self._notes.append(self._describe(checkpoint, judgement))

    def _describe(self, checkpoint: str, judgement: Judgement) -> str:
        counts = judgement.counts
        named = ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "all won or lost"
        more = "; the same command asks for the rest" if counts["unanswered"] or counts["not asked"] else ""
        return f"{self.name}, {checkpoint}, judged against {self.baseline}, {self.size} comparisons: {named}{more}"

    def _keep(self, metric: str, checkpoint: str, values: dict[str, float], *, is_percent: bool = True) -> None:
        if not np.isfinite(list(values.values())).all():
            raise PrefkdError(f"{metric} is not a number for some answers")
        if values:
            self._scores.append(Series(self.name, "", metric, checkpoint, values, is_percent=is_percent))


def _batches(prompts: list[Prompt], answers: dict[str, str], size: int) -> Iterator[list[Prompt]]:
    """Prompts whose answers are of like length, in batches."""
    ordered = sorted(prompts, key=lambda prompt: len(answers[prompt.key]), reverse=True)
    return (ordered[first : first + size] for first in range(0, len(ordered), size))


def _reward_rows(model: RewardModel, prompts: list[Prompt], answers: dict[str, str]) -> list[dict[str, Any]]:
    conversations = [(prompt.messages, answers[prompt.key]) for prompt in prompts]
    found = zip(prompts, model.score(conversations), model.truncated(conversations), strict=True)
    return [{"key": prompt.key, "reward": reward, "truncated": is_part} for prompt, reward, is_part in found]


def _alone(ranks: Ranks) -> Ranks:
    """The main rank scores without the others."""
    return Ranks(0, 1, ranks.device)
