"""Preference pairs from files, folders or the Hub -> a train and a held-out data set in one form.

The data sets have the columns

    prompt     list of {role, content}, ends with a message of the user
    chosen     the better answer
    rejected   the worse answer; empty where answers have no rival (format `answers`)
    file, row  where the pair comes from
    source     the source that it belongs to, by the name that metrics have for it
    weight     its weight in the loss
    margin     by how much the chosen answer must win
    gap        how far apart the answers are, null where the row does not tell
    calls      tools and calls of tools, `prefkd.data.messages.pack_calls`, null where there are none
    key        names the prompt, `prefkd.data.mixtures.prompt_key`
    length     characters of the prompt and the longer answer
    ratio      characters of the longer answer for one of the shorter
    chosen_is_cut, rejected_is_cut    whether an answer is not finished

all text in Unicode NFC, and a fingerprint that depends on their content, not on where it lay or who read it. Rows are
looked at column by column, as Arrow has them: a million would not fit into memory as Python objects.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, cast

import datasets.config
import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value
from datasets.exceptions import DatasetGenerationError

from prefkd.data.arrow import column, numbers, present
from prefkd.data.layouts import LAYOUTS
from prefkd.data.layouts.unpaired import NAMES, paired
from prefkd.data.mixtures import repeated
from prefkd.data.own_rows import own_reader, reader_fingerprint
from prefkd.data.reading import Reader, formats_of, read_rows
from prefkd.data.settings import DataConfig, Filters, MixedRows
from prefkd.data.sources import open_source
from prefkd.data.splits import (
    has_held_out_prompt,
    hold_out,
    limited_part,
    mixed_parts,
    select,
    together,
    without_known_prompts,
)
from prefkd.errors import DataError
from prefkd.files import fingerprint

logger = logging.getLogger(__name__)

# Part of every cache key: raise it when the same files come to mean other pairs.
VERSION = 7

COLUMNS = Features(
    {
        "prompt": List({"role": Value("string"), "content": Value("string")}),
        "chosen": Value("string"),
        "rejected": Value("string"),
        "file": Value("string"),
        "row": Value("int64"),
    }
)

# What else is known of a pair. Data sets without these columns are read as if all pairs were worth the same.
KNOWN = Features(
    {
        "source": Value("string"),
        "weight": Value("float32"),
        "margin": Value("float32"),
        "gap": Value("float32"),
        "calls": Value("string"),
        "key": Value("int64"),
        "length": Value("int64"),
        "ratio": Value("float32"),
        "chosen_is_cut": Value("bool"),
        "rejected_is_cut": Value("bool"),
    }
)

# What is known of a row while it is read, `prefkd.data.reading.read_rows`.
READING = Features(
    {"problem": Value("string"), "tie": Value("bool"), "format": Value("string"), "unread": List(Value("string"))}
)


class BadRow(NamedTuple):
    """A row that cannot be used."""

    file: str
    row: int
    reason: str

    def __str__(self) -> str:
        return f"row {self.row} of {self.file}: {self.reason}"


@dataclass(frozen=True)
class PairSplits:
    """The pairs of a run.

    Attributes:
        train, held_out: Data sets with the columns of this module; `held_out` can be empty.
        skipped: The rows that were left out (`on_bad_row: skip`).
        formats: The form of the rows that can be used -> how many have it.
        ties: Rows without a preference: the better answer is not better, or not by `minimum_gap`.
        unread: Fields with content that are not read, and are not known to be metadata -> how many rows have them.
        sources: Name of each source -> its pairs to train on and their share, and its held-out pairs.
        filtered: How many pairs each of `data.filters` left out.
        repeated_prompts: Pairs in `train` whose prompt occurred before in it.
        leaked_prompts: Pairs in `train` whose prompt is held out.
        repeated_prompts_dropped, leaked_prompts_dropped: Pairs that `data.duplicates` and `data.leakage` left out; one
            that both would leave out counts as leaked.
    """

    train: Dataset
    held_out: Dataset
    skipped: list[BadRow]
    formats: dict[str, int] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)
    ties: int = 0
    sources: dict[str, dict[str, float]] = field(default_factory=dict)
    filtered: dict[str, int] = field(default_factory=dict)
    repeated_prompts: int = 0
    leaked_prompts: int = 0
    repeated_prompts_dropped: int = 0
    leaked_prompts_dropped: int = 0

    @property
    def report(self) -> dict[str, Any]:
        """What reading did to the data, ready for JSON."""
        skipped = [str(row) for row in self.skipped]
        return {
            "formats": self.formats,
            "rows_without_preference": self.ties,
            "unread_fields": self.unread,
            "sources": self.sources,
            "filtered": self.filtered,
            "repeated_prompts": self.repeated_prompts,
            "leaked_prompts": self.leaked_prompts,
            "repeated_prompts_dropped": self.repeated_prompts_dropped,
            "leaked_prompts_dropped": self.leaked_prompts_dropped,
            "skipped_rows": skipped,
        }

    @property
    def omissions(self) -> str:
        """Omissions and mixture of the data, in one line for the terminal."""
        ties = f", {self.ties} without a preference" if self.ties else ""
        fields = f", not read: {in_rows(self.unread)}" if self.unread else ""
        filtered = "".join(f", {count} by filters.{name}" for name, count in self.filtered.items() if count)
        prompts = {
            "with a held-out prompt left out": self.leaked_prompts_dropped,
            "with a repeated prompt left out": self.repeated_prompts_dropped,
            "with a held-out prompt kept": self.leaked_prompts,
        }
        same = "".join(f", {count} {what}" for what, count in prompts.items() if count)
        shares = [f"{part['share']:.1%} {name}" for name, part in self.sources.items() if part["pairs"]]
        mixed = f"; {', '.join(shares)}" if len(shares) > 1 else ""
        return f"{len(self.skipped)} bad rows skipped{ties}{filtered}{same}{fields}{mixed}"


def in_rows(fields: Mapping[str, int]) -> str:
    """Fields, each with the number of rows that have it, for a sentence."""
    return ", ".join(f"{name} ({count:,} row{'s' * (count > 1)})" for name, count in fields.items())


def load_pairs(config: DataConfig) -> PairSplits:
    """Read, check, filter, split, mix and limit the pairs of a config. What was read is cached by the files' content.

    Raises:
        DataError: A source cannot be read, or a row cannot be used and `on_bad_row` is `error`.
    """
    parts, filtered, bad = config.parts, Counter[str](), list[BadRow]()
    read = {part.label: _read_source(part, config) for part in parts}
    for part in parts:
        _require_several_answers(part, read[part.label])
    train = [_usable(rows, config, bad, filtered) for rows in read.values()]
    if config.held_out is not None:
        read["held out"] = _read_source(config.held_out, config)
        held_out = [_usable(read["held out"], config, bad, filtered)]
    else:
        train, held_out = hold_out(train, config.held_out_fraction, config.seed)
    evaluated = limited_part(together(held_out), config.held_out_limit, config.seed)
    train, leaked, again = without_known_prompts(train, evaluated, config)
    mixed = together(mixed_parts(train, parts, config.seed))
    ties = sum(int(numbers(rows, "tie").sum()) for rows in read.values())
    if not len(mixed):
        gone = {"bad": len(bad), "without a preference": ties, "held out": len(evaluated)}
        gone |= {"with a held-out prompt": leaked, "with a repeated prompt": again}
        gone |= {f"left out by filters.{name}": count for name, count in filtered.items()}
        raise _nothing_left(config.label, gone)
    mixed = limited_part(mixed, config.limit, config.seed)
    if config.weight is not None and not numbers(mixed, "weight").any():
        raise DataError(
            f"{config.label}: no pair has a weight above 0 in '{config.weight}', so nothing could be learned"
        )
    return PairSplits(
        train=mixed,
        held_out=evaluated,
        skipped=bad,
        formats=dict(sum((_counts(column(rows, "format")) for rows in read.values()), Counter[str]())),
        unread=_unread_fields(list(read.values()), config.label),
        ties=ties,
        sources=_shares(mixed, evaluated),
        filtered=dict(filtered),
        repeated_prompts=int(repeated(numbers(mixed, "key")).sum()),
        leaked_prompts=int(has_held_out_prompt(mixed, evaluated).sum()),
        repeated_prompts_dropped=again,
        leaked_prompts_dropped=leaked,
    )


def file_name(part: MixedRows, file: str, *, mixed: bool) -> str:
    """What pairs call the file that they come from. Files of two sources may have one name."""
    return f"{part.label}/{file}" if mixed else file


def bad_rows_error(bad: Sequence[BadRow]) -> DataError:
    """The error that names the first of some bad rows and counts the others."""
    more = f"; {len(bad) - 1} more rows are bad" if len(bad) > 1 else ""
    return DataError(f"{bad[0]}{more}; fix the data, or leave such rows out with on_bad_row: skip")


def _nothing_left(label: str, gone: Mapping[str, int]) -> DataError:
    """The error that says where all pairs have gone."""
    told = ", ".join(f"{count:,} {what}" for what, count in gone.items() if count)
    return DataError(f"{label}: no pairs are left to train on" + (f" ({told})" if told else ""))


def _read_source(part: MixedRows, config: DataConfig) -> Dataset:
    """All rows of a source, and for each `problem`: why it cannot be used, or None. Cached by content."""
    source = cast(str, part.source)
    opened = open_source(source, split=part.split, subset=part.subset, revision=part.revision)
    reader = Reader(
        format=part.format,
        columns={name: column for name, column in part.columns.items() if name not in NAMES[0]},
        pairing=part.pairing,
        minimum_gap=part.minimum_gap,
        weight=config.weight,
        margin=part.margin,
        margin_scale=config.margin_scale,
        function=own_reader(part.reader) if part.reader is not None else None,
    )
    own = reader_fingerprint(part.reader) if part.reader is not None else None
    files = {file_name(part, file, mixed=bool(config.sources)): read for file, read in opened.parts.items()}
    pair_up = partial(paired, columns=part.columns) if reader.function is None else iter
    made_of = [
        reader._replace(function=None, columns=part.columns)._asdict(),
        own,
        part.label,
        list(files),
        opened.content,
    ]

    def all_rows() -> Iterator[dict[str, Any]]:
        row = None
        for file, read in files.items():
            for row in read_rows(file, pair_up(read()), formats_of(file, pair_up(read()), reader), reader):
                yield row | {"source": part.label}
        if row is None:
            raise DataError(f"{source}: there are no rows in it")

    try:
        rows = Dataset.from_generator(
            all_rows,
            features=Features({**COLUMNS, **KNOWN, **READING}),
            fingerprint=fingerprint("pairs", VERSION, *made_of),
        )
    except DatasetGenerationError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.filename is None:  # a write, to a disk that is full
            cause.filename = str(datasets.config.HF_DATASETS_CACHE)
        raise cause if isinstance(cause, (DataError, OSError)) else error from None
    return cast(Dataset, rows)


def _require_several_answers(part: MixedRows, rows: Dataset) -> None:
    """Refuse settings that choose among the answers of a row if all rows are pairs already."""
    formats = _counts(column(rows, "format"))
    if not formats or any(name in LAYOUTS for name in formats):
        return
    if part.minimum_gap:
        raise DataError(
            f"{part.source}: minimum_gap compares several answers of a row, and these rows are pairs already; use "
            "filters.gap instead"
        )
    if part.pairing != MixedRows.pairing:
        raise DataError(
            f"{part.source}: pairing: {part.pairing} chooses among several answers of a row, and these rows are pairs "
            "already; remove it"
        )


def _usable(rows: Dataset, config: DataConfig, bad: list[BadRow], filtered: Counter[str]) -> Dataset:
    """The rows that can be used.

    Args:
        bad: Gets those that cannot, if the config lets them be.
        filtered: Gets the number of pairs that each filter leaves out.
    """
    wrong, ties = present(rows, "problem"), numbers(rows, "tie")
    found = (wrong & ~ties).nonzero()[0]
    if len(found):
        told = rows.select_columns(["file", "row", "problem"]).select(found)
        bad += [BadRow(row["file"], row["row"], row["problem"]) for row in cast(Any, told)]
        if config.on_bad_row == "error":
            raise bad_rows_error(bad)
    kept = ~wrong & _passing(rows, config.filters, ~wrong, filtered)
    usable = select(rows.remove_columns(list(READING)), kept.nonzero()[0])
    if config.reverse:
        columns = usable.column_names
        swapped = {"chosen": "rejected", "chosen_is_cut": "rejected_is_cut"}
        swapped |= {other: one for one, other in swapped.items()}
        usable = usable.rename_columns(swapped).select_columns(columns)
    return usable


def _passing(rows: Dataset, filters: Filters, usable: np.ndarray, filtered: Counter[str]) -> np.ndarray:
    """(n,) which rows no filter leaves out; each is counted for the first that does."""
    left = usable.copy()
    tests = {
        "gap": (filters.gap, lambda least: np.nan_to_num(numbers(rows, "gap"), nan=-np.inf) >= least),
        "length_ratio": (filters.length_ratio, lambda most: numbers(rows, "ratio") <= most),
        "length": (filters.length, lambda most: numbers(rows, "length") <= most),
    }
    for name, (limit, passes) in tests.items():
        if limit is None:
            continue
        filtered[name] += int((left & ~passes(limit)).sum())
        left &= passes(limit)
    return left


def _shares(train: Dataset, held_out: Dataset) -> dict[str, dict[str, float]]:
    trained, evaluated = _counts(column(train, "source")), _counts(column(held_out, "source"))
    return {
        name: {"pairs": trained[name], "share": round(trained[name] / len(train), 4), "held_out": evaluated[name]}
        for name in trained | evaluated
    }


def _unread_fields(sources: Sequence[Dataset], label: str) -> dict[str, int]:
    """Fields with content that are not read, which is said -> how many rows have them."""
    lists = (pc.list_flatten(column(rows, "unread")) for rows in sources)  # pyright: ignore[reportAttributeAccessIssue]
    unread = dict(sum(map(_counts, lists), Counter[str]()))
    if unread:
        logger.warning("%s: fields that hold something and are not read: %s", label, in_rows(unread))
    return unread


def _counts(values: Any) -> Counter[str]:
    """How often each text occurs."""
    found = pc.value_counts(values).to_pylist()  # pyright: ignore[reportAttributeAccessIssue]
    return Counter({entry["values"]: entry["counts"] for entry in found if entry["values"] is not None})
