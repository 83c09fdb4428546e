"""Rank the candidates that recipe `sample` wrote, and make preference pairs from them, with scores and margins.

Rankers are the contrast of a teacher (pi+ against pi-), a reward model, a judge, and functions such as a comparison
with a reference answer. Several of them must agree. The pairs are a JSON lines file in format `standard`, which every
training recipe reads; its column `margin` can tell a loss by how much the chosen answer is better.

    prefkd run rank --config demo/rank

A killed run resumes when the same command is run again; what is scored is only read, so that another pairing costs
nothing.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from prefkd.candidates.pairing import PairingConfig, RankedPair, make_pairs, pair_rows, unused_candidates
from prefkd.candidates.rankers import (
    ContrastRankerConfig,
    Scores,
    agreement,
    rank_by_contrast,
    rank_by_function,
    rank_by_judge,
    rank_by_reward_model,
)
from prefkd.candidates.reading import Question, candidate_files, candidate_problems, read_candidates
from prefkd.candidates.report import ranking_numbers, ranking_table, write_ranking_report
from prefkd.candidates.weights import weighted_rows
from prefkd.config import save_config
from prefkd.config.components import component_problems
from prefkd.errors import PrefkdError, Problem
from prefkd.evaluation.judge import JudgeConfig
from prefkd.evaluation.reward_model import RewardModelConfig
from prefkd.files import write_json_lines
from prefkd.ranks import Ranks, join_ranks
from prefkd.training.display import Display
from prefkd.training.settings import folder_problems

RESERVED = ("contrast", "reward_model", "judge")


@dataclass
class Config:
    """All settings of a run; the YAML file and the key=value overrides are laid over these defaults.

    Attributes:
        output_dir: Folder of the pairs, a report on them, all scores, and the resolved config.
        candidates: Folder `candidates` of a run of recipe sample, or a file of JSON lines with prompt and answer.
        contrast: A teacher ranks by what its pi+ and pi- think of an answer; null = it does not.
        reward_model: A reward model ranks; null = none.
        judge: A model behind an OpenAI-compatible endpoint ranks, comparing every two candidates in both orders; null =
            none.
        functions: Name -> a component that is called with `answer` and `references` (`prefkd.evaluation.scorers`, or
            your own) and returns a number.
        pairing: Which two candidates make a pair.
        answer_temperature: Write answers.jsonl too, which recipe dskd_distill can learn from without pairs: all answers
            with a score, weighted by N softmax(score / temperature) among the N of a prompt. In standard deviations of
            the score; null = do not.
        device: `auto` takes the GPU where there is one.
    """

    output_dir: Path
    candidates: Path
    contrast: ContrastRankerConfig | None = None
    reward_model: RewardModelConfig | None = None
    judge: JudgeConfig | None = None
    functions: dict[str, Any] = field(default_factory=dict)
    pairing: PairingConfig = field(default_factory=PairingConfig)
    answer_temperature: float | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def outputs(self) -> tuple[str, ...]:
        """What a later stage of a pipeline can build on."""
        return ("pairs.jsonl",) if self.answer_temperature is None else ("pairs.jsonl", "answers.jsonl")

    def problems(self) -> Iterator[Problem | str]:
        yield from folder_problems(self.output_dir)
        yield from candidate_problems(self.candidates, "candidates")
        if not (self.contrast or self.reward_model or self.judge or self.functions):
            yield "contrast: there is no ranker; give contrast, reward_model, judge or functions"
        for name, function in self.functions.items():
            if name in RESERVED:
                yield f"functions.{name}: is the name of another ranker; rename it"
            elif not isinstance(function, dict):
                yield f"functions.{name}: {function!r} is not a component, a section with _component_: dotted.path"
            else:
                lines = component_problems(function, supplied=("answer", "references"))
                yield from (f"functions.{name}.{line}" for line in lines)
        if self.answer_temperature is not None and not 0 < self.answer_temperature < math.inf:
            yield f"answer_temperature: {self.answer_temperature} is not a temperature; use 1, or null for no answers"
        if self.device == "cuda" and not torch.cuda.is_available():
            yield Problem("device", "cuda is not available here; use auto or cpu", about="device")


@dataclass
class Run:
    """What `setup` prepares and `rank` uses.

    Attributes:
        left_out: Candidates that are not ranked, by reason.
        read_in_part: Candidates that a ranker did not read as a whole, by ranker.
    """

    ranks: Ranks
    display: Display
    questions: list[Question]
    left_out: Counter[str]
    read_in_part: Counter[str] = field(default_factory=Counter)


def load_data(config: Config, ranks: Ranks) -> tuple[list[Question], Counter[str]]:
    """Read the candidates, those to the same prompt together."""
    with ranks.main_first():
        return read_candidates(config.candidates)


def setup(config: Config, ranks: Ranks) -> Run:
    """Load the data, and say what is going to happen. Each ranker loads what it needs when its turn comes."""
    display = Display(ranks)
    questions, left_out = load_data(config, ranks)
    if ranks.is_main:
        config.output_dir.mkdir(parents=True, exist_ok=True)
        save_config(config, config.output_dir / "config.yaml")
    rankers = {
        "contrast": config.contrast and f"{config.contrast.teacher.label}, {config.contrast.contrast.kind}",
        "reward_model": config.reward_model and config.reward_model.path,
        "judge": config.judge and f"{config.judge.model} at {config.judge.base_url}",
        **{name: function["_component_"] for name, function in config.functions.items()},
    }
    display.table(
        "rank",
        {
            "candidates": f"{sum(len(one.candidates) for one in questions)} for {len(questions)} prompts",
            "of": ", ".join(file.name for file in candidate_files(config.candidates)),
            **{name: ranker for name, ranker in rankers.items() if ranker},
            "pairing": config.pairing.kind,
            "output": config.output_dir,
        },
    )
    return Run(ranks, display, questions, left_out)


def rank(config: Config, run: Run) -> dict[str, Scores]:
    """Let each ranker score all candidates."""
    questions, folder, ranks = run.questions, config.output_dir / "scores", run.ranks
    found: dict[str, Scores] = {}
    if config.contrast is not None:
        path = folder / "contrast.jsonl"
        found["contrast"] = rank_by_contrast(questions, config.contrast, path, ranks, run.display, run.read_in_part)
    if config.reward_model is not None:
        path = folder / "reward_model.jsonl"
        rewards = rank_by_reward_model(questions, config.reward_model, path, ranks, run.display, run.read_in_part)
        found["reward_model"] = rewards
    if config.judge is not None:
        found["judge"] = rank_by_judge(questions, config.judge, folder / "judge.jsonl", ranks)
    for name, function in config.functions.items():
        found[name] = rank_by_function(questions, function)
    return found


def save(config: Config, run: Run, rankers: dict[str, Scores]) -> dict[str, object]:
    """Make pairs, write them and the report, and say what was written."""
    scores = agreement(rankers) if len(rankers) > 1 else next(iter(rankers.values()))
    pairs: list[RankedPair]
    pairs, dropped = make_pairs(run.questions, scores, rankers, config.pairing)
    left_out = run.left_out + unused_candidates(run.questions, scores, config.pairing)
    numbers = ranking_numbers(run.questions, scores, rankers, pairs, left_out, dropped, run.read_in_part)
    write_ranking_report(config.output_dir, numbers, pairs)
    run.display.console.print(ranking_table(numbers, pairs))
    files = {"report": "rank_report.html", "numbers": "rank_report.json", "scores": "scores"}
    if config.answer_temperature is not None:
        weighted = weighted_rows(run.questions, scores, config.answer_temperature)
        write_json_lines(config.output_dir / "answers.jsonl", weighted)
        files["answers"] = "answers.jsonl"
    if not pairs:
        reasons, candidates = (
            ", ".join(f"{count} {reason}" for reason, count in counts.most_common()) for counts in (dropped, left_out)
        )
        others = f"; candidates left out: {candidates}" if candidates else ""
        raise PrefkdError(f"no prompt gives a pair ({reasons}{others}); sample more answers, or change pairing")
    write_json_lines(config.output_dir / "pairs.jsonl", pair_rows(pairs))
    return {name: config.output_dir / file for name, file in ({"pairs": "pairs.jsonl"} | files).items()}


def main(config: Config) -> None:
    """Run the recipe."""
    with join_ranks(config.device) as ranks:
        run = setup(config, ranks)
        rankers = rank(config, run)
        if ranks.is_main:
            run.display.table("files", save(config, run, rankers))
            pairs = config.output_dir / "pairs.jsonl"
            run.display.say(
                "next, with your config in place of CONFIG: "
                f"prefkd run tis_dpo_distill --config CONFIG data.source={pairs}"
            )
