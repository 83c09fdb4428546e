"""What a pair is worth: its weight in the loss, the margin by which it must be won, and the gap that its row tells.

A margin or a weight is read from a column, or from the difference of two, `score_chosen - score_rejected`. `gap` is the
difference of worth that a layout knows (`prefkd.data.layouts`), or that of two columns of `SCORES`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from prefkd.data.columns import value_at
from prefkd.data.fields import has_content
from prefkd.data.messages import kind
from prefkd.errors import DataError

GAP = "gap"
LARGEST = 3.4e38  # of float32
# Columns of public sets that hold the scores of the chosen and of the rejected answer.
SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
    ("rating_chosen", "rating_rejected"),
    ("chosen_reward", "rejected_reward"),
    ("chosen_avg_rating", "rejected_avg_rating"),
)


class Worth(NamedTuple):
    """What a pair is worth.

    Attributes:
        weight: Its weight in the mean over pairs, 0 or more.
        margin: By how much, in units of the reward, the chosen answer must win.
        gap: How far apart the answers are in the row's own unit, None where the row does not tell.
    """

    weight: float = 1.0
    margin: float = 0.0
    gap: float | None = None


def read_worth(row: Mapping[str, Any], *, weight: str | None, margin: str | None, scale: float = 1.0) -> Worth:
    """The worth of a pair.

    Args:
        row: The row, with `gap` if its layout has one.
        weight, margin: Columns, or differences of two.
        scale: Factor of the margin.

    Raises:
        DataError: A column is missing, holds no finite number, or a weight is below 0.
    """
    gap = gap_of(row)
    found = 1.0 if weight is None else _value(row, weight, gap)
    if found < 0:
        raise DataError(f"the weight in '{weight}' is {found:g}: expected 0 or more")
    return Worth(found, 0.0 if margin is None else scale * _value(row, margin, gap), gap)


def worth_columns(expression: str | None) -> list[str]:
    """The columns that a setting names."""
    return [] if expression is None else [name.strip() for name in expression.split(" - ")]


def gap_of(row: Mapping[str, Any]) -> float | None:
    """How far apart the answers of a row are, None where it does not tell."""
    if has_content(row.get(GAP)):
        return finite_number(row[GAP], GAP)
    for chosen, rejected in SCORES:
        if all(has_content(row.get(name)) or row.get(name) == 0 for name in (chosen, rejected)):
            try:
                return finite_number(row[chosen], chosen) - finite_number(row[rejected], rejected)
            except DataError:  # a list of ratings, say, which is metadata
                return None
    return None


def finite_number(value: Any, name: str) -> float:
    """A number, or text that spells one, as in CSV files.

    Raises:
        DataError: It is something else, or not finite.
    """
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        raise DataError(f"field '{name}' is missing")
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise DataError(f"field '{name}' is {kind(value)}: expected a number") from None
    if not abs(found) <= LARGEST:
        raise DataError(f"field '{name}' is {found}: expected a finite number")
    return found


def _value(row: Mapping[str, Any], expression: str, gap: float | None) -> float:
    if expression == GAP:
        if gap is None:
            raise DataError("the row has no gap between its answers: name the columns of their scores")
        return gap
    names = [expression] if expression in row else worth_columns(expression)
    first, *others = [finite_number(value_at(row, name), name) for name in names]
    return first - sum(others)
