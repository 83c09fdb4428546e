"""The controls of benchmarks/study."""

import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks" / "study"))
from shuffle_scores import shuffled  # pyright: ignore[reportMissingImports]


def test_shuffled_contrasts_are_the_same_numbers_elsewhere():
    lists = pa.list_(pa.float32())
    positive = [[0.0, -1.0, -2.5], [-4.0], [], [-0.5, -8.0]]
    tables = [
        pa.table({"p": pa.array(rows, lists), "n": pa.array([[-1.0] * len(row) for row in rows], lists)})
        for rows in (positive[:3], positive[3:])
    ]
    found = shuffled(tables, "p", "n", np.random.default_rng(0))
    dealt = [row for table in found for row in table["p"].to_pylist()]
    assert [len(row) for row in dealt] == [3, 1, 0, 2]
    assert sorted(chain(*dealt)) == sorted(chain(*positive))
    assert dealt != positive
    assert [table["n"] for table in found] == [table["n"] for table in tables]
    assert [table.schema for table in found] == [table.schema for table in tables]
