"""What the comparisons with TRL share: pairs that need no truncation, and TRL in an environment of its own."""

import gzip
import json
import os
import subprocess
from pathlib import Path
from typing import Any


def read_pairs(file: Path, model: Path, *, count: int, max_length: int, min_length: int = 0) -> list[dict[str, str]]:
    """The first pairs of a JSONL file, gzipped or not, whose prompt and longer answer fit, so that nothing is cut.

    Args:
        count: How many.
        max_length, min_length: Tokens of prompt and longer answer together.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    chosen = []
    with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            pair = {name: json.loads(line)[name] for name in ("prompt", "chosen", "rejected")}
            length = {name: len(tokenizer(text)["input_ids"]) for name, text in pair.items()}
            if min_length <= length["prompt"] + max(length["chosen"], length["rejected"]) + 1 <= max_length:
                chosen.append(pair)
            if len(chosen) == count:
                return chosen
    raise SystemExit(f"{file} has only {len(chosen)} such pairs")


def run_trl(python: Path, **settings: Any) -> dict[str, Any]:
    """The figures of trl_side.py with these settings."""
    environment = os.environ | {"OMP_NUM_THREADS": str(settings["threads"])}
    command = [str(python), str(Path(__file__).with_name("trl_side.py"))]
    given = json.dumps(settings, default=str)
    ended = subprocess.run(command, input=given, text=True, stdout=subprocess.PIPE, check=True, env=environment)
    return json.loads(ended.stdout.strip().splitlines()[-1])
