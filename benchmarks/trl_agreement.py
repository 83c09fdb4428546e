"""Loss and gradient norm of recipe dpo compared with those of TRL's DPOTrainer: the same model, the same eight pairs.

    python benchmarks/trl_agreement.py --model models/smollm2-135m-instruct --pairs pairs.jsonl --trl-python PYTHON

PYTHON is that of an environment with TRL, see trl_side.py. The pairs file holds prompt, chosen, rejected strings. All
pairs make one step, so that their order does not matter. TRL gets the text of prefkd's own tokens, conversation parsed,
framed by its plain template and begun with the BOS: that is what differs by design.
"""

import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro
from pairs_and_sides import read_pairs, run_trl

from prefkd.cli.main import main as prefkd
from prefkd.data.pairs import DataConfig, load_pairs
from prefkd.data.sides import ModelSide
from prefkd.data.tokens import tokenize_pairs
from prefkd.models.load import ModelConfig, load_tokenizer


@dataclass
class Arguments:
    """What to compare."""

    model: Path
    """Folder of the model."""
    pairs: Path
    """JSONL file, gzipped or not, with prompt, chosen and rejected strings."""
    trl_python: Path
    """Python of an environment with TRL."""
    count: int = 8
    """Pairs of a step."""
    steps: int = 4
    """Steps, all on the same pairs."""
    max_length: int = 384
    """Tokens of prompt and longer answer together, at most."""
    lr: float = 1e-5
    """Learning rate."""
    threads: int = 2
    """Threads of torch."""


def run_recipe(arguments: Arguments, pairs: list[dict[str, str]]) -> dict[str, list[float]]:
    """Losses and gradient norms of recipe dpo."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        config = {
            "output_dir": str(folder / "out"),
            "model": {"path": str(arguments.model), "template": "plain"},
            "data": {
                "source": str(folder / "pairs.jsonl"),
                "held_out_fraction": 0.0,
                "max_length": arguments.max_length + 20,
                "max_prompt_length": arguments.max_length + 10,
            },
            "optimizer": {"lr": arguments.lr},
            "lr_schedule": {"_component_": "transformers.get_constant_schedule"},
            "training": {
                "batch_size": arguments.count,
                "microbatch_size": 2,
                "epochs": arguments.steps,
                "precision": "float32",
            },
        }
        (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
        if prefkd(["run", "dpo", "--config", str(folder / "config.yaml")]):
            sys.exit("recipe dpo failed")
        lines = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()[1:]]
    return {"losses": [line["loss"] for line in lines], "gradient_norms": [line["gradient_norm"] for line in lines]}


def as_read(arguments: Arguments, pairs: list[dict[str, str]]) -> list[dict[str, str]]:
    """The pairs as text of the tokens that prefkd makes of them; as text they give the same tokens again."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "pairs.jsonl"
        file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        config = DataConfig(source=str(file), held_out_fraction=0.0, max_length=2048, max_prompt_length=1024)
        tokenizer = load_tokenizer(ModelConfig(str(arguments.model)))
        side = ModelSide(tokenizer, "plain")
        rows: list[Any] = list(tokenize_pairs(load_pairs(config).train, side, config=config))
    texts = []
    for row in rows:
        ids = {name: row[name] for name in ("prompt", "chosen", "rejected")}
        text = {name: str(tokenizer.decode(tokens)) for name, tokens in ids.items()}
        for name in ("chosen", "rejected"):
            if tokenizer(text["prompt"] + text[name])["input_ids"] != ids["prompt"] + ids[name]:
                raise SystemExit(f"row {row['row']}: its text gives other tokens; choose other pairs")
        texts.append(text)
    return texts


def main(arguments: Arguments) -> None:
    pairs = read_pairs(arguments.pairs, arguments.model, count=arguments.count, max_length=arguments.max_length)
    ours = run_recipe(arguments, pairs)
    theirs = run_trl(
        arguments.trl_python,
        model=arguments.model,
        pairs=as_read(arguments, pairs),
        batch_size=2,
        accumulation=arguments.count // 2,
        steps=arguments.steps,
        max_length=arguments.max_length + 20,
        lr=arguments.lr,
        threads=arguments.threads,
        activation_checkpointing=False,
    )
    for name in ("losses", "gradient_norms"):
        sys.stdout.write(f"{name}\n  prefkd {ours[name]}\n  TRL    {theirs[name]}\n")
        worst = max(abs(one - other) / other for one, other in zip(ours[name], theirs[name], strict=True))
        sys.stdout.write(f"  largest relative difference {worst:.1e}\n")
    sys.stdout.write(json.dumps({key: str(value) for key, value in asdict(arguments).items()}) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
