"""Progress in a log: few lines, each whole, with all that a reader of the log asks for."""

from contextlib import nullcontext

import pytest
from rich.console import Console
from torch import device

from prefkd.ranks import Ranks
from prefkd.training import display as module
from prefkd.training.display import Display, LogLines
from prefkd.training.metrics import brief

METRICS = {"loss": 0.5, "margin": 1.25, "accuracy": 0.75, "tokens_per_second": 1234.4}


class Clock:
    """A clock that a test turns."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def run(total: int, seconds: float, *, done: int = 0, stop: int | None = None) -> list[str]:
    """The lines of a loop whose steps take so many seconds each."""
    said, clock = [], Clock()
    lines = LogLines(said.append, total, done, clock=clock)
    for _ in range((stop or total) - done):
        clock.now += seconds
        lines.advance(brief(METRICS))
    lines.close()
    return said


def test_a_line_says_how_far_how_well_how_fast_and_how_long():
    first, *_, last = run(100, 11.0)
    assert first == "1/100  loss 0.500 margin +1.2 accuracy 75% 1234 tokens/s, 0:18:09 left"
    assert last == "100/100  loss 0.500 margin +1.2 accuracy 75% 1234 tokens/s, took 0:18:20"


@pytest.mark.parametrize("seconds", [0.001, 0.5, 3.0, 9.99, 10.0, 60.0])
@pytest.mark.parametrize("total", [1, 7, 1000])
def test_at_most_a_line_every_ten_seconds_and_the_last(total, seconds):
    said = run(total, seconds)
    assert len(said) <= total * seconds / 10 + 1
    assert len(said) >= min(total, total * seconds // 20)
    assert said[-1].startswith(f"{total}/{total} ")
    assert len(set(said)) == len(said)


def test_what_was_done_before_does_not_make_the_rest_faster():
    first = run(100, 11.0, done=90)[0]
    assert first.startswith("91/100 ") and first.endswith("0:01:39 left")


def test_a_run_that_stops_says_where():
    said = run(100, 1.0, stop=15)
    assert said[-1].startswith("15/100 ") and said[-1].endswith("0:01:25 left") and len(said) == 2


def test_nothing_to_do_is_not_said():
    assert run(0, 1.0) == [] == run(5, 1.0, done=5)


def test_several_steps_at_a_time():
    said, clock = [], Clock()
    lines = LogLines(said.append, 64, clock=clock)
    clock.now += 20
    lines.advance("3.2 pairs/s", steps=16)
    lines.advance(steps=48)
    lines.close()
    assert said == ["16/64  3.2 pairs/s, 0:01:00 left", "64/64  took 0:00:20"]


def test_a_log_gets_lines_that_no_width_breaks(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    display = Display(Ranks(0, 1, device("cpu")))
    long = "a-folder/" * 30
    with pytest.raises(InterruptedError), display.progress(3) as bar:
        bar.advance(long)
        raise InterruptedError
    display.table("plan", {"output": long, "shape": "[B, S]"})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"1/3  {long}, ") and "\r" not in printed[0]
    assert any(line.split() == ["output", long] for line in printed)


def test_other_ranks_are_silent_in_a_log(capsys):
    with Display(Ranks(1, 2, device("cpu"))).progress(3) as bar:
        bar.advance("loss")
    assert capsys.readouterr().out == ""


def test_a_terminal_has_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(module, "console", lambda **settings: Console(force_terminal=True, width=80, **settings))
    with Display(Ranks(0, 1, device("cpu"))).progress(3) as bar:
        for _ in range(3):
            bar.advance("loss 0.1")
    printed = capsys.readouterr().out
    assert "3/3" in printed and "━" in printed and "took" not in printed


@pytest.mark.parametrize(("interval", "said"), [(0.0, ["1/2  held-out pairs, ", "2/2  held-out pairs, "]), (10.0, [])])
def test_held_out_pairs_have_lines_where_they_take_long(interval, said, capsys, monkeypatch):
    monkeypatch.setattr(module, "LOG_INTERVAL", interval)
    with Display(Ranks(0, 1, device("cpu"))).passing(2) as bar:
        bar.advance("held-out pairs")
        bar.advance("held-out pairs")
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(said) and all(map(str.startswith, printed, said))


def test_held_out_pairs_have_a_bar_below_that_of_the_training(monkeypatch, capsys):
    monkeypatch.setattr(module, "console", lambda **settings: Console(force_terminal=True, width=80, **settings))
    display = Display(Ranks(0, 1, device("cpu")))
    for outer in (nullcontext(), display.progress(3)):
        with outer as training, display.passing(7) as bar:
            bar.advance("held-out pairs", steps=7)
            if training is not None:
                training.advance("loss 0.1")
    *_, last = capsys.readouterr().out.split("7/7")  # what is drawn after it has disappeared
    assert "1/3" in last
