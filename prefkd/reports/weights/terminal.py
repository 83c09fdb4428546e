"""A weight report in a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from prefkd.data.rows import ANSWERS
from prefkd.reports.visible import visible_line
from prefkd.terminal import heading, in_one_line, table

BLOCKS = " ▁▂▃▄▅▆▇█"
# Pieces of text listed on each side.
PIECES = 4
_COLOURS = {"tells apart": "green", "tells nothing": "yellow", "the wrong way round": "red"}


def weight_table(numbers: Mapping[str, Any]) -> Group:
    """What `write_weight_report` returned, for the console of a run."""
    return Group(heading("weights of parent tokens"), _per_parent(numbers), "", _per_pair(numbers))


def text_bars(counts: Sequence[int]) -> str:
    """A histogram in one line, one block for each bar; the smallest block is for any count above 0."""
    highest = max(counts)
    return "".join(BLOCKS[-(-count * (len(BLOCKS) - 1) // highest)] if highest else " " for count in counts)


def _per_parent(numbers: Mapping[str, Any]) -> Table:
    made_by = numbers["weights"]
    shown = table("", *ANSWERS, wraps=True)
    shown.add_row("parents of text", *(f"{numbers['weight'][answer]['count']:,}" for answer in ANSWERS))
    for name, title in (("log_ratio", f"log-ratio ({made_by['reduce']})"), ("weight", f"weight ({made_by['method']})")):
        edges = numbers[name]["histogram"]["edges"]
        bars = (text_bars(numbers[name]["histogram"][answer]) for answer in ANSWERS)
        shown.add_row(f"{title}, {edges[0]:g} to {edges[-1]:g}", *(Text(line, style="cyan") for line in bars))
        shown.add_row("  mean ± deviation", *(_mean(numbers[name][answer]) for answer in ANSWERS))
        shown.add_row("  5 %, 50 %, 95 %", *(_percentiles(numbers[name][answer]) for answer in ANSWERS))
    clamp = numbers["clamp"]
    if clamp:
        of = "log-ratio" if clamp["of"] == "log_ratio" else "score"
        for share, bound, sign in (("share_below", "low", "<"), ("share_above", "high", ">")):
            shown.add_row(f"clamped, {of} {sign} {clamp[bound]:g}", *(f"{clamp[a][share]:.1%}" for a in ANSWERS))
    for title, end in (("counts most", "most"), ("counts least", "least")):
        shown.add_row(title, *(_pieces(numbers["pieces"][answer][end]) for answer in ANSWERS))
    return shown


def _per_pair(numbers: Mapping[str, Any]) -> Table:
    contrast, margin = numbers["contrast"], numbers["reference_margin"]
    shown = table("", "", wraps=True)
    part = "" if numbers["pairs_read"] == numbers["pairs"] else f", {numbers['pairs_read']:,} of them looked at"
    shown.add_row("pairs", f"{numbers['pairs']:,}{part}; {contrast['pairs_without_contrast']:,} have no contrast")
    if contrast["pairs_compared"]:
        shown.add_row(
            "chosen above rejected",
            f"{contrast['chosen_higher_by_mean']:.1%} ± {contrast['standard_error']:.1%} by mean log-ratio, "
            f"{contrast['chosen_higher_by_sum']:.1%} by sum",
        )
    verdict = contrast["verdict"]
    shown.add_row("contrast", Text(f"{verdict['summary']} {verdict['advice']}".rstrip(), _COLOURS[verdict["verdict"]]))
    weighted, beyond = margin["weighted"], margin["share_beyond_if_student_indifferent"]
    shown.add_row("margin of the reference", f"weighted {weighted['mean']:.1f} ± {weighted['deviation']:.1f} nats")
    shown.add_row(
        "flat sigmoid at the start",
        "not known without the student; if it gave both answers the same: "
        + ", ".join(f"{share:.1%} at beta {beta}" for beta, share in beyond.items()),
    )
    return shown


def _mean(distribution: Mapping[str, Any]) -> str:
    return f"{distribution['mean']:.3f} ± {distribution['deviation']:.3f}"


def _percentiles(distribution: Mapping[str, Any]) -> str:
    return ", ".join(f"{distribution[f'percentile_{p}']:.2f}" for p in (5, 50, 95))


def _pieces(pieces: Sequence[Mapping[str, Any]]) -> Text:
    listed = [f"{piece['mean_weight']:.2f}  {visible_line(piece['text'])}" for piece in pieces[:PIECES]]
    return in_one_line("\n".join(listed) or "no piece is frequent enough")
