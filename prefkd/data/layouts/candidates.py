"""Answers to one prompt and what each is worth, and the pairs that they make."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from prefkd.data.fields import has_content
from prefkd.data.messages import kind
from prefkd.errors import DataError

Row = Mapping[str, Any]
Pairing = Literal["best_worst", "best_random", "all"]


class NoPreference(DataError):
    """The answers of a row are worth the same. Nothing is wrong with it, and nothing can be learnt from it."""


class Candidates(NamedTuple):
    """Answers to one prompt.

    Attributes:
        row: The fields of the row that were not read, and `prompt` (text or messages) unless the answers repeat it.
        answers: (answer, worth): text or messages, and a number that is larger for better answers.
    """

    row: dict[str, Any]
    answers: Sequence[tuple[Any, float]]


def pairs_of(candidates: Candidates, pairing: Pairing, minimum_gap: float) -> list[dict[str, Any]]:
    """Rows with a prompt, a chosen and a rejected answer.

    Args:
        candidates: At least two answers.
        pairing: `best_worst` makes one pair; `best_random` one of the best answer and any that is worse, drawn by the
            row's content; `all` one of any two answers. Of equal answers the first counts as the better.
        minimum_gap: The least difference in worth.

    Raises:
        NoPreference: No two answers differ enough.
    """
    ordered = sorted(candidates.answers, key=lambda answer: -answer[1])
    found = [
        (better, worse)
        for i, better in enumerate(ordered)
        for worse in ordered[i + 1 :]
        if better[1] > worse[1] and better[1] - worse[1] >= minimum_gap
    ]
    if not found:
        raise NoPreference("no answer is better than another" + (" by data.minimum_gap" if minimum_gap else ""))
    if pairing == "best_worst":
        found = [max(found, key=lambda pair: pair[0][1] - pair[1][1])]
    elif pairing == "best_random":
        of_best = [pair for pair in found if pair[0] is ordered[0]]
        digest = hashlib.sha256(json.dumps(candidates.answers, default=str).encode()).digest()
        found = [of_best[int.from_bytes(digest[:8]) % len(of_best)]]
    return [{**candidates.row, "chosen": better[0], "rejected": worse[0]} for better, worse in found]


def take(row: Row, *names: str) -> dict[str, Any]:
    """The fields of a row without some that were read."""
    return {name: value for name, value in row.items() if name not in names}


def labelled(row: dict[str, Any], first: Any, second: Any, better: Literal[1, 2] | None) -> Candidates:
    """Two answers, one of which is better, or neither."""
    return Candidates(row, [(first, float(better == 1)), (second, float(better == 2))])


def number(row: Row, name: str) -> float:
    """A field that is a number, or spells one, as in CSV files."""
    value = row.get(name)
    if not has_content(value) and value is not False:
        raise DataError(f"field '{name}' is missing")
    try:
        return float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        raise DataError(f"field '{name}' is {kind(value)}: expected a number") from None


def choice(row: Row, name: str, known: Sequence[int] = (0, 1)) -> int:
    """A field that is one of a few whole numbers."""
    value = number(row, name)
    if value not in known:
        raise DataError(f"field '{name}' is {value:g}: expected one of {', '.join(map(str, known))}")
    return int(value)


def text(row: Row, name: str) -> str:
    """A field that is text."""
    value = row.get(name)
    if value is None:
        raise DataError(f"field '{name}' is missing")
    if not isinstance(value, str):
        raise DataError(f"field '{name}' is {kind(value)}: expected text")
    return value
