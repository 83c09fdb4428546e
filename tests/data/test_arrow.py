"""A column is that of the rows, whatever was selected, sorted or put together before."""

import pytest
from datasets import Dataset, concatenate_datasets

from prefkd.data.arrow import column, list_lengths, numbers, present

ROWS = Dataset.from_dict({"n": [3, None, 1, 2], "ids": [[1, 2], [], [3], [4, 5, 6]], "more": [0, 0, 0, 0]})
WAYS = {
    "as they are": ROWS,
    "selected": ROWS.select([3, 0]),
    "a range": ROWS.select(range(1, 3)),
    "none": ROWS.select([]),
    "shuffled": ROWS.shuffle(seed=0),
    "put together": concatenate_datasets([ROWS.select([2, 1]), ROWS]),
    "in a format": ROWS.with_format("numpy", columns=["more"]).select([2, 3]),
}


@pytest.mark.parametrize("how", WAYS)
def test_a_column_is_that_of_the_rows(how):
    rows = WAYS[how]
    expected = rows.with_format(None).to_dict()
    assert column(rows, "n").to_pylist() == expected["n"]
    assert present(rows, "n").tolist() == [value is not None for value in expected["n"]]
    assert list_lengths(rows, ["ids"])["ids"].tolist() == [len(ids) for ids in expected["ids"]]
    assert numbers(rows, "more").tolist() == expected["more"]
