r"""The table of the study, from what run.py has read: paired bootstrap over pairs and seeds, Holm-corrected.

    python benchmarks/study/summary.py --out runs/study
    python benchmarks/study/summary.py --out runs/study --tuned

A row is compared with `dpo`, or with `--baseline ROW`, on the seeds that both have. A row that is unfinished is left
out, and the table says how many seeds each row has. With `--tuned` the table is that of the runs of `run.py --rates`,
whose learning rate was chosen, without it that of runs with the learning rate of rows.yaml.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
import yaml
from readings import COST, METRICS, margin, mean_metric, preferred, rates_read, records, repeating, wins, words
from settings import HERE, Primary

# Rows that train without what a teacher knows are not hypotheses of their own.
ALONE = {
    "start",
    "sft",
    "dpo",
    "cdpo",
    "dpo_nll",
    "dpo_nll_half",
    "dpo_nll_tenth",
    "dpo_nll_twentieth",
    "tis_shuffled",
    "tis_shuffled_many",
    "tis_random",
}
# Metric -> seed, None for the start -> (n,) a value for each held-out pair, in the same order for all.
Values = Mapping[str, Mapping[int | None, np.ndarray]]


@dataclass
class Arguments:
    """Where the study is."""

    out: Path = Path("runs/study")
    """Folder of the runs."""
    rows: tuple[str, ...] = ()
    """Rows of the table, all that have finished if none is given."""
    tuned: bool = False
    """Take the runs whose learning rate was chosen."""
    baseline: str = "dpo"
    """The row with which all others are compared."""
    primary: Primary = "reward accuracy"
    """The metric whose differences are tested, and by which learning rates were chosen."""
    draws: int = 10_000
    """Bootstrap samples."""


def main(arguments: Arguments) -> None:
    known = yaml.safe_load((HERE / "rows.yaml").read_text(encoding="utf-8"))["rows"]
    rows = [row for row in known if row in (arguments.rows or known)]
    names = {row: names_of(arguments.out, row, tuned=arguments.tuned) for row in rows}
    draw = Bootstrap(arguments.draws)
    values = read_values(arguments.out, names)
    table = [
        *value_lines(values, draw),
        *difference_lines(values, arguments.baseline, arguments.primary, draw),
        *(rate_lines(arguments.out, rows, arguments.primary) if arguments.tuned else ()),
        *judged_lines(arguments.out, {row: names[row] for row in rows if row in values}, draw),
        *teacher_lines(arguments.out, draw),
    ]
    text = "\n".join(table).strip() + "\n"
    (arguments.out / ("table_tuned.md" if arguments.tuned else "table.md")).write_text(text, encoding="utf-8")
    sys.stdout.write(text)


class Bootstrap:
    """Means of values whose seeds and pairs are both drawn with replacement, from one generator."""

    def __init__(self, draws: int) -> None:
        self.draws, self.generator = draws, np.random.default_rng(0)

    def means(self, matrix: np.ndarray) -> np.ndarray:
        """(draws,) means of (seeds, n) values."""
        seeds, n = matrix.shape
        means = np.empty(self.draws)
        for i in range(self.draws):
            drawn = matrix[self.generator.integers(seeds, size=seeds)].mean(0)
            means[i] = drawn[self.generator.integers(n, size=n)].mean()
        return means

    def cell(self, matrix: np.ndarray, form: str = ".3f") -> str:
        """Mean and 95 % interval of (seeds, n) values."""
        low, high = np.quantile(self.means(matrix), [0.025, 0.975])
        return f"{matrix.mean():{form}} [{low:{form}}, {high:{form}}]"

    def p(self, matrix: np.ndarray) -> float:
        """How likely a mean of (seeds, n) differences so far from 0 would be if it were 0, two-sided."""
        means = self.means(matrix)
        tail = min((means <= 0).mean(), (means >= 0).mean())
        return float(min(1.0, 2 * max(tail, 1 / self.draws)))


def names_of(out: Path, row: str, *, tuned: bool) -> dict[int, str]:
    """Seed -> name of a row's runs whose held-out pairs have been read."""
    found = {}
    for seed, rates in rates_read(out, "held_out", row).items():
        named = [name for rate, name in rates.items() if (rate is not None) == tuned]
        if len(named) > 1:
            raise SystemExit(f"{row}: seed {seed} was read at several learning rates; keep one of {', '.join(named)}")
        if named:
            found[seed] = named[0]
    return found


def read_values(out: Path, names: Mapping[str, Mapping[int, str]]) -> dict[str, Values]:
    """The values of the start and of each row that has finished."""
    start = records(out, "held_out", "start")
    keys = sorted(start)
    found = {}
    for row, its_names in {"start": {None: "start"}, **names}.items():
        read = {seed: records(out, "held_out", name) for seed, name in its_names.items()}
        whole = {seed: rows for seed, rows in read.items() if rows.keys() == start.keys()}
        if whole:
            found[row] = {
                metric: {seed: np.array([value(rows[key], start[key]) for key in keys]) for seed, rows in whole.items()}
                for metric, value in METRICS.items()
            }
    return found


def value_lines(values: Mapping[str, Values], draw: Bootstrap) -> Iterator[str]:
    """What each row reaches."""
    yield f"| row | seeds | {' | '.join(METRICS)} |"
    yield f"|---|---|{'---|' * len(METRICS)}"
    for row, measured in values.items():
        cells = [draw.cell(np.stack(list(seeds.values()))) for seeds in measured.values()]
        yield f"| {row} | {len(next(iter(measured.values())))} | {' | '.join(cells)} |"


def difference_lines(values: Mapping[str, Values], baseline: str, primary: str, draw: Bootstrap) -> Iterator[str]:
    """How far each row is from the baseline."""
    if baseline not in values:
        return
    matrices = {row: differences(values[row], values[baseline]) for row in values if row != baseline}
    matrices = {row: found for row, found in matrices.items() if found}
    corrected = holm({row: draw.p(found[primary]) for row, found in matrices.items() if row not in ALONE})
    yield from ("", f"Difference to {baseline}, on the seeds that both have:", "")
    yield f"| row | {' | '.join(METRICS)} | p | p, Holm |"
    yield f"|---|{'---|' * (len(METRICS) + 2)}"
    for row, found in matrices.items():
        cells = [draw.cell(matrix, "+.3f") for matrix in found.values()]
        tested = [f"{p:.3f}" for p in corrected[row]] if row in corrected else ["", ""]
        yield f"| {row} | {' | '.join([*cells, *tested])} |"


def differences(row: Values, baseline: Values) -> dict[str, np.ndarray]:
    """Metric -> (seeds, n) differences on the seeds that both have; the start, which has none, counts for each."""
    found = {}
    for metric in METRICS:
        own, other = row[metric], baseline[metric]
        shared = [(own.get(seed, own.get(None)), theirs) for seed, theirs in other.items()]
        pairs = [mine - theirs for mine, theirs in shared if mine is not None]
        if pairs:
            found[metric] = np.stack(pairs)
    return found


def holm(values: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """p and p after Holm's step-down correction, Scandinavian Journal of Statistics 6 (1979)."""
    corrected, highest = {}, 0.0
    for place, (name, p) in enumerate(sorted(values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, (len(values) - place) * p))
        corrected[name] = (p, highest)
    return corrected


def rate_lines(out: Path, rows: Sequence[str], primary: str) -> Iterator[str]:
    """What the learning rates were chosen by, and what they cost."""
    names: dict[tuple[str, float], list[str]] = {}
    for row in rows:
        for rates in rates_read(out, "development", row).values():
            for rate, name in rates.items():
                if rate is not None:
                    names.setdefault((row, rate), []).append(name)
    columns = [(metric, rate) for metric in (primary, COST) for rate in sorted({rate for _, rate in names})]
    yield from ("", "On the development pairs, by learning rate:", "")
    yield f"| row | {' | '.join(f'{metric}, {rate:g}' for metric, rate in columns)} |"
    yield f"|---|{'---|' * len(columns)}"
    for row in dict.fromkeys(row for row, _ in names):
        cells = []
        for metric, rate in columns:
            read = [mean_metric(out, "development", name, metric) for name in names.get((row, rate), ())]
            cells.append(f"{np.mean(read):.3f}" if read else "")
        yield f"| {row} | {' | '.join(cells)} |"


def judged_lines(out: Path, names: Mapping[str, Mapping[int, str]], draw: Bootstrap) -> Iterator[str]:
    """How often a row's answers are better than those of the start, how long and repetitive they are."""
    lines = []
    for row, its_names in names.items():
        read = {name: wins(out, name) for name in its_names.values()}
        judged = {name: values for name, values in read.items() if values is not None}
        if judged:
            length, repeated = (np.mean([count(out, name) for name in judged]) for count in (words, repeating))
            rate = draw.cell(np.stack(list(judged.values())))
            lines.append(f"| {row} | {len(judged)} | {rate} | {length:.1f} | {repeated:g} |")
    if lines:
        heads = ("row", "seeds", "win rate against the start", "words", "answers that repeat three words three times")
        yield from ("", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}")
        yield f"| start |  |  | {words(out, 'start'):.1f} | {repeating(out, 'start')} |"
        yield from lines


def teacher_lines(out: Path, draw: Bootstrap) -> Iterator[str]:
    """How often the DPO teacher gives the chosen answer more than the reversed one does."""
    for size in ("", "_many"):
        names = (f"dpo_teacher{size}", f"reversed_teacher{size}")
        if all((out / "read" / "held_out" / name / "table.json").exists() for name in names):
            positive, negative = (records(out, "held_out", name) for name in names)
            values = np.array([[preferred(margin(positive[key]) - margin(negative[key])) for key in sorted(positive)]])
            yield from ("", f"{names[0]} over {names[1]}: {draw.cell(values)} of the held-out pairs.")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
