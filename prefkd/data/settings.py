"""Settings of the data: which rows are read and how, how sources are mixed, what is left out, and the lengths."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

from prefkd.config import Component
from prefkd.config.hints import LARGEST_SEED, MOST_TOKENS, size_problems
from prefkd.data.formats import ANSWERS_ALONE, FORMATS
from prefkd.data.layouts import LAYOUTS
from prefkd.data.layouts.candidates import Pairing
from prefkd.data.layouts.tools import ANSWERS, QUESTIONS
from prefkd.data.layouts.unpaired import NAMES as JUDGED
from prefkd.data.own_rows import reader_problems
from prefkd.data.sources import part_problems, source_problems, split_problems
from prefkd.data.worth import SCORES
from prefkd.errors import Problem, nearest
from prefkd.keys import without_keys

# What formats read: the left sides of `columns`.
NAMES = sorted(
    {name for form in FORMATS.values() for name in form.reads}
    | {name for layout in LAYOUTS.values() for name in layout.columns}
    | {name for names in (*ANSWERS, *JUDGED, *SCORES, QUESTIONS) for name in names}
    | {"history", "score_ratio", "rejected_messages"}
)
MOST_WORKERS = 1024  # each is a process


@dataclass
class Rows:
    """Which rows to read, and how they become pairs.

    Attributes:
        source: A file (`prefkd.data.containers.KINDS`), a folder of such files, one that `save_to_disk` of datasets
            wrote, a path that fsspec opens (s3://bucket/pairs.jsonl), or the id of a data set on the Hugging Face Hub.
        format: The form of the rows, `prefkd.data.formats`, or their layout, `prefkd.data.layouts`; `auto` finds it.
            `answers` have no rival: dskd_distill learns from them with terms that read one answer, and sft.
        columns: Name that the form reads -> column that holds it (`{prompt: question}`); dots lead into objects.
        reader: A function of your own from a row to a `Pair` or several, `prefkd.data.own_rows`.
        pairing: From several answers with ranks or scores, make one pair of the best and the worst, one of the best and
            a random one, or all pairs.
        minimum_gap: The least difference of their scores or ranks. Rows that are pairs already have `filters.gap`.
        margin: By how much the better answer must win (`prefkd.data.worth`): a column, the difference of two
            (`score_chosen - score_rejected`), or `gap`, the gap that the layout of the rows has.
        subset: The configuration of a Hub data set, or the name of a folder in it (harmless-base, say).
        split: The split of a Hub data set; of a folder, the files that are named after it (train.jsonl,
            train-00000.parquet), or all those that are named after no split.
        revision: The commit, tag or branch of a Hub data set.
    """

    source: str | None = None
    format: str = "auto"
    columns: dict[str, str] = field(default_factory=dict)
    reader: Component | None = field(default=None, metadata={"supplied": ("row",)})
    pairing: Pairing = "best_worst"
    minimum_gap: float = 0.0
    margin: str | None = None
    subset: str | None = None
    split: str = "train"
    revision: str | None = None

    def row_problems(self) -> Iterator[Problem | str]:
        """What keeps the rows from being read, as far as their first ones show."""
        if self.source is None:
            return
        yield from source_problems(self.source, "source")
        yield from part_problems(self.source, split=self.split, subset=self.subset, revision=self.revision)
        if self.format not in ("auto", *FORMATS, *LAYOUTS):
            yield f"format: {self.format} is unknown{nearest(self.format, ['auto', *FORMATS, *LAYOUTS])}"
        for name, column in self.columns.items():
            if not column:
                yield f"columns.{name}: names no column; write {name}: COLUMN"
            if name not in NAMES and (meant := nearest(name, NAMES)).startswith("; did you mean"):
                yield f"columns.{name}: no format reads it{meant}"
        if not 0 <= self.minimum_gap < float("inf"):
            yield f"minimum_gap: {self.minimum_gap} is not a difference of scores; use 0 for any"
        if self.reader is not None:
            if self.format != "auto" or self.columns:
                key = "columns" if self.columns else "format"
                yield f"{key}: means nothing to a reader of your own, which gets the rows as they are; remove it"
            yield from reader_problems(self.reader, self.source, self.split)


@dataclass
class MixedRows(Rows):
    """One source of a mixture.

    Attributes:
        name: Name in metrics; the name of the file, folder or data set if not given.
        weight: Its share of an epoch, in proportion to those of the other sources. The epoch is the longest that
            repeats no pair, so that a source with more pairs than its share gives a random part of them.
        limit: At most this many pairs, chosen at random.
    """

    name: str | None = None
    weight: float | None = None
    limit: int | None = None

    @property
    def label(self) -> str:
        """What metrics call it."""
        assert self.source is not None
        return self.name or Path(self.source).name.partition(".")[0] or self.source

    def problems(self) -> Iterator[Problem | str]:
        if self.source is None:
            yield "source: missing; give a string"
        yield from self.row_problems()
        if self.weight is not None and not 0 < self.weight < float("inf"):
            yield f"weight: {self.weight} is not a share; use a number above 0"
        yield from size_problems(self, "limit")


@dataclass
class Filters:
    """Pairs to leave out. How many each of these leaves out is counted in the data report.

    Attributes:
        gap: Minimum gap between the scores of both answers; a pair whose gap is not known is left out.
        length_ratio: Maximum ratio of the longer answer to the shorter, in characters.
        length: Maximum characters of a prompt and its longer answer. They are the same for all languages and models,
            unlike words and tokens.
    """

    gap: float | None = None
    length_ratio: float | None = None
    length: int | None = None

    def problems(self) -> Iterator[str]:
        if self.gap is not None and not 0 <= self.gap < float("inf"):
            yield f"gap: {self.gap} is not a difference of scores; use 0 or more"
        if self.length_ratio is not None and not self.length_ratio >= 1:
            yield f"length_ratio: {self.length_ratio} is below 1, which no two answers are; use 1 or more"
        yield from size_problems(self, "length")


@dataclass
class DataConfig(Rows):
    """Which preference pairs to read, and how much of each a model sees. The first settings are those of `Rows`.

    Attributes:
        sources: Several sources instead of `source`, each with its own `MixedRows`.
        held_out_source: Pairs to evaluate on. Without it a part of `source`, or of each source, is held out.
        held_out_split: The split of the held-out pairs, in `held_out_source` if given, else in `source`.
        held_out_fraction: The part that is held out where neither of the two is given. Pairs with the same prompt stay
            together, whichever source has them, so that no prompt is both trained on and evaluated on.
        limit, held_out_limit: At most this many pairs, chosen at random; a smaller limit takes a part of a larger one.
        weight: The column with the weight of a pair in the loss; a mean over the pairs of a step is weighted by it.
        margin_scale: Factor of margins, the alpha of arXiv 2402.10571.
        filters: Pairs that are left out.
        duplicates: Whether to keep or drop training pairs whose prompt occurred before in any source, ignoring case and
            spaces.
        leakage: Whether to keep or drop training pairs whose prompt is held out as well.
        reverse: Swap chosen and rejected, to train the negative one of two contrastive teachers.
        on_bad_row: Whether a row that cannot be used is an error, or is left out, counted and reported.
        seed: Seed of the held-out part, of the limits and of the mixture.
        max_length: Maximum tokens of a prompt and one answer together, on each side.
        max_prompt_length: Maximum tokens of a prompt whose pair is longer than `max_length`.
        truncation: Which end of such a prompt is kept.
        workers: Processes that tokenize; null = as many as save time.
    """

    sources: list[MixedRows] = field(default_factory=list)
    held_out_source: str | None = None
    held_out_split: str | None = None
    held_out_fraction: float = 0.1
    limit: int | None = None
    held_out_limit: int | None = None
    weight: str | None = None
    margin_scale: float = 1.0
    filters: Filters = field(default_factory=Filters)
    duplicates: Literal["keep", "drop"] = "keep"
    leakage: Literal["keep", "drop"] = "keep"
    reverse: bool = False
    on_bad_row: Literal["error", "skip"] = "error"
    seed: int = 0
    max_length: int = 512
    max_prompt_length: int = 256
    truncation: Literal["keep_start", "keep_end"] = "keep_end"
    workers: int | None = None

    @property
    def label(self) -> str:
        """What messages call the data."""
        return self.source or ", ".join(str(part.source) for part in self.sources)

    @property
    def parts(self) -> list[MixedRows]:
        """The sources, at least one. A source takes over `margin` where it has none of its own."""
        own = {one.name: getattr(self, one.name) for one in fields(Rows)}
        parts = self.sources or [MixedRows(**own)]
        return [replace(part, margin=part.margin or self.margin) for part in parts]

    @property
    def held_out(self) -> MixedRows | None:
        """The rows of the held-out pairs, None where they are a part of the training pairs."""
        if self.held_out_source is None and self.held_out_split is None:
            return None
        own = {one.name: getattr(self, one.name) for one in fields(Rows)}
        source, split = self.held_out_source or self.source, self.held_out_split or self.split
        return MixedRows(**(own | {"source": source, "split": split}))

    @property
    def has_rivals(self) -> bool:
        """Whether each answer has a rival: all but format `answers` have."""
        return all(part.format != ANSWERS_ALONE for part in self.parts)

    @property
    def has_margins(self) -> bool:
        """Whether a setting asks for margins."""
        return any(part.margin is not None for part in self.parts)

    @property
    def _may_have_margins(self) -> bool:
        """Whether there may be margins: a reader of the user's own gives them without a setting."""
        return self.has_margins or any(part.reader is not None for part in self.parts)

    def problems(self) -> Iterator[Problem | str]:
        yield from self.row_problems()
        yield from self._source_problems()
        yield from self._rival_problems()
        if self.held_out_source is not None:
            yield from source_problems(self.held_out_source, "held_out_source")
        held_out = self.held_out
        if held_out and held_out.source and (held_out.source, held_out.split) != (self.source, self.split):
            yield from split_problems(held_out.source, held_out.split, "held_out_split")
        if self.held_out_split is not None and Path(self.held_out_source or self.source or "").is_file():
            yield f"held_out_split: {self.held_out_split} means nothing to a file; name a held_out_source instead"
        elif held_out and (held_out.source, held_out.split) == (self.source, self.split):
            key = "held_out_source" if self.held_out_source else "held_out_split"
            yield f"{key}: {without_keys(getattr(self, key))} is what is trained on; name another or leave it out"
        if not 0 <= self.held_out_fraction < 1:
            yield f"held_out_fraction: {self.held_out_fraction} is not a part of the data; use 0.1 for a tenth"
        if not 0 <= self.margin_scale < float("inf"):
            yield f"margin_scale: {self.margin_scale} would ask for less than a tie; use 0 or more"
        elif self.margin_scale != DataConfig.margin_scale and not self._may_have_margins:
            yield f"margin_scale: {self.margin_scale} scales margins, and there are none; set margin, or remove it"
        yield from size_problems(self, "limit", "held_out_limit")
        yield from size_problems(self, "max_length", "max_prompt_length", most=MOST_TOKENS)
        yield from size_problems(self, "workers", most=MOST_WORKERS)
        yield from size_problems(self, "seed", least=0, most=LARGEST_SEED)
        if self.max_length <= self.max_prompt_length:
            yield (
                f"max_length: {self.max_length} leaves no room for an answer after {self.max_prompt_length} tokens of "
                "prompt; raise it or lower max_prompt_length"
            )

    def _rival_problems(self) -> Iterator[str]:
        """What does not go with answers that have no rival."""
        if self.has_rivals:
            return
        if any(part.format != ANSWERS_ALONE for part in self.parts):
            yield "sources: some have format: answers and some do not; answers without a rival go with their like alone"
        two = {"reverse": self.reverse, "margin": self.has_margins, "filters.gap": self.filters.gap is not None}
        two["filters.length_ratio"] = self.filters.length_ratio is not None
        for name in (name for name, is_set in two.items() if is_set):
            yield f"{name}: compares two answers, and with format: answers there is one; remove it"

    def _source_problems(self) -> Iterator[str]:
        if self.source is None and not self.sources:
            yield "source: missing; give a string"
        elif self.source is not None and self.sources:
            yield "source: goes with no sources; move it into sources, or remove one of the two"
        if not self.sources:
            return
        for name in ("columns", "reader", "subset", "revision"):
            if getattr(self, name):
                yield f"{name}: belongs to each of sources; move it there"
        if self.held_out_source is None:  # whose rows these describe
            for name in ("format", "pairing", "minimum_gap", "split"):
                if getattr(self, name) != getattr(Rows, name):
                    yield f"{name}: belongs to each of sources; move it there"
        if self.held_out_split is not None and self.held_out_source is None:
            yield "held_out_split: belongs to one source; name a held_out_source, or leave both out"
        weighted = [part.weight is not None for part in self.sources]
        if any(weighted) and not all(weighted):
            yield f"sources[{weighted.index(False)}].weight: missing; give one to each source, or to none"
        labels = [part.label for part in self.sources if part.source is not None]
        twice = next((label for i, label in enumerate(labels) if label in labels[:i]), None)
        if twice is not None:
            yield f"sources[{labels.index(twice)}].name: {twice} is the name of two sources; give one of them another"
