r"""The table of ablations: what each part of an objective does for the student, over several seeds.

    python benchmarks/ablations.py --seeds 0 1 2
    python benchmarks/ablations.py --rows dskd tis_dskd --seeds 0 --overrides training.max_steps=2

Every row is a config in configs/demo/ablations, all of the same recipe, data, steps and learning rate, so that rows
differ in their objective alone. Each run is a process of its own in <output>/<row>/seed_<seed>. A finished one is not
run again, so that the same command goes on where it was stopped; other overrides want another output folder. Written
are table.md, and table.png where matplotlib is installed.
"""

import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import tyro

from prefkd import catalog

FOLDER = "demo/ablations"
# From no teacher to all of it; further configs in the folder come behind.
ORDER = (
    "sft", "dpo_distill", "tis_uniform", "tis_random", "tis_estimated", "uld", "min_ed", "alm", "shared_tokens",
    "gold", "x_token", "dskd", "tis_dskd",
)  # fmt: skip
# Held-out values that all rows have, and what they are called in the table.
COLUMNS = {
    "held_out/logprob_accuracy": "chosen more likely than rejected",
    "held_out/cross_entropy": "cross-entropy of the chosen answer, nats a token",
}
SETTINGS = "settings.json"


@dataclass
class Arguments:
    """What to run."""

    rows: tuple[str, ...] = ()
    """Names of rows; all if not given."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of shuffling, of random weights and of the projectors' start."""
    output: Path = Path("runs/demo/ablations")
    """Folder of the runs and the table."""
    overrides: tuple[str, ...] = ()
    """Settings of every run, key=value."""


def main(arguments: Arguments) -> None:
    known = {name.rpartition("/")[2]: name for name in catalog.configs() if name.startswith(f"{FOLDER}/")}
    rows = arguments.rows or tuple(sorted(known, key=lambda row: ORDER.index(row) if row in ORDER else len(ORDER)))
    if unknown := set(rows) - known.keys():
        raise SystemExit(f"no row is named {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    same_settings(arguments)
    results: dict[str, list[dict[str, float]]] = {}
    for seed in arguments.seeds:  # a seed at a time, so that a stopped table has all rows
        for row in rows:
            results.setdefault(row, []).append(
                finished_run(known[row], arguments.output / row / f"seed_{seed}", seed, arguments)
            )
            (arguments.output / "table.md").write_text(table(results), encoding="utf-8")
    sys.stdout.write(table(results))
    if importlib.util.find_spec("matplotlib"):
        plot(results, arguments.output / "table.png")


def same_settings(arguments: Arguments) -> None:
    """Refuse to mix runs of different overrides in one table."""
    path = arguments.output / SETTINGS
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(arguments.overrides))
    elif json.loads(path.read_text()) != list(arguments.overrides):
        raise SystemExit(f"the runs in {arguments.output} have the overrides {path.read_text()}; name another --output")


def finished_run(config: str, folder: Path, seed: int, arguments: Arguments) -> dict[str, float]:
    """The last held-out values of a run and its seconds a step; one that did not end is started anew."""
    if not (folder / "student").is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        settings = (*arguments.overrides, f"training.seed={seed}", f"output_dir={folder}")
        sys.stdout.write(f"{config}, seed {seed}\n")
        sys.stdout.flush()
        subprocess.run([sys.executable, "-m", "prefkd", "run", config, *settings], check=True)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    start, *steps = lines
    seconds = [line["tokens"] / line["tokens_per_second"] for line in steps]
    found = {name: steps[-1][name] for name in COLUMNS}
    return found | {f"start {name}": start[name] for name in COLUMNS} | {"seconds a pair": mean(seconds)}


def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    return f"{mean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Rows and columns as Markdown, the student before any training first."""
    seeds = max(map(len, results.values()))
    lines = [
        f"Held-out pairs after training; mean ± standard deviation over {seeds} seed(s).",
        "",
        f"| objective | {' | '.join(COLUMNS.values())} | seconds a pair |",
        f"|---|{'---|' * len(COLUMNS)}---|",
    ]
    first = next(iter(results.values()))[0]
    lines.append(f"| before training | {' | '.join(spread([first[f'start {name}']]) for name in COLUMNS)} | |")
    for row, runs in results.items():
        cells = [spread([run[name] for run in runs]) for name in (*COLUMNS, "seconds a pair")]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(results: dict[str, list[dict[str, float]]], path: Path) -> None:
    """The columns next to each other: the mean of each row, a line for the spread, dots for the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(COLUMNS), sharey=True, figsize=(5 * len(COLUMNS), 1 + 0.4 * len(results)))
    for axis, (name, title) in zip(axes, COLUMNS.items(), strict=True):
        values = [[run[name] for run in runs] for runs in results.values()]
        spreads = [stdev(column) if len(column) > 1 else 0.0 for column in values]
        means = [mean(column) for column in values]
        axis.errorbar(means, list(results), xerr=spreads, fmt="D", markersize=5, capsize=3, color="#08519c")
        for place, column in enumerate(values):
            axis.plot(column, [place] * len(column), ".", color="#6baed6")
        starts = [run[f"start {name}"] for runs in results.values() for run in runs]
        axis.grid(axis="y", alpha=0.3)
        axis.axvline(mean(starts), color="grey", linestyle=":", label="before training")
        axis.set_title(title, fontsize=9)
    axes[0].margins(y=0.2)
    axes[0].invert_yaxis()
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
