r"""What a saved folder keeps of a training, for each way to save it: float32, and bfloat16 rounded in two ways.

    python benchmarks/export.py --model models/smollm2-135m-instruct --pairs pairs.jsonl --out runs/export

Recipe dpo trains the model at each rate, and recipe sft at the first; each result is saved in three ways. Recipe
evaluate then reads the held-out pairs with every folder. It computes in float32, so that folders differ by their
weights alone. What is kept is the slope of a folder's gains, pair by pair, on those of the float32 folder. What is in
`--out` already is not done again.
"""

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from prefkd.models.load import ModelConfig, load_causal_lm, load_tokenizer
from prefkd.ranks import Ranks
from prefkd.training.export import save_trained
from prefkd.training.settings import Export, TrainingConfig

EXPORTS: dict[Export, str] = {
    "float32": "float32",
    "bfloat16": "bfloat16, stochastic",
    "checkpoint": "bfloat16, nearest",
}


@dataclass
class Arguments:
    """What to measure."""

    model: Path
    """Folder of a checkpoint in bfloat16."""
    pairs: Path
    """Preference pairs in any form that prefkd reads; a tenth is held out."""
    out: Path
    """Folder for what is trained."""
    rates: tuple[str, ...] = ("1e-6", "1e-5", "1e-4")
    """Learning rates of recipe dpo."""
    steps: int = 20
    """Training steps."""
    batch_size: int = 8
    """Pairs of a step."""
    held_out: int = 100
    """Held-out pairs."""
    max_length: int = 192
    """Tokens of a prompt and an answer."""


def run(recipe: str, config: dict[str, Any]) -> None:
    """Run a recipe in a process of its own."""
    folder = Path(config["output_dir"])
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_suffix(".yaml")
    path.write_text(json.dumps(config))  # JSON is YAML
    subprocess.run([sys.executable, "-m", "prefkd", "run", recipe, "--config", str(path)], check=True)


def train(recipe: str, rate: str, arguments: Arguments, data: dict[str, Any]) -> Path:
    """Train the model and return its float32 folder."""
    out = arguments.out / f"{recipe}_{rate}"
    if not (out / "model").exists():
        steps = {"max_steps": arguments.steps, "batch_size": arguments.batch_size, "microbatch_size": 2}
        config = {
            "output_dir": str(out),
            "model": {"path": str(arguments.model)},
            "data": data | {"limit": arguments.steps * arguments.batch_size, "held_out_limit": 1},
            "optimizer": {"_component_": "torch.optim.AdamW", "lr": float(rate), "weight_decay": 0.0},
            "lr_schedule": {"num_warmup_steps": 0},
            "training": steps | {"precision": "float32", "export": "float32"},
        }
        run(recipe, config)
    return out / "model"


def save(trained: Path, start: Path, export: Export) -> Path:
    """The folder of a trained model that is saved in one of the ways."""
    folder = trained.with_name(export)
    if not folder.exists():
        model = ModelConfig(str(trained))
        lm = load_causal_lm(model, dtype=torch.float32, device=torch.device("cpu"))
        ranks, training = Ranks(0, 1, torch.device("cpu")), TrainingConfig(export=export)
        begun = replace(model, path=str(start))
        save_trained(lm, load_tokenizer(model), folder, start=begun, training=training, ranks=ranks)
    return folder


def read(folder: Path) -> dict[str, np.ndarray]:
    """What a checkpoint says of the held-out pairs, by the names that `prefkd.evaluation.preferences` explains."""
    rows = [json.loads(line) for line in folder.read_text().splitlines()]
    return {
        name: np.array([row[name] for row in rows]) for name in rows[0] if name.startswith(("chosen_", "rejected_"))
    }


def main(arguments: Arguments) -> None:
    data = {
        "source": str(arguments.pairs),
        "max_length": arguments.max_length,
        "max_prompt_length": arguments.max_length // 2,
    }
    trainings = [("sft", arguments.rates[0]), *(("dpo", rate) for rate in arguments.rates)]
    checkpoints = {"start": arguments.model}
    for recipe, rate in trainings:
        trained = train(recipe, rate, arguments, data)
        checkpoints |= {f"{recipe}_{rate}_{export}": save(trained, arguments.model, export) for export in EXPORTS}
        config = {
            "output_dir": str(arguments.out / "evaluate"),
            "checkpoints": {name: {"path": str(path), "dtype": "float32"} for name, path in checkpoints.items()},
            "baseline": "start",
            "preferences": {"data": {"held_out": data | {"part": "held_out", "held_out_limit": arguments.held_out}}},
        }
        run("evaluate", config)
    found = {name: read(next((arguments.out / "evaluate").rglob(f"{name}.jsonl"))) for name in checkpoints}
    start = found["start"]
    print(f"{len(start['chosen_logprob'])} held-out pairs, {arguments.steps} steps of {arguments.batch_size}\n")
    print("| recipe | lr | saved as | held-out gain, nats | kept |\n|---|---|---|---|---|")
    for recipe, rate in trainings:
        gains = {export: gain(recipe, start, found[f"{recipe}_{rate}_{export}"]) for export in EXPORTS}
        for export, name in EXPORTS.items():
            mean, spread = gains[export].mean(), gains[export].std() / len(gains[export]) ** 0.5
            kept = (gains[export] @ gains["float32"]) / (gains["float32"] @ gains["float32"])
            print(f"| `{recipe}` | {rate} | {name} | {mean:.4f} ± {spread:.4f} | {kept:.1%} |")


def gain(recipe: str, start: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> np.ndarray:
    """For each pair: the margin over the start (dpo), or by how much the loss of the chosen answer fell (sft)."""
    chosen, rejected = (after[name] - start[name] for name in ("chosen_logprob", "rejected_logprob"))
    return chosen - rejected if recipe == "dpo" else chosen


if __name__ == "__main__":
    main(tyro.cli(Arguments))
