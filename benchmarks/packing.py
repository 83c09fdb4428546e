"""What packed rows save: padding, and attention under a mask that hides most of what is computed.

    python benchmarks/packing.py                               # lengths like those of UltraFeedback, as drawn here
    python benchmarks/packing.py --median-prompt 80 --median-answer 60

Lengths are drawn from log-normal distributions, and shared out among steps and microbatches by the code that trains.
Counted are tokens that the layers process, and cells of the attention, a query times a key: S x S of a row under a
mask; in a packed row those pairs of a query and a key that see each other.

Nothing is measured in seconds: kernels have constants of their own, and work in blocks.
"""

import json
import math
import random
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from prefkd.data.steps import Microbatch, plan_steps, split_step

Size = tuple[int, int, int]


@dataclass
class Options:
    """Tokens and cells of attention, as shares of those under a mask."""

    pairs: int = 4000
    """Pairs that are drawn."""
    median_prompt: float = 130
    """Tokens of a typical prompt."""
    median_answer: float = 250
    """Tokens of a typical answer."""
    spread: float = 0.9
    """Standard deviation of the logarithm of both."""
    max_length: int = 1024
    """Tokens of prompt and an answer at most."""
    max_prompt_length: int = 512
    """Tokens of a prompt at most."""
    instruction: int = 16
    """Tokens behind the user's message in the prompts of a prompt-pair teacher."""
    batch_size: int = 32
    """Pairs of a step."""
    microbatch_size: int = 4
    """Pairs of a padded forward pass."""
    microbatch_tokens: int = 8192
    """Tokens of a packed forward pass."""
    seed: int = 0
    """Seed of the lengths."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON instead of a table."""


@dataclass
class Work:
    """What the forward passes of an epoch come to.

    Attributes:
        passes: Forward passes.
        most: Tokens of the largest.
        tokens: Tokens of all, padding included.
        cells: Cells of the attention that are computed, for each head and layer.
    """

    passes: int = 0
    most: int = 0
    tokens: int = 0
    cells: float = 0.0

    def add(self, tokens: int, cells: float) -> None:
        """One more forward pass."""
        self.passes += 1
        self.most = max(self.most, tokens)
        self.tokens += tokens
        self.cells += cells


def draw_sizes(options: Options) -> list[Size]:
    """Tokens of prompt, chosen and rejected answer of each pair."""
    draw = random.Random(options.seed)

    def one(median: float, most: int) -> int:
        return max(1, min(most, round(draw.lognormvariate(math.log(median), options.spread))))

    sizes = []
    for _ in range(options.pairs):
        prompt = one(options.median_prompt, options.max_prompt_length)
        room = options.max_length - prompt
        sizes.append((prompt, one(options.median_answer, room), one(options.median_answer, room)))
    return sizes


def packed_cells(prompt: int, *answers: int) -> float:
    """Cells of a pair in a packed row: the triangle of the prompt, and of each answer a rectangle and a triangle."""
    return prompt * (prompt + 1) / 2 + sum(size * prompt + size * (size + 1) / 2 for size in answers)


def measure(options: Options) -> dict[str, float]:
    """Counts of both ways, and their ratios."""
    sizes = draw_sizes(options)
    lengths = [sum(size) for size in sizes]
    padded, packed = Work(), Work()
    for step in plan_steps(lengths, options.batch_size, seed=options.seed, epoch=0):
        for microbatch in split_step(step, options.microbatch_size):
            width = max(lengths[row] for row in microbatch.rows)
            padded.add(len(microbatch.rows) * width, len(microbatch.rows) * width**2)
        microbatches: list[Microbatch] = split_step(step, options.microbatch_tokens, tokens=lengths)
        for microbatch in microbatches:
            packed.add(
                sum(lengths[row] for row in microbatch.rows), sum(packed_cells(*sizes[row]) for row in microbatch.rows)
            )
    separate = sum(2 * prompt + chosen + rejected for prompt, chosen, rejected in sizes)
    answers, behind = sum(chosen + rejected for _, chosen, rejected in sizes), 2 * options.instruction * len(sizes)
    prompts = sum(lengths) - answers
    return {
        "tokens of a prompt-pair teacher, all readings in one pass / in three": (prompts + 3 * answers + behind)
        / (3 * sum(lengths) + behind),
        "tokens of both answers in rows of their own / tokens of shared prompts": separate / sum(lengths),
        "padding, share of the tokens of padded rows": 1 - packed.tokens / padded.tokens,
        "cells computed, packed / masked": packed.cells / padded.cells,
        "forward passes, packed / masked": packed.passes / padded.passes,
        "tokens of the largest pass / the mean, packed": packed.most * packed.passes / packed.tokens,
        "tokens of the largest pass / the mean, masked": padded.most * padded.passes / padded.tokens,
    }


def main() -> None:
    """Count, and print."""
    options = tyro.cli(Options)
    found = measure(options)
    if options.as_json:
        print(json.dumps(found))
        return
    table = Table("of an epoch", "ratio", box=None)
    for name, value in found.items():
        table.add_row(name, f"{value:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
