"""What a model in training has answered to a few held-out prompts: samples.jsonl in the output folder.

A row is

    step        optimizer steps before the answer
    prompt      the user's last message
    answer      the model's
    chosen      the better answer, as the data has it
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from prefkd.training.metrics import cut_back

FILE = "samples.jsonl"


@dataclass(frozen=True)
class Sample:
    """An answer."""

    step: int
    prompt: str
    answer: str
    chosen: str


@dataclass(frozen=True)
class ChangedAnswer:
    """What a model answered before it was trained, and what it answers now."""

    prompt: str
    before: str
    after: str
    chosen: str


def write_samples(output_dir: Path, samples: Sequence[Sample]) -> None:
    """Append the answers of a step, in place of those of this step and of later ones."""
    cut_back(output_dir / FILE, samples[0].step - 1)
    with (output_dir / FILE).open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(sample), ensure_ascii=False) + "\n" for sample in samples)


def read_samples(output_dir: Path) -> list[Sample]:
    """All answers so far; none if nothing was sampled."""
    path = output_dir / FILE
    if not path.is_file():
        return []
    return [Sample(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def first_answers(samples: Sequence[Sample]) -> list[Sample]:
    """Those before training."""
    return [sample for sample in samples if sample.step == samples[0].step]


def changed_answers(output_dir: Path) -> list[ChangedAnswer]:
    """The first and the latest answer to each prompt; none if nothing was sampled."""
    samples = read_samples(output_dir)
    first = first_answers(samples)
    last = samples[len(samples) - len(first) :]
    return [
        ChangedAnswer(before.prompt, before.answer, after.answer, before.chosen)
        for before, after in zip(first, last, strict=True)
    ]
