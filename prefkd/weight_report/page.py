"""A weight report as one HTML file. It loads nothing and runs nothing, and all text of others is escaped."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from prefkd.data.tokenizing import ANSWERS
from prefkd.pages import page_template
from prefkd.weight_report.numbers import SATURATION
from prefkd.weight_report.pairs import ColourScale, ShownPair


def render_page(
    numbers: Mapping[str, Any], pairs: Sequence[ShownPair], scale: ColourScale, student: str, teacher: str
) -> str:
    """The page.

    Args:
        numbers: What goes into the JSON file.
        pairs: The pairs to show.
        scale: From weights to colours.
        student, teacher: Names of the two models.
    """
    page = page_template("prefkd.weight_report").render(
        numbers=numbers,
        charts={
            name: {answer: chart_bars(numbers[name]["histogram"], answer) for answer in ANSWERS}
            for name in ("log_ratio", "weight")
        },
        pairs=pairs,
        legend=scale.legend,
        answers=ANSWERS,
        saturation=SATURATION,
        student=student,
        teacher=teacher,
    )
    return page.lstrip()  # the macros at the top leave empty lines


def chart_bars(histogram: Mapping[str, Any], answer: str) -> list[dict[str, float]]:
    """The bars of one answer's histogram: place and width of all together 100, heights up to 100; 1 % for any count."""
    edges, counts = histogram["edges"], histogram[answer]
    span, highest = edges[-1] - edges[0], max(*counts, 1)
    return [
        {
            "left": 100 * (low - edges[0]) / span,
            "width": 100 * (high - low) / span,
            "height": max(100 * count / highest, 1) if count else 0,
            "low": low,
            "high": high,
            "count": count,
        }
        for (low, high), count in zip(pairwise(edges), counts, strict=True)
    ]
