"""Preference pairs from files, folders or the Hub -> a train and a held-out data set in one form.

The data sets have the columns

    prompt     list of {role, content}, ends with a message of the user
    chosen     the better answer
    rejected   the worse answer
    file, row  where the pair comes from

all text in Unicode NFC, and a fingerprint that depends on their content, not on where it lay or who read it.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import datasets.config
import numpy as np
from datasets import Dataset, Features, List, Value
from datasets.exceptions import DatasetGenerationError

from prefkd.config.hints import LARGEST_SEED, size_problems
from prefkd.data.formats import FORMATS
from prefkd.data.layouts import LAYOUTS
from prefkd.data.layouts.candidates import Pairing
from prefkd.data.reading import Reader, formats_of, read_rows
from prefkd.data.sources import open_source, source_problems, split_problems
from prefkd.errors import DataError, Problem, nearest
from prefkd.files import fingerprint

logger = logging.getLogger(__name__)

# Part of every cache key: raise it when the same files come to mean other pairs.
VERSION = 2

MOST_WORKERS = 1024  # each is a process

COLUMNS = Features(
    {
        "prompt": List({"role": Value("string"), "content": Value("string")}),
        "chosen": Value("string"),
        "rejected": Value("string"),
        "file": Value("string"),
        "row": Value("int64"),
    }
)

# What is known of a row while it is read, `prefkd.data.reading.read_rows`.
READING = Features(
    {"problem": Value("string"), "tie": Value("bool"), "format": Value("string"), "unread": List(Value("string"))}
)


@dataclass
class DataConfig:
    """Which preference pairs to read, and how much of each a model sees.

    Attributes:
        source: A file (`prefkd.data.containers.KINDS`), a folder of such files, one that `save_to_disk` of datasets
            wrote, or the id of a data set on the Hugging Face Hub.
        format: The form of the rows, `prefkd.data.formats`, or their layout, `prefkd.data.layouts`; `auto` finds it.
        columns: Name that the form reads -> column that holds it (`{prompt: question}`); dots lead into objects.
        pairing: From several answers with ranks or scores, make one pair of the best and the worst, one of the best and
            a random one, or all pairs.
        minimum_gap: The least difference of their scores or ranks.
        subset: The configuration of a Hub data set, or the name of a folder in it (harmless-base, say).
        split: The split of a Hub data set; of a folder, the files that are named after it (train.jsonl,
            train-00000.parquet), or all those that are named after no split.
        held_out_source: Pairs to evaluate on. Without it a part of `source` is held out.
        held_out_split: The split of the held-out pairs, in `held_out_source` if given, else in `source`.
        held_out_fraction: The part that is held out where neither of the two is given. Pairs with the same prompt stay
            together, so that no prompt is both trained on and evaluated on.
        limit, held_out_limit: At most so many pairs, chosen at random; a smaller limit takes a part of a larger one.
        reverse: Swap chosen and rejected, to train the negative one of two contrastive teachers.
        on_bad_row: Whether a row that cannot be used is an error, or is left out, counted and reported.
        seed: Seed of the held-out part and of the limits.
        max_length: Most tokens of a prompt and one answer together, on each side.
        max_prompt_length: Most tokens of a prompt whose pair is longer than `max_length`.
        truncation: Which end of such a prompt is kept.
        workers: Processes that tokenise; None takes as many as are worth it.
    """

    source: str
    format: str = "auto"
    columns: dict[str, str] = field(default_factory=dict)
    pairing: Pairing = "best_worst"
    minimum_gap: float = 0.0
    subset: str | None = None
    split: str = "train"
    held_out_source: str | None = None
    held_out_split: str | None = None
    held_out_fraction: float = 0.1
    limit: int | None = None
    held_out_limit: int | None = None
    reverse: bool = False
    on_bad_row: Literal["error", "skip"] = "error"
    seed: int = 0
    max_length: int = 512
    max_prompt_length: int = 256
    truncation: Literal["keep_start", "keep_end"] = "keep_end"
    workers: int | None = None

    @property
    def held_out(self) -> tuple[str, str] | None:
        """Source and split of the held-out pairs, None where they are a part of the training pairs."""
        if self.held_out_source is None and self.held_out_split is None:
            return None
        return self.held_out_source or self.source, self.held_out_split or self.split

    def problems(self) -> Iterator[Problem | str]:
        for name in ("source", "held_out_source"):
            value = getattr(self, name)
            if value is not None:
                yield from source_problems(value, name)
        yield from split_problems(self.source, self.split, "split")
        if self.held_out and self.held_out != (self.source, self.split):
            yield from split_problems(*self.held_out, "held_out_split")
        if Path(self.source).is_file() and self.subset is not None:
            yield f"subset: {self.subset} means nothing to a file; leave it out"
        if self.held_out_split is not None and Path(self.held_out_source or self.source).is_file():
            yield f"held_out_split: {self.held_out_split} means nothing to a file; name a held_out_source instead"
        elif self.held_out == (self.source, self.split):
            key = "held_out_source" if self.held_out_source else "held_out_split"
            yield f"{key}: {getattr(self, key)} is what is trained on; name another or leave it out"
        if self.format not in ("auto", *FORMATS, *LAYOUTS):
            yield f"format: {self.format} is unknown{nearest(self.format, ['auto', *FORMATS, *LAYOUTS])}"
        for name, column in self.columns.items():
            if not column:
                yield f"columns.{name}: names no column; write {name}: COLUMN"
        if not self.minimum_gap >= 0:
            yield f"minimum_gap: {self.minimum_gap} is below 0; use 0 for any difference"
        if not 0 <= self.held_out_fraction < 1:
            yield f"held_out_fraction: {self.held_out_fraction} is no part of the data; use 0.1 for a tenth"
        yield from size_problems(self, "limit", "held_out_limit", "max_length", "max_prompt_length")
        yield from size_problems(self, "workers", most=MOST_WORKERS)
        yield from size_problems(self, "seed", least=0, most=LARGEST_SEED)
        if self.max_length <= self.max_prompt_length:
            yield (
                f"max_length: {self.max_length} leaves no room for an answer after {self.max_prompt_length} tokens of "
                "prompt; raise it or lower max_prompt_length"
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
    """

    train: Dataset
    held_out: Dataset
    skipped: list[BadRow]
    formats: dict[str, int] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)
    ties: int = 0

    @property
    def report(self) -> dict[str, Any]:
        """What reading did to the data, ready for JSON."""
        skipped = [str(row) for row in self.skipped]
        return {
            "formats": self.formats,
            "rows_without_preference": self.ties,
            "unread_fields": self.unread,
            "skipped_rows": skipped,
        }

    @property
    def omissions(self) -> str:
        """What is left out of the data, for one line of the terminal."""
        ties = f", {self.ties} without a preference" if self.ties else ""
        fields = f", not read: {in_rows(self.unread)}" if self.unread else ""
        return f"{len(self.skipped)} bad rows skipped{ties}{fields}"


def in_rows(fields: Mapping[str, int]) -> str:
    """Fields, each with the number of rows that have it, for a sentence."""
    return ", ".join(f"{name} ({count:,} row{'s' * (count > 1)})" for name, count in fields.items())


def load_pairs(config: DataConfig) -> PairSplits:
    """Read, check, split and limit the pairs of a config. What was read is cached by the content of the files.

    Raises:
        DataError: A source cannot be read, or a row cannot be used and `on_bad_row` is `error`.
    """
    sources = [(config.source, config.split), *([config.held_out] if config.held_out else [])]
    read = [_read_source(source, split, config) for source, split in sources]
    (train, bad), *others = (_usable(rows, config) for rows in read)
    if others:
        [(held_out, also_bad)] = others
        bad += also_bad
    else:
        train, held_out = _hold_out(train, config.held_out_fraction, config.seed)
    if not len(train):
        raise DataError(f"{config.source}: no pairs are left to train on")
    formats, unread_by_row, ties = Counter(), Counter(), 0
    for rows in read:
        ties += sum(rows["tie"][:])
        formats.update(name for name in rows["format"][:] if name)
        unread_by_row.update(name for names in rows["unread"][:] for name in names)
    if unread_by_row:
        logger.warning("%s: fields that hold something and are not read: %s", config.source, in_rows(unread_by_row))
    return PairSplits(
        train=_limited(train, config.limit, config.seed),
        held_out=_limited(held_out, config.held_out_limit, config.seed),
        skipped=bad,
        formats=dict(formats),
        unread=dict(unread_by_row),
        ties=ties,
    )


def bad_rows_error(bad: Sequence[BadRow]) -> DataError:
    """The error that names the first of some bad rows and counts the others."""
    more = f"; {len(bad) - 1} more rows are bad" if len(bad) > 1 else ""
    return DataError(f"{bad[0]}{more}; fix the data, or leave such rows out with on_bad_row: skip")


def _read_source(source: str, split: str, config: DataConfig) -> Dataset:
    """All rows of a source, and for each `problem`: why it cannot be used, or None. Cached by content."""
    opened = open_source(source, split=split, subset=config.subset)
    reader = Reader(config.format, config.columns, config.pairing, config.minimum_gap)

    def all_rows() -> Iterator[dict[str, Any]]:
        row = None
        for file, read in opened.parts.items():
            for row in read_rows(file, read(), formats_of(file, read(), reader), reader):
                yield row
        if row is None:
            raise DataError(f"{source}: there are no rows in it")

    try:
        rows = Dataset.from_generator(
            all_rows,
            features=Features({**COLUMNS, **READING}),
            fingerprint=fingerprint("pairs", VERSION, reader._asdict(), list(opened.parts), opened.content),
        )
    except DatasetGenerationError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.filename is None:  # a write, to a disk that is full
            cause.filename = str(datasets.config.HF_DATASETS_CACHE)
        raise cause if isinstance(cause, (DataError, OSError)) else error from None
    return cast(Dataset, rows)


def _usable(rows: Dataset, config: DataConfig) -> tuple[Dataset, list[BadRow]]:
    """The rows that can be used, and those that cannot, if the config lets them be."""
    problems, ties = rows["problem"][:], rows["tie"][:]
    unusable = [i for i, problem in enumerate(problems) if problem and not ties[i]]
    bad = [BadRow(rows[i]["file"], rows[i]["row"], problems[i]) for i in unusable]
    if bad and config.on_bad_row == "error":
        raise bad_rows_error(bad)
    usable = _select(rows.remove_columns(list(READING)), [i for i, problem in enumerate(problems) if not problem])
    if config.reverse:
        swapped = {"chosen": "rejected", "rejected": "chosen"}
        usable = usable.rename_columns(swapped).select_columns(list(COLUMNS))
    return usable, bad


def _hold_out(pairs: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Split by prompt: the prompts that a seeded hash puts first are held out until the fraction is reached.

    The last of them is never held out, so that pairs of one prompt are trained on.
    """
    rows_of_prompt: dict[str, list[int]] = {}
    for i, prompt in enumerate(pairs["prompt"]):
        rows_of_prompt.setdefault(json.dumps(prompt), []).append(i)
    held_out: list[int] = []
    for prompt in sorted(rows_of_prompt, key=lambda prompt: fingerprint(seed, prompt))[:-1]:
        if len(held_out) >= round(fraction * len(pairs)):
            break
        held_out += rows_of_prompt[prompt]
    kept = np.setdiff1d(np.arange(len(pairs)), held_out)
    return _select(pairs, kept.tolist()), _select(pairs, sorted(held_out))


def _limited(pairs: Dataset, limit: int | None, seed: int) -> Dataset:
    """A random part in the old order. With the same seed a smaller part lies in a larger one."""
    if limit is None or limit >= len(pairs):
        return pairs
    chosen = np.random.default_rng(seed).permutation(len(pairs))[:limit]
    return _select(pairs, sorted(chosen.tolist()))


def _select(pairs: Dataset, rows: list[int]) -> Dataset:
    if rows == list(range(len(pairs))):
        return pairs
    return pairs.select(rows, new_fingerprint=fingerprint(pairs._fingerprint, rows))
