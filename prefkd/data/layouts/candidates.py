"""Answers to one prompt and what each is worth, and the pairs that they make."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from prefkd.data.messages import Message, kind, spelled
from prefkd.data.worth import finite_number
from prefkd.errors import DataError

Row = Mapping[str, Any]
Pairing = Literal["best_worst", "best_random", "all"]


class NoPreference(DataError):
    """The answers of a row are worth the same. Nothing is wrong with it, and nothing can be learned from it."""


class Candidates(NamedTuple):
    """Answers to one prompt.

    Attributes:
        row: The fields of the row that were not read, and `prompt` (text or messages) unless the answers repeat it.
        answers: (answer, worth): text or messages, and a number that is larger for better answers.
        graded: Whether the difference of two worths says how much better an answer is, and not only that it is.
    """

    row: dict[str, Any]
    answers: Sequence[tuple[Any, float]]
    graded: bool = True


def pairs_of(candidates: Candidates, pairing: Pairing, minimum_gap: float) -> list[dict[str, Any]]:
    """Rows with a prompt, a chosen and a rejected answer, and the `gap` between the two where they are graded.

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
    return [
        candidates.row
        | {"chosen": better[0], "rejected": worse[0]}
        | ({"gap": better[1] - worse[1]} if candidates.graded else {})
        for better, worse in found
    ]


def take(row: Row, *names: str) -> dict[str, Any]:
    """The fields of a row without some that were read."""
    return {name: value for name, value in row.items() if name not in names}


def labelled(row: dict[str, Any], first: Any, second: Any, better: Literal[1, 2] | None) -> Candidates:
    """Two answers, one of which is better, or neither."""
    return Candidates(row, [(first, float(better == 1)), (second, float(better == 2))], graded=False)


def preferred(row: dict[str, Any], chosen: Any, rejected: Any) -> Candidates:
    """A chosen and a rejected answer, or a list of texts in the place of either."""
    sides = [side if _are_texts(side) else [side] for side in (chosen, rejected)]
    answers = [(answer, worth) for side, worth in zip(sides, (1.0, 0.0), strict=True) for answer in side]
    return Candidates(row, answers, graded=False)


def number(row: Row, name: str) -> float:
    """A field that is a number, or spells one, as in CSV files."""
    return finite_number(row.get(name), name)


def choice(row: Row, name: str) -> int:
    """A field that is 0 or 1, or false or true."""
    words = {"false": 0, "true": 1}
    value = row.get(name)
    found = words[value.lower()] if isinstance(value, str) and value.lower() in words else number(row, name)
    if found not in (0, 1):
        raise DataError(f"field '{name}' is {found:g}: expected one of 0, 1")
    return int(found)


def text(row: Row, name: str) -> str:
    """A field that is text."""
    value = row.get(name)
    if value is None:
        raise DataError(f"field '{name}' is missing")
    if not isinstance(value, str):
        raise DataError(f"field '{name}' is {kind(value)}: expected text")
    return value


def structure(value: Any) -> Any:
    """The list or the object that a text spells, as in CSV files, or the value as it is."""
    found = spelled(value) if isinstance(value, str) and value.lstrip().startswith(("[", "{")) else None
    return found if isinstance(found, list | dict) else value


def asked(value: Any) -> Any:
    """A prompt: messages as they are, and text as a message of the user."""
    return [Message(role="user", content=value)] if isinstance(value, str) else value


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, str) for part in value)
