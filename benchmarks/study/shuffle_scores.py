"""Take from a teacher's scores what it knows of the text, and leave how large its weights are: a control of the study.

The contrasts of pi+ and pi-, log pi+(P) - log pi-(P), are shuffled over the parents of all chosen answers, and over
those of all rejected ones. Both kinds of answers keep their weight as a whole; which parent has which is chance.

    prefkd run benchmarks/study/shuffle_scores.py --config CONFIG
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prefkd.data.scores import FINGERPRINT, SPLITS, scores_problems
from prefkd.errors import Problem


@dataclass
class Config:
    """What to shuffle.

    Attributes:
        output_dir: Folder that gets the folder `scores`.
        scores: Scores with a contrast.
        seed: Of the shuffle.
    """

    output_dir: Path
    scores: Path
    seed: int = 0

    def problems(self) -> list[Problem]:
        return list(scores_problems(self.scores, "scores"))


def main(config: Config) -> None:
    """Write the shuffled scores, whole or not at all."""
    generator, unfinished = np.random.default_rng(config.seed), config.output_dir / "unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(config.scores, unfinished)
    fingerprint = json.loads((unfinished / FINGERPRINT).read_text(encoding="utf-8"))
    text = json.dumps(fingerprint | {"contrast.shuffled": config.seed}, indent=2)
    (unfinished / FINGERPRINT).write_text(text, encoding="utf-8")
    for split in SPLITS:
        paths = sorted((unfinished / split).glob("*.parquet"))
        tables = [pq.read_table(path) for path in paths]
        for answer in ("chosen", "rejected"):
            tables = shuffled(tables, f"{answer}_positive", f"{answer}_negative", generator)
        for path, table in zip(paths, tables, strict=True):
            pq.write_table(table, path, compression="zstd", write_page_checksum=True)
    unfinished.rename(config.output_dir / "scores")


def shuffled(tables: list[pa.Table], positive: str, negative: str, generator: np.random.Generator) -> list[pa.Table]:
    """The tables with the differences of two columns of lists permuted over all their elements."""
    rows = [np.array(row, dtype=np.float32) for table in tables for row in table[positive].to_pylist()]
    other = [np.array(row, dtype=np.float32) for table in tables for row in table[negative].to_pylist()]
    if not rows:
        return tables
    ends = np.cumsum([len(row) for row in rows])[:-1]
    contrast = generator.permutation(np.concatenate(rows) - np.concatenate(other))
    dealt = iter([low + part for low, part in zip(other, np.split(contrast, ends), strict=True)])
    found = []
    for table in tables:
        column = pa.array([next(dealt) for _ in range(len(table))], type=table.schema.field(positive).type)
        found.append(table.set_column(table.schema.get_field_index(positive), positive, column))
    return found
