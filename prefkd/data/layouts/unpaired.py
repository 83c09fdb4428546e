"""Answers that were judged one by one, as KTO takes them -> pairs of a good and a bad answer to one prompt."""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from json import dumps
from typing import Any

from prefkd.data.layouts.candidates import NoPreference

COLUMNS = frozenset({"prompt", "completion", "label"})
LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False, "-1": False}


def paired(rows: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """Rows in which each good answer stands with the next bad one to its prompt, or the other way round.

    trl-lib/kto-mix-14k, KTOTrainer of TRL: prompt (text or messages), completion (text or messages), label (true or
    false). Other rows stay as they are.

    Args:
        rows: Numbered rows. Only answers that wait for another are held.

    Yields:
        The row of the later answer, with `chosen` and `rejected`; at the end a `NoPreference` for each answer that has
        found none.
    """
    waiting: dict[bytes, dict[bool, deque[tuple[int, Any]]]] = defaultdict(lambda: {True: deque(), False: deque()})
    for number, row in rows:
        label = LABELS.get(str(row.get("label")).lower()) if isinstance(row, dict) and set(row) >= COLUMNS else None
        if label is None:
            yield number, row
            continue
        key = blake2b(dumps(row["prompt"], default=str).encode(), digest_size=16).digest()
        others = waiting[key][not label]
        if not others:
            waiting[key][label].append((number, row["completion"]))
            continue
        _, other = others.popleft()
        if not any(waiting[key].values()):
            del waiting[key]
        good, bad = (row["completion"], other) if label else (other, row["completion"])
        answers = {"chosen": good, "rejected": bad}
        yield number, {name: value for name, value in row.items() if name not in ("completion", "label")} | answers
    left = sorted(number for both in waiting.values() for answers in both.values() for number, _ in answers)
    for number in left:
        yield number, NoPreference("no answer with the other label is left for its prompt")
