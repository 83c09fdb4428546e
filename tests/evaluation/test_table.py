"""The table compares what can be compared, and says what cannot be known."""

import json

import pytest

from prefkd.evaluation.table import Failure, ResultTable, Series, make_rows


def rows_of(*series: Series, baseline: str | None = "base") -> list:
    return make_rows(series, baseline=baseline, resamples=500, seed=0)


def test_checkpoints_are_compared_on_what_all_have():
    one = Series("t", "", "m", "base", {"a": 1.0, "b": 0.0, "c": 1.0})
    two = Series("t", "", "m", "new", {"b": 1.0, "c": 1.0, "d": 0.0})
    base, new = rows_of(one, two)
    assert (base.count, base.value, base.difference) == (2, 0.5, None)
    assert (new.count, new.value, new.difference) == (2, 1.0, 0.5)
    assert rows_of(one, Series("t", "", "m", "new", {"x": 1.0})) == []


def test_rows_of_a_metric_stand_together():
    series = [Series("t", "", metric, name, {"a": 1.0}) for name in ("base", "new") for metric in ("m", "n")]
    found = [(row.metric, row.checkpoint) for row in rows_of(*series)]
    assert found == [("m", "base"), ("m", "new"), ("n", "base"), ("n", "new")]


def test_without_items_differences_are_those_of_independent_means():
    base, new = rows_of(
        Series("t", "", "m", "base", reported=(0.5, 0.03)), Series("t", "", "m", "new", reported=(0.6, 0.04))
    )
    assert (base.low, base.high) == pytest.approx((0.5 - 1.96 * 0.03, 0.5 + 1.96 * 0.03))
    assert new.difference_low == pytest.approx(0.1 - 1.96 * 0.05)


def test_a_mean_without_error_has_no_interval():
    base, new = rows_of(
        Series("t", "", "m", "base", reported=(0.5, 0.03)), Series("t", "", "m", "new", reported=(0.6, None))
    )
    assert (new.value, new.low, new.difference_low) == (0.6, None, None)
    assert new.difference == pytest.approx(0.1)
    text = ResultTable("base", [base, new], [], []).markdown()
    assert "| 60.0 % | +10.0 % |" in text and "nan" not in text.lower()
    assert json.loads(ResultTable("base", [new], [], []).json())["rows"][0]["low"] is None


def test_forms():
    row = rows_of(Series("t", "part", "some_metric", "a|b", {"x": 2.0}, is_percent=False), baseline=None)
    table = ResultTable(None, row, [Failure("c", "t", "it broke, badly")], ["mind this"])
    assert table.markdown().splitlines()[2:] == [
        "| t / part | some metric | a\\|b | 1 | 2.000 [2.000, 2.000] |",
        "",
        "- failed: c, t: it broke, badly",
        "- mind this",
    ]
    assert table.csv().splitlines()[1:] == [
        "t,part,some_metric,a|b,1,2.0,2.0,2.0,,,,False,",
        't,,,c,,,,,,,,,"it broke, badly"',
    ]
