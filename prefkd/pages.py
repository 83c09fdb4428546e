"""HTML pages from templates in a package: escaped, each one file, with the same number formats on all of them."""

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template

from prefkd.visible import visible_line


def page_template(package: str) -> Template:
    """The template page.html of a package, with the filters of this module; it may include the parts in prefkd."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "."), PackageLoader("prefkd", ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"visible_line": visible_line, "number": number, "percent": percent, "colour": colour}
    return environment.get_template("page.html")


def number(value: float | None, digits: int = 2) -> str:
    """A number with a true minus; a dash for None."""
    return "–" if value is None else f"{value:,.{digits}f}".replace("-", "−")


def percent(share: float | None) -> str:
    """A share in percent; a dash for None."""
    return "–" if share is None else f"{share:.1%}"


def colour(level: int) -> str:
    """The class of a colour in weight_colours.css: `low4` to `low1`, `high0` to `high4`."""
    return f"{'low' if level < 0 else 'high'}{abs(level)}"
