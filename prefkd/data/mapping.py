"""Pairs -> a data set of tokens: made by worker processes, cached, and without the pairs that cannot be used."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset, Features, Value

from prefkd.data.arrow import present
from prefkd.data.pairs import BadRow, DataConfig, bad_rows_error
from prefkd.data.rows import WORTH, Contents, read_columns
from prefkd.data.sides import ModelSide
from prefkd.data.truncation import Limits
from prefkd.data.workers import Shared, available_cores, same_environment
from prefkd.errors import PrefkdError
from prefkd.files import fingerprint

logger = logging.getLogger(__name__)

PAIRS_PER_BATCH = 256
# Below so many pairs for each, starting another process takes longer than it saves.
PAIRS_PER_WORKER = 2000

# Why a pair is always left out, whatever `on_bad_row` says: nothing is wrong with the data.
NO_PARENT = "no parent token of an answer is left after truncation"
NOTHING_LEFT = "no token of an answer is left after truncation"
NO_TOKEN = "a tokenizer has no token for an answer"
SAME_TOKENS = "both answers have the same tokens after truncation"


def map_pairs(
    pairs: Dataset,
    work: Callable[..., dict[str, list]],
    *,
    columns: Features,
    sides: Mapping[str, ModelSide],
    config: DataConfig,
    arguments: Mapping[str, Any],
    made_from: Sequence[Any],
    description: str,
    left_out: Counter[str] | None,
) -> Dataset:
    """Let worker processes make other columns of pairs, or find them in the cache.

    Args:
        work: Called with columns of some rows, `shared_sides`, `limits` and the arguments; returns the new columns and
            `problem`, the reason why a row cannot be used.
        columns: The new columns.
        sides: Who reads the pairs: the student and the teacher, or a model `ALONE`.
        made_from: Everything that the columns depend on, apart from pairs and limits.
    """
    columns = Features({name: hint for name, hint in WORTH.items() if name in pairs.column_names} | columns)
    if not len(pairs):
        return Dataset.from_dict({name: [] for name in columns}, features=columns)
    limits = Limits(config.max_length, config.max_prompt_length, config.truncation)
    workers = config.workers or min(available_cores(), len(pairs) // PAIRS_PER_WORKER)
    with same_environment():
        rows = pairs.map(
            work,
            batched=True,
            batch_size=PAIRS_PER_BATCH,
            remove_columns=[name for name in pairs.column_names if name not in WORTH],
            features=Features({**columns, "problem": Value("string")}),
            num_proc=workers if workers > 1 else None,
            fn_kwargs={"shared_sides": Shared(dict(sides)), "limits": limits, **arguments},
            new_fingerprint=fingerprint(*made_from, pairs._fingerprint, limits),
            desc=description,
        )
    kept = _without_problems(rows, config, _unreadable_rows(rows, sides), left_out)
    _require_positions(kept, sides, config.max_length)
    return kept


def _unreadable_rows(rows: Dataset, sides: Mapping[str, ModelSide]) -> dict[int, str]:
    """The rows with a token that a model has no embedding for, with that token; not cached, since models may change."""
    found: dict[int, str] = {}
    for name, side in sides.items():
        prompts, answers = read_columns(name, instructed=Contents.of(rows).instructed)
        for column in (*prompts, *answers) if side.embeddings is not None else ():
            largest = pc.max(pc.list_flatten(rows.data[column])).as_py()  # pyright: ignore[reportAttributeAccessIssue]
            if largest is not None and largest >= side.embeddings:
                unreadable = ((i, side.unreadable(ids or ())) for i, ids in enumerate(rows[column][:]))
                found |= {i: problem for i, problem in unreadable if problem}
    return found


def _require_positions(rows: Dataset, sides: Mapping[str, ModelSide], max_length: int) -> None:
    """Refuse rows that are longer than a model can tell apart; not cached, since models may change."""
    for name, side in sides.items():
        if side.positions is None or side.positions >= max_length:
            continue  # no row is longer than `max_length`
        prompts, answers = read_columns(name, instructed=Contents.of(rows).instructed)
        for index, row in enumerate(rows.select_columns([*prompts, *answers])):
            parts: dict[str, list[int]] = row  # pyright: ignore[reportAssignmentType]
            length = sum(max(len(parts[column]) for column in columns) for columns in (prompts, answers))
            if length > side.positions:
                raise PrefkdError(
                    f"row {rows[index]['row']} of {rows[index]['file']} has {length} tokens, and {side.name} has "
                    f"{side.positions} positions; set data.max_length={side.positions}"
                )


def _without_problems(
    rows: Dataset, config: DataConfig, unreadable: Mapping[int, str], left_out: Counter[str] | None
) -> Dataset:
    """The rows that could be aligned. The others are an error or left out, which is said and counted."""
    problems = present(rows, "problem")
    problems[list(unreadable)] = True
    places = problems.nonzero()[0].tolist()
    told: Any = rows.select_columns(["file", "row", "problem"]).select(places)
    bad = [
        BadRow(row["file"], row["row"], row["problem"] or unreadable[i]) for i, row in zip(places, told, strict=True)
    ]
    refused = [row for row in bad if row.reason not in (NO_PARENT, NOTHING_LEFT, NO_TOKEN, SAME_TOKENS)]
    if refused and config.on_bad_row == "error":
        raise bad_rows_error(refused)
    reasons = Counter(row.reason for row in bad)
    if left_out is not None:
        left_out.update(reasons)
    for reason, count in reasons.items():
        first = next(row for row in bad if row.reason == reason)
        logger.warning("%d of %d pairs are left out; %s", count, len(rows), first)
    return rows.remove_columns("problem").select((~problems).nonzero()[0])
