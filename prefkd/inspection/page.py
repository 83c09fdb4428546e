"""An inspection as one HTML file. It loads nothing, runs only its own script for sorting, and escapes all text."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from prefkd.data.tokenizing import ANSWERS, SIDES
from prefkd.inspection.pairs import COLOUR_NAMES, ShownPair
from prefkd.inspection.verdict import Verdict, needed_length
from prefkd.pages import page_template
from prefkd.weight_report.pairs import ColourScale


def render_page(
    numbers: Mapping[str, Any], verdict: Verdict, pairs: Sequence[ShownPair], scale: ColourScale | None = None
) -> str:
    """The page.

    Args:
        numbers: What goes into the JSON file.
        verdict: Their meaning.
        pairs: The pairs to show, in their first order.
        scale: From weights to colours, if the pairs are coloured by weight.
    """
    # The browser runs a script with this digest and no other, whatever the data may hold.
    script = files("prefkd.inspection").joinpath("sort.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return page_template("prefkd.inspection").render(
        numbers=numbers,
        verdict=verdict,
        needed_length=needed_length(numbers),
        pairs=pairs,
        sides=SIDES,
        legend=list(enumerate(COLOUR_NAMES)),
        weight_legend=scale.legend if scale else None,
        answers=ANSWERS,
        script=Markup(script),
        script_digest=digest,
    )
