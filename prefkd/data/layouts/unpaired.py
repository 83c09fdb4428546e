"""Answers that were judged one by one, as KTO takes them -> pairs of a good and a bad answer to one prompt."""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from json import dumps
from typing import Any, NamedTuple

from prefkd.data.columns import renamed
from prefkd.data.fields import has_content
from prefkd.data.layouts.candidates import NoPreference
from prefkd.data.messages import decode_messages, without_nulls
from prefkd.errors import DataError

# An answer and its label.
NAMES = (("completion", "label"), ("response", "is_safe"), ("response", "label"), ("output", "kto_tag"))
# Where an answer may stand at the end, next to a label.
CONVERSATIONS = ("messages", "conversations")
TAGS = ("label", "kto_tag")
RIVALS = ("chosen", "rejected", "rejected_response", "rejected_messages")
LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False, "-1": False}
# Where a prompt may stand. Answers belong together where all of these are the same.
PROMPT = (
    "prompt",
    "instruction",
    "question",
    "query",
    "input",
    "system",
    "history",
    "tools",
    "functions",
    *CONVERSATIONS,
)


class Judged(NamedTuple):
    """An answer that was judged by itself.

    Attributes:
        row: The fields of its row without the answer and the label.
        answer: Text or messages.
        good: The label.
    """

    row: dict[str, Any]
    answer: Any
    good: bool


def paired(rows: Iterable[tuple[int, Any]], columns: Mapping[str, str] | None = None) -> Iterator[tuple[int, Any]]:
    """Rows in which each good answer stands with the next bad one to its prompt, or the other way round.

    trl-lib/kto-mix-14k, KTOTrainer of TRL: prompt (text or messages), completion (text or messages), label (true or
    false). axolotl: the same with instruction or question in place of prompt. LLaMA-Factory and ms-swift: messages or
    conversations, which end with the answer, and label or kto_tag; instruction, input, output, kto_tag.
    PKU-Alignment/BeaverTails: prompt, response, is_safe, category. Other rows stay as they are.

    Args:
        rows: Numbered rows. Only answers that wait for another are held.
        columns: `data.columns`, where it names `completion` or `label`.

    Yields:
        The row of the later answer, with `chosen` and `rejected`; a `DataError` for an answer whose label is neither
        true nor false; at the end a `NoPreference` for each answer that has found none.
    """
    waiting: dict[bytes, dict[bool, deque[tuple[int, Any]]]] = defaultdict(lambda: {True: deque(), False: deque()})
    prompt = {*PROMPT, *(path.partition(".")[0] for path in (columns or {}).values())}
    for number, row in rows:
        try:
            judged = _judged(row, columns or {}) if isinstance(row, dict) else None
        except DataError as error:
            yield number, error
            continue
        if judged is None:
            yield number, row
            continue
        asked = {name: without_nulls(value) for name, value in judged.row.items() if name in prompt and value}
        key = blake2b(dumps(asked, default=str, sort_keys=True).encode(), digest_size=16).digest()
        others = waiting[key][not judged.good]
        if not others:
            waiting[key][judged.good].append((number, judged.answer))
            continue
        _, other = others.popleft()
        if not any(waiting[key].values()):
            del waiting[key]
        good, bad = (judged.answer, other) if judged.good else (other, judged.answer)
        yield number, judged.row | {"chosen": good, "rejected": bad}
    left = sorted(number for both in waiting.values() for answers in both.values() for number, _ in answers)
    for number in left:
        yield number, NoPreference("no answer with the other label is left for its prompt")


def _judged(row: dict[str, Any], columns: Mapping[str, str]) -> Judged | None:
    """What a row says of its answer, or None if it is of another kind."""
    named = {name: columns[name] for name in NAMES[0] if name in columns}
    try:
        row = renamed(row, named) if named else row
    except DataError:
        return None
    if any(has_content(row.get(name)) for name in RIVALS):
        return None
    others = {path.partition(".")[0] for name, path in columns.items() if name not in named}
    for answer, label in NAMES:
        if answer in row and label in row and answer not in others:
            rest = {name: value for name, value in row.items() if name not in (answer, label)}
            return Judged(rest, row[answer], _label(row, label))
    label = next((name for name in TAGS if has_content(row.get(name)) or row.get(name) in (0, False)), None)
    for name in CONVERSATIONS if label else ():
        talk = decode_messages(row.get(name), name)
        if isinstance(talk, list) and len(talk) > 1:
            rest = {key: value for key, value in row.items() if key != label} | {name: talk[:-1]}
            return Judged(rest, talk[-1], _label(row, str(label)))
    return None


def _label(row: Mapping[str, Any], name: str) -> bool:
    found = LABELS.get(str(row[name]).strip().lower())
    if found is None:
        raise DataError(f"field '{name}' is {row[name]!r}: expected true or false")
    return found
