"""In a pipe a table has whole lines without blanks at their ends; a terminal breaks and cuts them."""

import pytest

from prefkd.terminal import console, table

LONG = "a long cell, " * 30


@pytest.fixture
def shown():
    made = table("name", "value", "why")
    made.add_row("first", "1", LONG)
    made.add_row("the second", "", "short")
    return made


def test_lines_of_a_pipe_are_whole_and_end_where_their_text_ends(shown, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    console().print(shown)
    lines = capsys.readouterr().out.split("\n")
    assert lines == ["name        value  why", f"first       1      {LONG.rstrip()}", "the second         short", ""]


def test_a_terminal_cuts_what_is_too_wide(shown, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    console().print(shown)
    assert "…" in capsys.readouterr().out


def test_a_pipe_has_the_columns_that_are_asked_for(shown, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    console().print(shown)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60 and all(line == line.rstrip() for line in lines)


def test_other_ranks_print_nothing(shown, capsys):
    console(quiet=True).print(shown)
    assert capsys.readouterr().out == ""
