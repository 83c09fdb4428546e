"""Candidates that somebody else wrote: what is read, and what is refused with its row."""

import json

import pytest

from prefkd.candidates.reading import read_candidates
from prefkd.errors import DataError


def test_blank_lines_are_no_rows_and_texts_have_one_form(tmp_path):
    file = tmp_path / "c.jsonl"
    file.write_bytes(b'{"prompt": "Q", "answer": "Cafe\\u0301"}\n\n{"prompt": "Q", "answer": "Caf\xc3\xa9 "}\n\n')
    [question], left_out = read_candidates(file)
    assert [candidate.answer for candidate in question.candidates] == ["Caf\u00e9"]
    assert left_out == {"duplicate": 1}


def read(path, *rows):
    (path / "c.jsonl").write_text("".join(json.dumps({"prompt": "Hi"} | row) + "\n" for row in rows))
    return read_candidates(path / "c.jsonl")


def test_what_else_a_model_was_given_makes_another_prompt(tmp_path):
    rows = [{"answer": "Yo", "system": "Be a pirate."}, {"answer": "Ho", "system": "Be a monk."}, {"answer": "Yo"}]
    found, _ = read(tmp_path, *rows)
    assert [question.messages[0]["content"] for question in found] == ["Be a pirate.", "Be a monk.", "Hi"]
    assert [len(question.candidates) for question in found] == [1, 1, 1]


def test_the_references_of_all_rows_of_a_prompt_count(tmp_path):
    rows = [{"answer": "a"}, {"answer": "b", "references": ["x", ""]}, {"answer": "a", "references": ["x", "y"]}]
    [question], left_out = read(tmp_path, *rows)
    assert (question.references, left_out) == (["x", "y"], {"duplicate": 1})


def test_answers_that_differ_in_blanks_alone_are_one(tmp_path):
    rows = [{"answer": "one\n\n two"}, {"answer": " one two"}, {"answer": "onetwo"}]
    [question], left_out = read(tmp_path, *rows)
    assert [candidate.answer for candidate in question.candidates] == ["one\n\n two", "onetwo"]
    assert left_out == {"duplicate": 1}


BAD = {
    "something else to read": (
        {"prompt": "Q", "answer": "a", "history": [["x", "y"]]},
        "field 'history' cannot be read, and the prompt is another without it",
    ),
    "half a character": ({"prompt": "Q", "answer": "a\ud83d"}, "field 'answer' is broken: half a character"),
    "an empty prompt": ({"prompt": " ", "answer": "a"}, "the prompt is empty"),
    "an answer in the prompt": (
        {"prompt": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "a"}], "answer": "b"},
        "the prompt ends with a message of the assistant",
    ),
}


@pytest.mark.parametrize(("row", "problem"), BAD.values(), ids=BAD)
def test_a_bad_row_is_named(tmp_path, row, problem):
    (tmp_path / "c.jsonl").write_text(json.dumps({"prompt": "Q", "answer": "a"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=f"row 2 of .*: {problem}"):
        read_candidates(tmp_path / "c.jsonl")
