"""An inspection in a terminal."""

import re
from collections.abc import Mapping
from typing import Any

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from prefkd.data.pairs import in_rows
from prefkd.data.rows import ANSWERS, SIDES
from prefkd.reports.alignment.verdict import Verdict
from prefkd.reports.visible import visible_line
from prefkd.terminal import heading, in_one_line, table

# Entries of each list; the page and the JSON file have more.
LISTED = 5
BAR = 15
MOST_CHARACTERS = 400
_BETWEEN_WORDS = re.compile("(?<=[^␣↵])␣(?=[^␣↵])")
_COLOURS = {"good": "bold green", "fair": "bold yellow", "poor": "bold red"}


def print_inspection(numbers: Mapping[str, Any], verdict: Verdict, console: Console) -> None:
    """Print tables, and last the verdict."""
    parts = {
        "the first pair, as both models read it": _first_pair(numbers),
        "how the texts align": _overview(numbers),
        "parents by their tokens": _shapes(numbers),
        "text that is split differently, the most frequent": _splits(numbers),
        "longest parents, in tokens": _longest(numbers),
        "worst rows": _worst(numbers),
        "weights that the scores make": _weights(numbers),
    }
    for name, part in parts.items():
        if part.rows:
            console.print(heading(name))
            console.print(part)
            console.print()
    console.print(Text.assemble((f"A {verdict.grade} alignment", _COLOURS[verdict.grade]), f": {verdict.summary}"))
    for advice in verdict.advice:
        console.print(_point(advice))


def _overview(numbers: Mapping[str, Any]) -> Table:
    shown = table("", *SIDES, wraps=True)
    characters, lost = numbers["characters"], numbers["answers_changed_by_decoding"]
    per_answer, share = numbers["parents_per_response"], numbers["share_of_text_aligned_one_to_one"]

    def both(title: str, values: Mapping[str, Any], form: str) -> None:
        shown.add_row(title, *(format(values[side], form) for side in SIDES))

    drawn = numbers["pairs_in_data"] > numbers["pairs"] + numbers["dropped_pairs"]
    shown.add_row("pairs", f"{numbers['pairs']:,}{' of ' + format(numbers['pairs_in_data'], ',') if drawn else ''}")
    shown.add_row("format", in_rows(numbers["formats"]))
    shown.add_row("columns", *list(numbers["columns"].values())[:1])
    shown.add_row("tokenizer", *(numbers[side]["name"] for side in SIDES))
    shown.add_row("template", *(numbers[side]["template"] for side in SIDES))
    shown.add_row(
        "one-to-one parents", f"{share:.1%} of the text", f"{numbers['share_of_parents_one_to_one']:.1%} of all"
    )
    shown.add_row("parents per word", f"{numbers['parents_per_word']:.2f}")
    both("tokens per parent", numbers["tokens_per_parent"], ".3f")
    both("tokens per word", numbers["tokens_per_word"], ".2f")
    shown.add_row(
        "parents per answer",
        f"{per_answer['mean']:.1f} on average",
        f"90 %: {per_answer['percentile_5']} to {per_answer['percentile_95']}",
    )
    cut = numbers["share_of_responses_truncated"]
    shown.add_row("answers cut off", f"{cut:.1%}", f"{characters['cut']:,} characters lost")
    both("prompts cut", numbers["share_of_prompts_truncated"], ".1%")
    both("characters in no token", characters["uncovered"], ",")
    both("answers changed by decoding", {side: lost[side]["answers"] for side in SIDES}, ",")
    return shown


def _first_pair(numbers: Mapping[str, Any]) -> Table:
    shown = table("", "", "", wraps=True)
    for side in SIDES:
        for part in ("prompt", *ANSWERS):
            text = _shortened(visible_line(numbers["first_pair"][side][part]))
            # A blank between two words is plain to see, and a line can break there.
            shown.add_row(side, part, Text(_BETWEEN_WORDS.sub(" ", text)))
    return shown


def _shortened(text: str) -> str:
    """The start and the end of a long text."""
    half = MOST_CHARACTERS // 2
    return text if len(text) <= MOST_CHARACTERS else f"{text[:half]} … {text[-half:]}"


def _shapes(numbers: Mapping[str, Any]) -> Table:
    shown = table("student", "teacher", "parents", "of the text", "")
    for shape in numbers["shapes"][:LISTED]:
        share = shape["share_of_text"]
        bar = "█" * round(BAR * share) or ("▏" if share else "")
        cells = (str(shape["student"]), str(shape["teacher"]), f"{shape['parents']:,}", f"{share:.1%}")
        shown.add_row(*cells, Text(bar, "cyan"))
    return shown


def _splits(numbers: Mapping[str, Any]) -> Table:
    shown = table("text", "times", "student", "teacher")
    for piece in numbers["splits"][:LISTED]:
        tokens = (in_one_line(" │ ".join(piece[side])) for side in SIDES)
        shown.add_row(in_one_line(visible_line(piece["text"])), f"{piece['times']:,}", *tokens)
    return shown


def _longest(numbers: Mapping[str, Any]) -> Table:
    shown = table("text", "student", "teacher", "first in")
    for parent in numbers["longest_parents"][:LISTED]:
        place = f"row {parent['row']}, {parent['answer']}"
        shown.add_row(in_one_line(visible_line(parent["text"])), str(parent["student"]), str(parent["teacher"]), place)
    return shown


def _worst(numbers: Mapping[str, Any]) -> Table:
    shown = table("row", "text one to one", "parents", "longest parent", "characters cut", wraps=True)
    for pair in numbers["worst_rows"][:LISTED]:
        share, cut = f"{pair['share_one_to_one']:.1%}", f"{pair['characters_cut']:,}"
        shown.add_row(str(pair["row"]), share, f"{pair['parents']:,}", f"{pair['longest_parent']:,} tokens", cut)
    return shown


def _weights(numbers: Mapping[str, Any]) -> Table:
    shown = table("", *ANSWERS)
    if "weights" in numbers:
        found, contrast = numbers["weights"], numbers["weights"]["contrast"]
        for name, title in (("log_ratio", "log-ratio"), ("weight", "weight")):
            cells = (
                f"{found[name][answer]['mean']:.3f} ± {found[name][answer]['deviation']:.3f}" for answer in ANSWERS
            )
            shown.add_row(title, *cells)
        if contrast["pairs_compared"]:
            shown.add_row("pairs with the higher mean log-ratio", f"{contrast['chosen_higher_by_mean']:.1%}")
        verdict = contrast["verdict"]
        interval = f"{verdict['share']:.1%} [{verdict['low']:.1%}, {verdict['high']:.1%}]"
        shown.add_row("the contrast", verdict["verdict"])
        shown.add_row("it finds the chosen answer better in", Text(interval))
        shown.add_row("pairs without scores, left out", f"{numbers['pairs_not_scored']:,}")
    return shown


def _point(text: str) -> RenderableType:
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_row("•", Text(text))
    return Padding(table, (0, 0, 0, 2))
