"""HTML pages on one layout: each is one file that loads nothing, and all text of others is escaped."""

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from prefkd.reports.visible import visible_block, visible_line


def render_page(template: str, script: str = "", **content: Any) -> str:
    """A page.

    Args:
        template: A file in this folder, on the layout of base.html.
        script: A file in this folder. The browser runs it and no other script, whatever the data may hold.
        content: Values that the template shows.
    """
    code = files("prefkd.reports").joinpath(script).read_text(encoding="utf-8") if script else ""
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    return _environment().get_template(template).render(script=Markup(code), script_digest=digest, **content)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("prefkd.reports", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "visible_line": visible_line,
        "visible_block": visible_block,
        "number": number,
        "percent": percent,
        "colour": colour,
    }
    return environment


def number(value: float | None, digits: int = 2) -> str:
    """A number with a true minus; a dash for None."""
    return "–" if value is None else f"{value:,.{digits}f}".replace("-", "−")


def digits(value: float) -> str:
    """A number in three digits, large or small, with a true minus."""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", "−")


def percent(share: float | None) -> str:
    """A share in percent; a dash for None."""
    return "–" if share is None else f"{share:.1%}"


def colour(level: int) -> str:
    """The class of a colour in colours.css: `low4` to `low1`, `high0` to `high4`."""
    return f"{'low' if level < 0 else 'high'}{abs(level)}"
