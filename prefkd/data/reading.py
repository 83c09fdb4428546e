"""Rows of a file -> checked pairs, each with what is known of how it was read."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from prefkd.data.columns import renamed
from prefkd.data.containers import Rows
from prefkd.data.fields import has_content
from prefkd.data.formats import FORMATS, Pair, decoded, detect_format, read_pair, unread
from prefkd.data.layouts import LAYOUTS, find_layout, read_layout
from prefkd.data.layouts.candidates import NoPreference, Pairing, pairs_of
from prefkd.data.messages import answer_text, pack_calls
from prefkd.data.mixtures import prompt_key
from prefkd.data.own_rows import Function, read_own_row
from prefkd.data.worth import Worth, read_worth, worth_columns
from prefkd.errors import DataError

# Both are three texts: what a row looks like does not tell them apart, a file does.
TEXT_FORMATS = ("standard", "hh")
# What rows that a reader of the user's own has read are counted as.
OWN = "data.reader"


class Reader(NamedTuple):
    """How rows become pairs.

    Attributes:
        format: A form of `prefkd.data.formats`, a layout of `prefkd.data.layouts`, or `auto`.
        columns: Names that a form reads -> columns.
        pairing, minimum_gap: Which pairs several answers make, `prefkd.data.layouts.candidates.pairs_of`.
        weight, margin, margin_scale: Where the worth of a pair stands, `prefkd.data.worth.read_worth`.
        function: A reader of the user's own, in place of forms and layouts (`prefkd.data.own_rows`).
    """

    format: str = "auto"
    columns: Mapping[str, str] = {}
    pairing: Pairing = "best_worst"
    minimum_gap: float = 0.0
    weight: str | None = None
    margin: str | None = None
    margin_scale: float = 1.0
    function: Function | None = None

    def unfold(self, row: Any) -> tuple[str | None, list[dict[str, Any]]]:
        """The layout of a row, None if it has none, and the rows of a form that it makes.

        Raises:
            DataError: It is not a row, or not one of this layout.
        """
        if isinstance(row, DataError):
            raise row
        if not isinstance(row, dict):
            raise DataError(f"it is of type {type(row).__name__}: expected an object with named fields")
        if self.function is not None:
            return OWN, read_own_row(row, self.function)
        row = decoded(renamed(row, self.columns) if self.columns else row)
        layout = find_layout(row) if self.format == "auto" else self.format if self.format in LAYOUTS else None
        if layout is None:
            return None, [row]
        return layout, pairs_of(read_layout(row, layout), self.pairing, self.minimum_gap)

    def worth(self, row: Mapping[str, Any]) -> Worth:
        """What the pair of an unfolded row is worth."""
        own = self.function is not None  # whose pairs bring their own
        weight = self.weight or ("weight" if own else None)
        return read_worth(
            row, weight=weight, margin=self.margin or ("margin" if own else None), scale=self.margin_scale
        )

    def unread(self, row: Mapping[str, Any], name: str) -> list[str]:
        """What an unfolded row of a form holds that is not read and not known to be metadata."""
        own = worth_columns(self.weight) + worth_columns(self.margin)
        return [] if self.function is not None else [field for field in unread(row, name) if field not in own]


class FileFormats(NamedTuple):
    """The forms of the rows of a file that have no layout.

    Attributes:
        usual: The most frequent one, in which errors are told; None if no row has a form.
        text: Form of all rows that hold text alone; None if there are none, or if all rows have the usual form.
        each: Whether rows have forms of their own, found by the types of their fields.
    """

    usual: str | None
    text: str | None = None
    each: bool = False

    def of(self, row: Mapping[str, Any]) -> str:
        if self.usual and not self.each:
            return self.usual
        found = detect_format(row)
        return self.text or found if found in TEXT_FORMATS else found


def formats_of(file: str, rows: Rows, reader: Reader) -> FileFormats:
    """Look through a file for the forms of its rows. The order of rows decides nothing.

    Raises:
        DataError: Some of the rows of text look like transcripts, and some do not.
    """
    if reader.format in FORMATS or reader.function is not None:
        return FileFormats(reader.format)
    found: Counter[str] = Counter()
    for _, row in rows:
        try:
            layout, [one, *_] = reader.unfold(row)
            name = detect_format(one) if layout is None else None
        except DataError:
            continue
        if name and (name != "standard" or has_content(one.get("prompt"))):
            found[name] += 1
    text = [name for name in TEXT_FORMATS if found[name]]
    if len(text) > 1:
        counts = ", ".join(f"{count:,} of {name}" for name, count in sorted(found.items()))
        raise DataError(f"{file} mixes rows of several formats ({counts}); set data.format, or split the file")
    usual = max(sorted(found), key=found.__getitem__, default=None)
    return FileFormats(usual, text[0] if text else None, each=True)


def read_rows(file: str, rows: Rows, formats: FileFormats, reader: Reader) -> Iterator[dict[str, Any]]:
    """The pairs of a file, with its name and the row, and

    problem     why the row cannot be used, or None
    tie         whether that is because its answers are worth the same
    format      the form or the layout of the row
    unread      what it holds that is not read and not known to be metadata
    key         names its prompt, `prefkd.data.mixtures.prompt_key`
    length      characters of the prompt and the longer answer
    ratio       characters of the longer answer for one of the shorter

    A row that makes several pairs has them in `file`, `file, pair 2` and so on.
    """
    nothing: dict[str, Any] = {"prompt": [], "chosen": "", "rejected": "", "format": None, "unread": [], "tie": False}
    nothing |= {"weight": 1.0, "margin": 0.0, "gap": None, "calls": None, "key": 0, "length": 0, "ratio": 1.0}
    nothing |= {"chosen_is_cut": False, "rejected_is_cut": False}
    for number, row in rows:
        place = {"file": file, "row": number}
        try:
            layout, unfolded = reader.unfold(row)
        except DataError as error:
            yield {**nothing, **place, "problem": str(error), "tie": isinstance(error, NoPreference)}
            continue
        for i, one in enumerate(unfolded, start=1):
            if i > 1:
                place = {"file": f"{file}, pair {i}", "row": number}
            try:
                name = "conversational" if layout else formats.of(one)
                pair = _read(one, name, None if layout else formats.usual)
                known = {"problem": None, "tie": False, "format": layout or name, "unread": reader.unread(one, name)}
                yield {**_stored(pair), **reader.worth(one)._asdict(), **place, **known}
            except DataError as error:
                yield {**nothing, **place, "problem": str(error)}


def _stored(pair: Pair) -> dict[str, Any]:
    """The columns of a pair."""
    answers = {"chosen": pair.chosen, "rejected": pair.rejected}
    texts = {name: answer if isinstance(answer, str) else answer["content"] for name, answer in answers.items()}
    lengths = [len(answer_text(answer)) for answer in answers.values()]
    prompt = [{"role": turn["role"], "content": turn["content"]} for turn in pair.prompt]
    has_rival = bool(lengths[1])
    return {
        "prompt": prompt,
        **texts,
        "calls": pack_calls(pair.prompt, answers, pair.tools),
        "key": prompt_key(pair.prompt),
        "length": sum(len(turn["content"]) for turn in prompt) + max(lengths),
        "ratio": max(lengths) / min(lengths) if has_rival else 1.0,
        "chosen_is_cut": pair.cut[0],
        "rejected_is_cut": pair.cut[1],
    }


def _read(row: Mapping[str, Any], name: str, usual: str | None) -> Pair:
    try:
        return read_pair(row, name)
    except DataError:
        # Among rows of text, what is wrong with this one is that it holds something else.
        if usual in TEXT_FORMATS and name not in TEXT_FORMATS:
            read_pair(row, usual)
        raise
