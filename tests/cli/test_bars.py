"""Bars of other libraries in a log."""

import io
import sys

import pytest
from tqdm import tqdm

from prefkd.cli.bars import BarLines, bars_as_lines
from tests.training.test_display import Clock


def draw(seconds: float, steps: int = 60, **settings) -> list[str]:
    """What is in the log after a bar of tqdm whose steps take so many seconds."""
    log, clock = io.StringIO(), Clock()
    stream = BarLines(log, clock)
    with tqdm(total=steps, desc="Aligning", unit=" examples", file=stream, mininterval=0, **settings) as bar:
        for _ in range(steps):
            clock.now += seconds
            bar.update(1)
    assert "\r" not in log.getvalue()
    return log.getvalue().splitlines()


def test_a_long_bar_is_a_line_every_ten_seconds():
    said = draw(1.0)
    assert 4 <= len(said) <= 6
    assert all(line.startswith("Aligning: ") and "/60, " in line and line.endswith(" left") for line in said)
    assert "█" not in "".join(said)


def test_a_short_bar_says_nothing():
    assert draw(0.1) == []


def test_a_bar_that_waits_is_said_once():
    log, clock = io.StringIO(), Clock()
    with tqdm(total=9, desc="Aligning", file=BarLines(log, clock), mininterval=0) as bar:
        bar.update(3)
        for _ in range(5):
            clock.now += 11
            bar.refresh()
    assert len(log.getvalue().splitlines()) == 1


def test_a_bar_without_a_total():
    log, clock = io.StringIO(), Clock()
    with tqdm(desc="Generating train split", file=BarLines(log, clock), mininterval=0) as bar:
        for _ in range(30):
            clock.now += 1
            bar.update(100)
    assert [line.split(":")[0] for line in log.getvalue().splitlines()] == ["Generating train split"] * 3


def test_one_bar_after_another_and_text_between():
    log, clock = io.StringIO(), Clock()
    stream = BarLines(log, clock)
    for title in ("one", "two"):
        with tqdm(total=2, desc=title, file=stream, mininterval=0) as bar:
            for _ in range(2):
                clock.now += 6
                bar.update(1)
        print(f"after {title}", file=stream)
    lines = log.getvalue().splitlines()
    assert [line.partition(":")[0] for line in lines] == ["one", "after one", "two", "after two"]


def test_what_is_no_bar_passes_untouched(capsys):
    with bars_as_lines():
        print("a warning\nof two lines\n", file=sys.stderr)
        sys.stderr.write("")
        assert not sys.stderr.isatty() and sys.stderr.encoding
    assert capsys.readouterr().err == "a warning\nof two lines\n\n"


def test_a_terminal_keeps_its_bars(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with bars_as_lines():
        assert sys.stderr is terminal


@pytest.mark.parametrize("rows", [3, 1500])
def test_datasets_draws_no_bar_into_a_log(capsys, rows):
    from datasets import Dataset

    with bars_as_lines():
        Dataset.from_dict({"x": list(range(rows))}).map(lambda row: {"y": row["x"]}, desc="Aligning")
    assert capsys.readouterr().err == ""
