"""A plan in a terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefkd.estimate.memory import CONTEXT, GAPS, GIB, WORKSPACES, Card
from prefkd.estimate.plan import Plan

BESIDES = f"the CUDA context takes {CONTEXT / GIB:.1f}, workspaces {WORKSPACES / GIB:.1f}, gaps {GAPS:.0%}"


def print_plan(plan: Plan, card: Card | None, advice: Sequence[str], console: Console) -> None:
    """Print tables, and last whether it fits.

    Args:
        card: The GPU that was asked about, or the smallest that has room; None if there is none.
        advice: Changes that would make it fit.
    """
    processes = "one process" if plan.ranks == 1 else f"{plan.ranks} processes"
    tables = {
        "parameters": _models(plan),
        f"memory on each rank, {processes}, {plan.batch}": _memory(plan),
        f"work of {plan.step}, over all ranks": _flops(plan),
    }
    for title, table in tables.items():
        console.print(Text(title, "bold"))
        console.print(table)
        console.print()
    if plan.scores is not None:
        size, what = plan.scores
        shown = f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.0f} kB"
        console.print(Text(f"score cache: {shown} for {what}"), soft_wrap=True)
    console.print(verdict(plan, card), soft_wrap=True)
    for line in advice:
        console.print(Text(f"  • {line}"), soft_wrap=True)


def verdict(plan: Plan, card: Card | None) -> Text:
    """Whether it fits, in a line."""
    unit, bytes_of_unit = _unit(plan)
    size = f"{plan.peak / bytes_of_unit:,.2f} {unit}"
    if card is None:
        return Text.assemble(("warning", "bold yellow"), f": no known GPU has room for {size}")
    room = f"{card.name}, where tensors can fill {card.usable / GIB:.1f} of {card.gib:.1f} GiB ({BESIDES})"
    if card.fits(plan.peak):
        return Text.assemble(("fits", "bold green"), f": {size} on {room}")
    return Text.assemble(("warning: does not fit", "bold yellow"), f": {size} on {room}; what saves memory:")


def _models(plan: Plan) -> Table:
    table = _table("", "trained", "frozen", "")
    for model in plan.models:
        counts = (f"{value:,}" if value else "" for value in (model.trained, model.frozen))
        table.add_row(model.name, *counts, Text(model.what))
    return table


def _memory(plan: Plan) -> Table:
    unit, size = _unit(plan)
    table = _table(unit, "at the peak", "at most")
    for kind, need in plan.memory.items():
        table.add_row(kind, f"{need.at_peak / size:,.2f}", f"{need.most / size:,.2f}")
    table.add_row("total", Text(f"{plan.in_step / size:,.2f}", "bold"), "")
    if plan.loading > plan.in_step:
        table.add_row("while models load", Text(f"{plan.loading / size:,.2f}", "bold"), "")
    return table


def _unit(plan: Plan) -> tuple[str, int]:
    return ("GiB", GIB) if plan.peak >= GIB / 10 else ("MiB", 2**20)


def _flops(plan: Plan) -> Table:
    table = _table("", "TFLOP", "")
    total = sum(plan.flops.values())
    for model, flops in plan.flops.items():
        table.add_row(model, f"{flops / 1e12:.3g}" if flops < 1e15 else f"{flops / 1e12:,.0f}", f"{flops / total:.0%}")
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    for number, column in enumerate(columns):
        table.add_column(Text(column, "dim"), justify="right" if 0 < number < 3 else "left", overflow="fold")
    return table
