"""Columns of a data set as Arrow has them, without a Python object for each row."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from datasets.formatting import query_table

ROWS_AT_A_TIME = 1000


def column(rows: Dataset, name: str) -> pa.ChunkedArray:
    """A column. One of lists can be larger than the memory; see `tables`."""
    # What a data set in the format "arrow" does, without the two copies of its description that asking for one makes.
    return query_table(rows.data.select([name]), slice(None), indices=cast(Any, rows)._indices)[name]


def numbers(rows: Dataset, name: str) -> np.ndarray:
    """(n,) a column of numbers or flags."""
    return column(rows, name).to_numpy()


def present(rows: Dataset, name: str) -> np.ndarray:
    """(n,) whether a row has something in a column."""
    return column(rows, name).is_valid().to_numpy()


def tables(rows: Dataset, names: Sequence[str]) -> Iterator[pa.Table]:
    """Some columns, a thousand rows at a time."""
    return cast(Any, rows.select_columns(list(names)).with_format("arrow")).iter(ROWS_AT_A_TIME)


def list_lengths(rows: Dataset, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Name of each column of lists -> (n,) how long its lists are."""
    found = {name: np.empty(len(rows), dtype=np.int64) for name in names}
    start = 0
    for table in tables(rows, names):
        for name, lengths in found.items():
            counted = pc.call_function("list_value_length", [table[name]])
            lengths[start : start + len(table)] = counted.to_numpy()
        start += len(table)
    return found
