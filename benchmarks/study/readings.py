"""What the runs of the study have written of each model."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Record = Mapping[str, Any]


def run_name(row: str, seed: int, rate: float | None = None) -> str:
    """The folder of a row's training with a seed; with a learning rate if it is not that of rows.yaml."""
    return f"{row}/seed_{seed}" + (f"_lr_{rate:g}" if rate else "")


def rates_read(out: Path, part: str, row: str) -> dict[int, dict[float | None, str]]:
    """Seed -> learning rate, None for that of rows.yaml -> name, of a row's runs whose pairs have been read."""
    found: dict[int, dict[float | None, str]] = {}
    for path in sorted((out / "read" / part / row).glob("seed_*/table.json")):
        seed, _, rate = path.parent.name.removeprefix("seed_").partition("_lr_")
        found.setdefault(int(seed), {})[float(rate) if rate else None] = f"{row}/{path.parent.name}"
    return found


def best_rate(out: Path, row: str, seed: int, rates: tuple[float, ...], metric: str) -> float:
    """The learning rate with which a row is best on the development pairs; of equal ones, the first."""
    return max(rates, key=lambda rate: mean_metric(out, "development", run_name(row, seed, rate), metric))


def mean_metric(out: Path, part: str, name: str, metric: str) -> float:
    """The mean of a metric over the pairs of a part."""
    own, start = records(out, part, name), records(out, part, "start")
    return float(np.mean([METRICS[metric](own[key], start[key]) for key in start]))


def records(out: Path, part: str, name: str, checkpoint: str = "model") -> dict[str, Record]:
    """What `evaluate` has written of a model, by pair."""
    return by_key(out / "read" / part / name / "preferences" / "pairs" / f"{checkpoint}.jsonl")


def answers(out: Path, name: str) -> dict[str, Record]:
    """What a row has answered, by prompt."""
    return by_key(out / "read" / "answers" / name / "answers" / "held_out" / "answers" / "model.jsonl")


def comparisons(out: Path, name: str) -> Path:
    """The file of a row's answers and those of the start that are judged."""
    return out / "read" / "answers" / name / "against_start.jsonl"


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


def words(out: Path, name: str) -> float:
    """Mean words of a row's answers."""
    return float(np.mean([len(row["answer"].split()) for row in answers(out, name).values()]))


def repeating(out: Path, name: str) -> int:
    """How many of a row's answers use the same three words in a row at least three times."""
    found = 0
    for row in answers(out, name).values():
        said = row["answer"].lower().split()
        found += max(Counter(zip(said, said[1:], said[2:], strict=False)).values(), default=0) >= 3
    return found


def by_key(path: Path) -> dict[str, Record]:
    """The rows of a file of JSON lines."""
    return {row["key"]: row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}


def margin(row: Record) -> float:
    """log pi(chosen) - log pi(rejected), in nats."""
    return row["chosen_logprob"] - row["rejected_logprob"]


def preferred(difference: float) -> float:
    """1 where the chosen answer gets more, 0 where less, 1/2 where both get the same."""
    return (np.sign(difference) + 1) / 2


# What preferences cost: the less, the better.
COST = "NLL of chosen, nats a token"
# From what is read of a model and of the start, for a pair.
METRICS: dict[str, Callable[[Record, Record], float]] = {
    "reward accuracy": lambda row, start: preferred(margin(row) - margin(start)),
    "log-prob accuracy": lambda row, start: preferred(margin(row)),
    "per-token accuracy": lambda row, start: preferred(
        row["chosen_logprob"] / row["chosen_tokens"] - row["rejected_logprob"] / row["rejected_tokens"]
    ),
    "reward margin, nats": lambda row, start: margin(row) - margin(start),
    COST: lambda row, start: -row["chosen_logprob"] / row["chosen_tokens"],
}
