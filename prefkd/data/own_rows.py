"""Rows of your own format: a function of yours, row -> pair.

    data:
      source: rows.jsonl
      reader: {_component_: mine.read_row}

in a file mine.py next to the config,

    from prefkd.data.formats import Pair

    def read_row(row):
        return Pair(prompt=row["q"], chosen=row["a"], rejected=row["b"])

It gets each row as the file has it, a dictionary, and returns one `Pair`, or a list of several; an empty list says that
the row holds no preference. What it raises is told with the file and the row. `examples/04_own_format.py` shows more.
"""

import inspect
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from prefkd.config import Component, bind, component_problems, import_dotpath
from prefkd.config.components import source_file
from prefkd.data.formats import Pair, read_pair
from prefkd.data.layouts.candidates import NoPreference
from prefkd.data.messages import Message, kind
from prefkd.data.own_code import code_fingerprint, file_fingerprints
from prefkd.data.sources import open_source
from prefkd.errors import DataError, PrefkdError, first_line

CHECKED = 3
Function = Callable[[Any], Any]


def own_reader(component: Component) -> Function:
    """The function of a component, which is called with a row."""
    return bind(component)


def read_own_row(row: Any, function: Function) -> list[dict[str, Any]]:
    """The rows of the form `conversational` that a reader makes of a row.

    Raises:
        DataError: It fails, or returns something other than pairs.
        NoPreference: It returns none.
    """
    try:
        found = function(row)
        pairs = [found] if isinstance(found, Pair) else list(found)
    except DataError:
        raise
    except Exception as error:  # a user's own function may raise anything
        what = f"{type(error).__name__}: {first_line(error)}"
        raise DataError(f"data.reader fails with {what}") from error
    for pair in pairs:
        if not isinstance(pair, Pair):
            raise DataError(f"data.reader returns {kind(pair)}: expected a prefkd.data.formats.Pair, or several")
    if not pairs:
        raise NoPreference("data.reader makes no pair of it")
    return [_as_row(pair) for pair in pairs]


def reader_problems(component: Component, source: str, split: str) -> Iterator[str]:
    """What is wrong with a reader, found on the first rows of a source that lies here."""
    if any(component_problems(component, ("row",))) or not Path(source).exists():
        return
    function = own_reader(component)
    try:
        for file, read in islice(open_source(source, split=split, subset=None).parts.items(), 1):
            for number, row in islice(read(), CHECKED):
                try:
                    for one in read_own_row(row, function):
                        read_pair(one, "conversational")
                except NoPreference:
                    continue
                except DataError as error:
                    yield f"reader: row {number} of {file}: {error}; change {component['_component_']}"
                    return
    except PrefkdError:
        return  # what is wrong with the source has been said


def reader_fingerprint(component: Component) -> list[Any]:
    """What the pairs of a reader depend on: its settings, the files that they name, and its code."""
    path = component["_component_"]
    function, file = inspect.unwrap(import_dotpath(path)), source_file(path)
    has_module = inspect.isroutine(function) or inspect.isclass(function)
    module = function.__module__ if has_module else path.rpartition(".")[0]
    return [component, file_fingerprints(component), code_fingerprint(module, file) if file else None]


def _as_row(pair: Pair) -> dict[str, Any]:
    prompt: Any = [Message(role="user", content=pair.prompt)] if isinstance(pair.prompt, str) else pair.prompt
    row = {"prompt": prompt, "chosen": pair.chosen, "rejected": pair.rejected, "tools": pair.tools}
    row |= {f"{name}_finish": "length" for name, is_cut in zip(("chosen", "rejected"), pair.cut, strict=True) if is_cut}
    return row | {name: value for name, value in pair.worth._asdict().items() if value is not None}
