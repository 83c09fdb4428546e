"""Let models answer prompts several times each, as candidates from which recipe `rank` makes preference pairs.

A model is a student, a teacher, a checkpoint of a run, or one behind a server; each reads prompts in its own chat
template. Prompts come from a file, or are those of a set of pairs. On-policy data is what recent preference training
gains most from: GKD, arXiv 2306.13649; SimPO, arXiv 2405.14734.

    prefkd run sample --config demo/sample

A killed run resumes when the same command is run again; what is answered is only read. Of several processes each
answers its part.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from prefkd.candidates.sampling import SampledConfig, describe, distinct, sample_answers
from prefkd.config import save_config
from prefkd.config.hints import size_problems
from prefkd.errors import Problem
from prefkd.evaluation.checkpoints import Checkpoint
from prefkd.evaluation.generation import SamplingConfig
from prefkd.evaluation.prompts import Prompt, PromptsConfig, read_prompts
from prefkd.files import write_json
from prefkd.ranks import Ranks, join_ranks
from prefkd.terminal import table
from prefkd.training.display import Display
from prefkd.training.settings import folder_problems

MOST_ANSWERS = 10_000  # to one prompt


@dataclass
class Config:
    """All settings of a run; the YAML file and the key=value overrides are laid over these defaults.

    Attributes:
        output_dir: Folder of the candidates, a report on them, and the resolved config.
        prompts: The prompts.
        models: Name -> who answers. The names stand in the candidates.
        answers: Answers of each model to each prompt.
        sampling: How they are written.
        device: `auto` takes the GPU where there is one.
    """

    output_dir: Path
    prompts: PromptsConfig
    models: dict[str, SampledConfig]
    answers: int = 4
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=1.0))
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def outputs(self) -> tuple[str, ...]:
        """What a later stage of a pipeline can build on."""
        return ("candidates",)

    def problems(self) -> Iterator[Problem | str]:
        yield from folder_problems(self.output_dir)
        yield from size_problems(self, "answers", most=MOST_ANSWERS)
        if not self.models:
            yield "models: there are none; give them as name: {path: ...}"
        for name in self.models:
            if not re.fullmatch(r"[\w.-]+", name):
                yield f"models.{name}: is the name of a file as well; use letters, digits, - and _"
        for file in sorted((self.output_dir / "candidates").glob("*.jsonl")):
            if file.stem not in self.models:  # recipe rank reads the whole folder
                yield f"models: {file} is of a model that is not one of these; remove it, or use another output_dir"
        if self.answers > 1 and self.sampling.temperature == 0:
            yield f"sampling.temperature: 0 gives the same answer {self.answers} times; raise it, or use answers: 1"
        if self.device == "cuda" and not torch.cuda.is_available():
            yield Problem("device", "cuda is not available here; use auto or cpu", about="device")


@dataclass
class Run:
    """What `setup` prepares and `sample` uses."""

    ranks: Ranks
    display: Display
    prompts: list[Prompt]
    models: list[Checkpoint]


def load_data(config: Config, ranks: Ranks) -> list[Prompt]:
    """Read the prompts, each of them once."""
    with ranks.main_first():
        return distinct(read_prompts(config.prompts))


def setup(config: Config, ranks: Ranks) -> Run:
    """Load the data, and say what is going to happen. Models are loaded one after the other, as they answer."""
    display = Display(ranks)
    prompts = load_data(config, ranks)
    models = [Checkpoint(name, model, ranks.device) for name, model in config.models.items()]
    if ranks.is_main:
        config.output_dir.mkdir(parents=True, exist_ok=True)
        save_config(config, config.output_dir / "config.yaml")
    display.table(
        "sample",
        {model.name: model.description for model in models}
        | {
            "prompts": f"{len(prompts)} different ones, {config.answers} answers of each model",
            "sampling": f"temperature {config.sampling.temperature:g}, top_p {config.sampling.top_p:g}, "
            f"{config.sampling.max_new_tokens} tokens at most, seed {config.sampling.seed}",
            "on": f"{ranks.device}, {ranks.processes}",
            "output": config.output_dir,
        },
    )
    return Run(ranks, display, prompts, models)


def sample(config: Config, run: Run) -> dict[str, dict[str, Any]]:
    """Let each model answer while it is in memory; returns what is to be said of its answers."""
    found, folder = {}, config.output_dir / "candidates"
    with run.display.progress(len(run.models) * len(run.prompts) * config.answers) as bar:
        for model in run.models:
            # --------------------------------------------------------------------------------------------- one model
            rows = sample_answers(
                model, run.prompts, config.sampling, answers=config.answers, folder=folder, bar=bar, ranks=run.ranks
            )
            found[model.name] = describe(rows)
            model.release()
            # ------------------------------------------------------------------------------------------------------
    return found


def save(config: Config, run: Run, found: dict[str, dict[str, Any]]) -> dict[str, object]:
    """Report on the answers, and say what was written."""
    shown = table("model", "answers", "tokens: mean", "median", "most", "empty", "cut", "duplicates", "prompts cut")
    for name, numbers in found.items():
        tokens = numbers["tokens"]
        counts = [f"{numbers[key]} ({numbers[key] / numbers['answers']:.0%})" for key in ("empty", "cut", "duplicates")]
        lengths = [f"{tokens['mean']:.1f}", f"{tokens['median']:.0f}", str(tokens["most"])]
        prompts = f"{numbers['prompts_cut']} ({numbers['prompts_cut'] / numbers['prompts']:.0%})"
        shown.add_row(name, str(numbers["answers"]), *lengths, *counts, prompts)
    run.display.console.print(shown)
    report = config.output_dir / "sample_report.json"
    write_json(report, found)
    return {"candidates": config.output_dir / "candidates", "report": report}


def main(config: Config) -> None:
    """Run the recipe."""
    with join_ranks(config.device) as ranks:
        run = setup(config, ranks)
        found = sample(config, run)
        if ranks.is_main:
            run.display.table("files", save(config, run, found))
            candidates = config.output_dir / "candidates"
            run.display.say(
                f"next, with your config in place of CONFIG: prefkd run rank --config CONFIG candidates={candidates}"
            )
