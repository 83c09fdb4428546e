"""`prefkd plot`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import UseAppendAction, arg

from prefkd.cli.arguments import optional
from prefkd.cli.output import say
from prefkd.errors import PrefkdError

SUFFIXES = (".png", ".svg")


def plot(
    runs: Annotated[tuple[Path, ...], arg(metavar="RUN [RUN ...]", help_behavior_hint="(required)")],
    /,
    *,
    output: Annotated[Path, optional("FILE")] = Path("plot"),
    metric: UseAppendAction[Annotated[tuple[str, ...], optional("NAME")]] = (),
) -> None:
    """Plot the curves of one or more runs: loss, margin, accuracy and the terms of distillation.

    For example:
        prefkd plot runs/demo/tis_dpo_distill
        prefkd plot runs/first runs/second --output first_and_second
        prefkd plot runs/first --metric gradient_norm --metric tokens_per_second

    This needs matplotlib: pip install 'prefkd[plot]'.

    Args:
        runs: Folders of runs, or their metrics.jsonl files.
        output: File to write, without suffix, since both .png and .svg are written; plot by default.
        metric: Metric to plot instead of the usual ones; can be repeated.
    """
    from prefkd.reports.curves import draw, read_runs

    if not runs:
        raise PrefkdError("missing: RUN (`prefkd plot --help` explains)")
    stem = output.with_suffix("") if output.suffix in SUFFIXES else output
    files = [stem.with_name(stem.name + suffix) for suffix in SUFFIXES]
    read = read_runs(runs)
    for run in read:
        if run.unfinished:
            say(f"{run.file}: the last line is unfinished, as a killed run leaves it; it is left out")
    draw(read, files, metric)
    say(f"wrote {files[0]} and {files[1]}")
