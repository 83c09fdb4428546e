"""Rows of a file -> checked pairs, each with what is known of how it was read."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from prefkd.data.columns import renamed
from prefkd.data.containers import Rows
from prefkd.data.fields import has_content
from prefkd.data.formats import FORMATS, decoded, detect_format, read_pair, unread
from prefkd.data.layouts import LAYOUTS, find_layout, read_layout
from prefkd.data.layouts.candidates import NoPreference, Pairing, pairs_of
from prefkd.errors import DataError

# Both are three texts: what a row looks like does not tell them apart, a file does.
TEXT_FORMATS = ("standard", "hh")


class Reader(NamedTuple):
    """How rows become pairs.

    Attributes:
        format: A form of `prefkd.data.formats`, a layout of `prefkd.data.layouts`, or `auto`.
        columns: Names that a form reads -> columns.
        pairing, minimum_gap: Which pairs several answers make, `prefkd.data.layouts.candidates.pairs_of`.
    """

    format: str = "auto"
    columns: Mapping[str, str] = {}
    pairing: Pairing = "best_worst"
    minimum_gap: float = 0.0

    def unfold(self, row: Any) -> tuple[str | None, list[dict[str, Any]]]:
        """The layout of a row, None if it has none, and the rows of a form that it makes.

        Raises:
            DataError: It is not a row, or not one of this layout.
        """
        if isinstance(row, DataError):
            raise row
        if not isinstance(row, dict):
            raise DataError(f"it is of type {type(row).__name__}: expected an object with named fields")
        row = decoded(renamed(row, self.columns) if self.columns else row)
        layout = find_layout(row) if self.format == "auto" else self.format if self.format in LAYOUTS else None
        if layout is None:
            return None, [row]
        return layout, pairs_of(read_layout(row, layout), self.pairing, self.minimum_gap)


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
    if reader.format in FORMATS:
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

    A row that makes several pairs has them in `file`, `file, pair 2` and so on.
    """
    nothing = {"prompt": [], "chosen": "", "rejected": "", "format": None, "unread": [], "tie": False}
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
                pair = _read(one, name, formats.usual)
                known = {"problem": None, "tie": False, "format": layout or name, "unread": unread(one, name)}
                yield {**pair._asdict(), **place, **known}
            except DataError as error:
                yield {**nothing, **place, "problem": str(error)}


def _read(row: Mapping[str, Any], name: str, usual: str | None) -> Any:
    try:
        return read_pair(row, name)
    except DataError:
        # Among rows of text, what is wrong with this one is that it holds something else.
        if usual in TEXT_FORMATS and name not in TEXT_FORMATS:
            read_pair(row, usual)
        raise
