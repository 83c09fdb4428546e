"""What the tests of all recipes share: a run through the command line, its metrics, and log-probs by other means."""

import json
import os
from pathlib import Path
from textwrap import dedent

import pytest
import torch

from prefkd.cli.main import main
from tests.tiny import SPEEDS


def start(recipe: str, settings: str, out: Path, *overrides: str, options: tuple[str, ...] = (), code: int = 0) -> None:
    """Run a recipe with some YAML, and see how it ends."""
    config = write_config(out, f"output_dir: {out}\n{dedent(settings)}")
    assert main(["run", *options, recipe, "--config", str(config), *overrides]) == code


def write_config(out: Path, text: str) -> Path:
    """A config next to the folder of its run, whole at all times, since several processes write and read it at once."""
    config = out.parent / f"{out.name}.yaml"
    unfinished = config.with_suffix(f".{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    return unfinished.replace(config)


def train(recipe: str, settings: str, out: Path, *overrides: str, options: tuple[str, ...] = (), code: int = 0):
    """Run a recipe that trains; returns its metrics, a dictionary for each step, or nothing if it fails."""
    start(recipe, settings, out, *overrides, options=options, code=code)
    return [] if code else read_rows(out / "metrics.jsonl")


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def assert_same_metrics(one: list[dict], other: list[dict], tolerance: float) -> None:
    for left, right in zip(one, other, strict=True):
        assert left.keys() == right.keys()
        for name in left.keys() - SPEEDS:
            values = name, left[name], right[name]
            assert left[name] == pytest.approx(right[name], rel=tolerance, abs=tolerance), values


def assert_same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=tolerance, atol=tolerance, msg=name)


def answer_logprobs(lm: torch.nn.Module, before: list[int], after: list[int]) -> torch.Tensor:
    """Log-prob of each token of an answer, from whole logits."""
    logits = lm(torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(after)[:, None])[:, 0]
