r"""The table of the study, from what run.py has read: paired bootstrap over pairs and seeds, Holm-corrected.

    python benchmarks/study/summary.py --out runs/study

A row is compared with `dpo`, or with `--baseline ROW`, on the seeds that both have. A row that is unfinished is left
out, and the table says how many seeds each row has.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
import yaml
from run import HERE, answers, comparisons, margin, records

# Rows that train without what a teacher knows are not hypotheses of their own.
ALONE = ("start", "sft", "dpo", "tis_shuffled", "tis_random")
Reader = Callable[[dict[str, Any], dict[str, Any]], float]
# From what is read of a model and of the start, for a pair. The first is the primary metric.
METRICS: dict[str, Reader] = {
    "reward accuracy": lambda row, start: preferred(margin(row) - margin(start)),
    "log-prob accuracy": lambda row, start: preferred(margin(row)),
    "per-token accuracy": lambda row, start: preferred(
        row["chosen_logprob"] / row["chosen_tokens"] - row["rejected_logprob"] / row["rejected_tokens"]
    ),
    "reward margin, nats": lambda row, start: margin(row) - margin(start),
    "NLL of chosen, nats a token": lambda row, start: -row["chosen_logprob"] / row["chosen_tokens"],
}


@dataclass
class Arguments:
    """Where the study is."""

    out: Path = Path("runs/study")
    """Folder of the runs."""
    baseline: str = "dpo"
    """The row with which all others are compared."""
    draws: int = 10_000
    """Bootstrap samples."""


def main(arguments: Arguments) -> None:
    generator = np.random.default_rng(0)
    values = read_values(arguments.out)
    table = [f"| row | seeds | {' | '.join(METRICS)} |", f"|---|---|{'---|' * len(METRICS)}"]
    for row, measured in values.items():
        cells = [cell(measured[metric], arguments.draws, generator) for metric in METRICS]
        table.append(f"| {row} | {len(next(iter(measured.values())))} | {' | '.join(cells)} |")
    differences = {
        row: compare(values[row], values[arguments.baseline], arguments.draws, generator)
        for row in values
        if row != arguments.baseline and arguments.baseline in values
    }
    tested = {row: found["reward accuracy"][3] for row, found in differences.items() if row not in ALONE}
    corrected = holm(tested)
    table += ["", f"Difference to {arguments.baseline}, on the seeds that both have:", ""]
    table += [f"| row | {' | '.join(METRICS)} | p | p, Holm |", f"|---|{'---|' * (len(METRICS) + 2)}"]
    for row, found in differences.items():
        cells = [f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]" for mean, low, high, _ in found.values()]
        p = f"{found['reward accuracy'][3]:.3f}" if row not in ALONE else ""
        table.append(
            f"| {row} | {' | '.join(cells)} | {p} | {corrected.get(row, float('nan')):.3f} |".replace("nan", "")
        )
    table += ["", *judged_lines(arguments, [row for row in values if row != "start"], generator)]
    table += ["", *teacher_lines(arguments, generator)]
    text = "\n".join(table) + "\n"
    (arguments.out / "table.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)


def read_values(out: Path) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """Row -> metric -> seed -> (n,) a value for each held-out pair, in the same order for all."""
    start = records(out, "held_out", "start")
    keys = sorted(start)
    found: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    known = yaml.safe_load((HERE / "rows.yaml").read_text(encoding="utf-8"))["rows"]
    for row in ("start", *known):
        folders = {"": "start"} if row == "start" else seeds_of(out, row)
        read = {seed: records(out, "held_out", name) for seed, name in folders.items()}
        whole = {seed: rows for seed, rows in read.items() if rows.keys() == start.keys()}
        if whole:
            found[row] = {
                metric: {seed: np.array([value(rows[key], start[key]) for key in keys]) for seed, rows in whole.items()}
                for metric, value in METRICS.items()
            }
    return found


def seeds_of(out: Path, row: str) -> dict[str, str]:
    """Seed -> name of what was read, of a row's finished seeds."""
    tables = (out / "read" / "held_out" / row).glob("seed_*/table.json")
    return {path.parent.name: f"{row}/{path.parent.name}" for path in sorted(tables)}


def cell(values: Mapping[str, np.ndarray], draws: int, generator: np.random.Generator) -> str:
    """Mean and 95 % interval over pairs and seeds."""
    matrix = np.stack(list(values.values()))
    low, high = np.quantile(resampled(matrix, draws, generator), [0.025, 0.975])
    return f"{matrix.mean():.3f} [{low:.3f}, {high:.3f}]"


def compare(
    row: Mapping[str, Mapping[str, np.ndarray]],
    baseline: Mapping[str, Mapping[str, np.ndarray]],
    draws: int,
    generator: np.random.Generator,
) -> dict[str, tuple[float, float, float, float]]:
    """Metric -> mean difference, its 95 % interval, its two-sided p."""
    found = {}
    for metric in METRICS:
        own, other = row[metric], baseline[metric]
        seeds = sorted(own.keys() & other.keys()) or None
        # The start has no seed: it is compared with each.
        matrix = np.stack(
            [own[seed] - other[seed] for seed in seeds] if seeds else [own[""] - v for v in other.values()]
        )
        means = resampled(matrix, draws, generator)
        low, high = np.quantile(means, [0.025, 0.975])
        tail = min((means <= 0).mean(), (means >= 0).mean())
        found[metric] = (float(matrix.mean()), float(low), float(high), float(min(1.0, 2 * max(tail, 1 / draws))))
    return found


def resampled(matrix: np.ndarray, draws: int, generator: np.random.Generator) -> np.ndarray:
    """(draws,) means of (seeds, n) values whose seeds and pairs are both drawn with replacement."""
    seeds, n = matrix.shape
    means = np.empty(draws)
    for i in range(draws):
        drawn = matrix[generator.integers(seeds, size=seeds)].mean(0)
        means[i] = drawn[generator.integers(n, size=n)].mean()
    return means


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction of p-values, Scandinavian Journal of Statistics 6 (1979)."""
    corrected, highest = {}, 0.0
    for place, (name, p) in enumerate(sorted(values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, (len(values) - place) * p))
        corrected[name] = highest
    return corrected


def judged_lines(arguments: Arguments, rows: list[str], generator: np.random.Generator) -> list[str]:
    """How often a row's sampled answers are better than those of the start, and their lengths; if there is a judge."""
    lines = ["| row | seeds | win rate against the start | words | words of the start |", "|---|---|---|---|---|"]
    for row in rows:
        read = {seed: wins(arguments.out, name) for seed, name in seeds_of(arguments.out, row).items()}
        whole = {seed: values for seed, values in read.items() if values is not None}
        if whole:
            length = [length_of(arguments.out, f"{row}/{seed}") for seed in whole]
            cells = f"{len(whole)} | {cell(whole, arguments.draws, generator)} | {np.mean(length):.1f}"
            lines.append(f"| {row} | {cells} | {length_of(arguments.out, 'start'):.1f} |")
    return lines if len(lines) > 2 else []


def wins(out: Path, name: str) -> np.ndarray | None:
    """(n,) 1 for each prompt whose answer the judge prefers to that of the start, 1/2 for equal answers; None if open.

    The judge prefers the answer whose log-prob its training has raised more. An empty answer loses.
    """
    if not comparisons(out, name).exists():
        return None
    own, start = answers(out, name), answers(out, "start")
    settled = {key: preferred(bool(own[key]["answer"]) - bool(start[key]["answer"])) for key in start}
    different = [key for key in start if own[key]["answer"] != start[key]["answer"] and settled[key] == 0.5]
    if different:
        if not (out / "read" / "judged" / name / "table.json").exists():
            return None
        judge, base = (records(out, "judged", name, checkpoint) for checkpoint in ("judge", "base"))
        numbered = sorted(judge, key=lambda key: int(key.rpartition(":")[2]))
        settled |= {
            key: preferred(margin(judge[row]) - margin(base[row])) for key, row in zip(different, numbered, strict=True)
        }
    return np.array([settled[key] for key in start])


def length_of(out: Path, name: str) -> float:
    """Mean words of a row's answers."""
    return float(np.mean([len(row["answer"].split()) for row in answers(out, name).values()]))


def teacher_lines(arguments: Arguments, generator: np.random.Generator) -> list[str]:
    """How often the DPO teacher gives the chosen answer more than the reversed one does."""
    lines = []
    for size in ("", "_10x"):
        names = (f"dpo_teacher{size}", f"reversed_teacher{size}")
        if all((arguments.out / "read" / "held_out" / name / "table.json").exists() for name in names):
            positive, negative = (records(arguments.out, "held_out", name) for name in names)
            values = np.array([preferred(margin(positive[key]) - margin(negative[key])) for key in sorted(positive)])
            found = cell({"": values}, arguments.draws, generator)
            lines.append(f"{names[0]} over {names[1]}: {found} of the held-out pairs.")
    return lines


def preferred(difference: float) -> float:
    """1 where the chosen answer gets more, 0 where less, 1/2 where both get the same."""
    return (np.sign(difference) + 1) / 2


if __name__ == "__main__":
    main(tyro.cli(Arguments))
