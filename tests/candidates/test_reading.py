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


BAD = {
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
