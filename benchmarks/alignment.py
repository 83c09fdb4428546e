"""Aligning two tokenizations compared with making them.

    python benchmarks/alignment.py --pairs pairs.jsonl.gz --student models/a --teacher models/b

Both fast tokenizers run on one thread over every response of the pairs, in batches, as the data pipeline does. Aligning
starts from the Python lists of offsets that they return: turning those into arrays is part of its time. Asking the
tokenizers for offsets costs time too; it is shown apart, and counted as aligning in the last row.
"""

import gzip
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from prefkd.method.parent_tokens import find_parents, find_parents_batch


@dataclass
class Options:
    """How long aligning takes, as a share of tokenizing with both tokenizers."""

    pairs: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """JSON lines with `chosen` and `rejected` strings, gzipped or not."""
    student: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder of the student's tokenizer."""
    teacher: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder of the teacher's tokenizer."""
    batch: int = 1000
    """Texts in one batch."""
    repeats: int = 7
    """Rounds; the best time of each step counts."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON instead of a table."""


def responses(path: Path) -> list[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [row[side] for row in rows for side in ("chosen", "rejected")]


def timed(step: Callable[[Any], Any], batches: list[Any]) -> tuple[float, list[Any]]:
    """Seconds for all batches, and what they gave."""
    start = time.perf_counter()
    results = [step(batch) for batch in batches]
    return time.perf_counter() - start, results


def measure(options: Options) -> dict[str, float]:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from transformers import AutoTokenizer

    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (options.student, options.teacher)]
    texts = responses(options.pairs)
    batches = [texts[i : i + options.batch] for i in range(0, len(texts), options.batch)]

    def tokenize(batch: list[str], offsets: bool) -> list[Any]:
        return [t(batch, add_special_tokens=False, return_offsets_mapping=offsets, verbose=False) for t in tokenizers]

    def align(batch: tuple[list[str], list[Any]]) -> list[Any]:
        lines, (student, teacher) = batch
        return find_parents_batch(student["offset_mapping"], teacher["offset_mapping"], lines)

    def align_singly(batch: tuple[list[str], list[Any]]) -> list[Any]:
        lines, (student, teacher) = batch
        rows = zip(student["offset_mapping"], teacher["offset_mapping"], lines, strict=True)
        return [find_parents(one, other, len(line), line) for one, other, line in rows]

    best = {"ids": float("inf"), "ids_and_offsets": float("inf"), "align": float("inf"), "align_singly": float("inf")}
    sides: list[list[Any]] = []
    for _ in range(options.repeats):
        sides.clear()
        seconds = {}
        seconds["ids"], _ = timed(lambda batch: tokenize(batch, False), batches)
        seconds["ids_and_offsets"], sides = timed(lambda batch: tokenize(batch, True), batches)
        ready = list(zip(batches, sides, strict=True))
        seconds["align"], _ = timed(align, ready)
        seconds["align_singly"], _ = timed(align_singly, ready)
        best = {name: min(best[name], seconds[name]) for name in best}
    tokens = sum(len(ids) for side in sides for half in side for ids in half["input_ids"])
    offsets = max(best["ids_and_offsets"] - best["ids"], 0)
    return {
        "texts": len(texts),
        "tokens": tokens,
        **{f"{name}_s": seconds for name, seconds in best.items()},
        "ratio": best["align"] / best["ids_and_offsets"],
        "ratio_to_ids_alone": best["align"] / best["ids"],
        "ratio_singly": best["align_singly"] / best["ids_and_offsets"],
        "ratio_with_offsets_as_aligning": (best["align"] + offsets) / best["ids"],
    }


def report(found: dict[str, float], console: Console) -> None:
    table = Table(title=f"{found['texts']:,} responses, {found['tokens']:,} tokens of both tokenizers, one thread")
    for heading in ("step", "seconds", "million tokens/s", "share of tokenizing"):
        table.add_column(heading, justify="left" if heading == "step" else "right")

    def row(name: str, seconds: float, share: float | None = None) -> None:
        table.add_row(name, f"{seconds:.3f}", f"{found['tokens'] / seconds / 1e6:.2f}", f"{share:.3f}" if share else "")

    row("tokenize, ids alone", found["ids_s"])
    row("tokenize, ids and offsets", found["ids_and_offsets_s"])
    row("align, batches of texts", found["align_s"], found["ratio"])
    row("align, text by text", found["align_singly_s"], found["ratio_singly"])
    extra = found["align_s"] + max(found["ids_and_offsets_s"] - found["ids_s"], 0)
    row("align + ask for offsets", extra, found["ratio_with_offsets_as_aligning"])
    console.print(table)
    console.print("Shares are of tokenizing with offsets; in the last row of tokenizing without them.")


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    found, console = measure(options), Console()
    if options.as_json:
        console.print_json(data=found)
    else:
        report(found, console)


if __name__ == "__main__":
    main()
