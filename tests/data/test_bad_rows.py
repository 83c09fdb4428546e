"""Bad rows and settings: each is one line with the file, the row and the field, or with the key."""

import json

import pytest

from prefkd.data.pairs import DataConfig, load_pairs
from prefkd.data.settings import Filters, MixedRows
from prefkd.errors import DataError
from tests.data.test_layouts import ROWS, assistant, user

GOOD = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
CALLING = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "[1"}}]}

OWN = {"_component_": "tests.data.test_bad_rows.read_badly"}


def read_badly(row):
    return row["q"]


def changed(name, **fields):
    return ROWS[name][1] | fields


# row, settings, what the line tells after "row 2 of p.jsonl: "
BAD_ROWS = {
    "no answer": (GOOD | {"rejected": None}, {}, "field 'rejected' is missing"),
    "an empty answer": (GOOD | {"chosen": " "}, {}, "field 'chosen' is empty"),
    "equal answers": (GOOD | {"rejected": "Because. "}, {}, "fields 'chosen' and 'rejected' are the same text"),
    "an empty prompt": (GOOD | {"prompt": ""}, {}, "field 'prompt' is missing|the prompt is empty"),
    "a number": (GOOD | {"chosen": 7}, {}, "field 'chosen' is a number: expected text"),
    "half a character": (GOOD | {"chosen": "\ud83d"}, {}, "field 'chosen' is broken"),
    "an image": (GOOD | {"images": ["a.png"]}, {}, "field 'images' cannot be read"),
    "a history": (GOOD | {"history": [["a", "b"]]}, {}, "field 'history' cannot be read"),
    "tools": (GOOD | {"tools": [{"type": "function"}]}, {}, "field 'tools' is not a list of tools with a name"),
    "tools as text": (GOOD | {"tools": "[oops"}, {}, "field 'tools' is not a list of tools with a name"),
    "arguments": (
        {"prompt": [user("a"), CALLING, user("b")], "chosen": "c", "rejected": "d"},
        {},
        "'tool_calls' in message 2 of field 'prompt' has a call whose arguments are text",
    ),
    "a role": (
        {"prompt": [user("a") | {"role": "critic"}], "chosen": "c", "rejected": "d"},
        {},
        "message 1 of field 'prompt' has the role 'critic'",
    ),
    "an assistant last": (
        {"prompt": [user("a"), assistant("b")], "chosen": "c", "rejected": "d"},
        {},
        "the prompt ends with a message of the assistant",
    ),
    "a list of scores": (changed("Nectar", answers="[{]"), {}, "field 'answers' is text: expected a list of answers"),
    "no score": (
        changed("openbmb/UltraFeedback", completions=[{"response": "a", "overall_score": None}] * 2),
        {},
        "field 'overall_score' is missing",
    ),
    "an infinite strength": (
        changed("HelpSteer2", preference_strength="inf"),
        {},
        "field 'preference_strength' is inf: expected a finite number",
    ),
    "a label": (changed("SHP", labels=3), {}, "field 'labels' is 3: expected one of 0, 1"),
    "no weight": (GOOD, {"weight": "w"}, "column 'w' is missing"),
    "a negative weight": (GOOD | {"w": -1}, {"weight": "w"}, "the weight in 'w' is -1: expected 0 or more"),
    "a margin in words": (GOOD | {"m": "big"}, {"margin": "m"}, "field 'm' is text: expected a number"),
    "no gap": (GOOD, {"margin": "gap"}, "the row has no gap between its answers"),
    "a column": (GOOD, {"columns": {"prompt": "question"}}, "column 'question' is missing"),
    "a reader": (GOOD, {"reader": OWN}, "data.reader fails with KeyError: 'q'"),
}


@pytest.mark.parametrize(("row", "settings", "problem"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_one_line_with_file_row_and_field(tmp_path, row, settings, problem):
    first = row if settings else GOOD
    (tmp_path / "p.jsonl").write_text(json.dumps(first) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(DataError) as error:
        load_pairs(DataConfig(str(tmp_path / "p.jsonl"), **settings))
    line = str(error.value)
    assert line.startswith(f"row {1 if settings else 2} of p.jsonl: ") and "\n" not in line
    assert any(part in line for part in problem.split("|"))


SETTINGS = {
    "weight": ({"sources": [MixedRows("p.jsonl", weight=0.0)]}, None),
    "filters.gap": ({"filters": Filters(gap=-1.0)}, "gap: -1.0 is not a difference of scores; use 0 or more"),
    "filters.gap without end": ({"filters": Filters(gap=float("inf"))}, "gap: inf is not a difference of scores"),
    "minimum_gap": ({"minimum_gap": float("inf")}, "minimum_gap: inf is not a difference of scores; use 0 for any"),
    "filters.length_ratio": ({"filters": Filters(length_ratio=0.5)}, "length_ratio: 0.5 is below 1"),
    "filters.length": ({"filters": Filters(length=0)}, "length: 0 is too small"),
    "margin_scale": ({"margin_scale": -1.0}, "margin_scale: -1.0 would ask for less than a tie"),
    "margin_scale alone": ({"margin_scale": 7.0}, "margin_scale: 7.0 scales margins, and there are none; set margin"),
    **{
        f"{name} beside sources": (
            {"source": None, "sources": [MixedRows("p.jsonl")], name: value},
            f"{name}: belongs to each of sources; move it there",
        )
        for name, value in (("format", "hh"), ("pairing", "all"), ("minimum_gap", 3.0), ("split", "validation"))
    },
    "format": ({"format": "nectr"}, "format: nectr is unknown; did you mean nectar?"),
    "reader": (
        {"reader": OWN},
        "reader: row 1 of p.jsonl: data.reader fails with KeyError: 'q'",
    ),
    "reader and columns": (
        {"reader": OWN, "columns": {"prompt": "q"}},
        "columns: means nothing to a reader of your own",
    ),
    "source": ({"source": " "}, "source: an empty text names no data"),
    "columns": ({"columns": {"promt": "prompt"}}, "columns.promt: no format reads it; did you mean prompt?"),
    "revision": ({"revision": "v1"}, "revision: v1 means nothing to a file; leave it out"),
}


@pytest.mark.parametrize(("settings", "problem"), SETTINGS.values(), ids=SETTINGS)
def test_a_wrong_setting_is_one_line_with_its_key(tmp_path, monkeypatch, settings, problem):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_text(json.dumps(GOOD) + "\n")
    config = DataConfig(**({"source": "p.jsonl"} | settings))
    found = [*config.filters.problems(), *(line for part in config.sources for line in part.problems())]
    found = [str(line) for line in (*found, *config.problems())]
    expected = problem or "weight: 0.0 is not a share; use a number above 0"
    assert found[0].startswith(expected) and "\n" not in found[0]


def test_a_field_that_is_there_twice_is_not_dropped(tmp_path):
    (tmp_path / "p.jsonl").write_text(
        json.dumps(GOOD) + '\n{"prompt": "Q", "chosen": "a", "rejected": "b", "chosen": "c"}\n'
    )
    with pytest.raises(DataError, match=r"row 2 of p\.jsonl: two fields are named 'chosen'"):
        load_pairs(DataConfig(str(tmp_path / "p.jsonl")))


NOTHING_LEFT = {
    "weights": ({"weight": "w"}, "no pair has a weight above 0 in 'w', so nothing could be learned"),
    "filters": ({"filters": Filters(length=1)}, "no pairs are left to train on (20 left out by filters.length)"),
    "ties": ({"source": "ties.jsonl"}, "no pairs are left to train on (1 without a preference)"),
    "a source": (
        {"source": None, "sources": [MixedRows("p.jsonl", weight=0.5), MixedRows("ties.jsonl", weight=0.5)]},
        "ties.jsonl: no pairs are left for its share of the mixture; take it out of data.sources",
    ),
}


@pytest.mark.parametrize(("settings", "problem"), NOTHING_LEFT.values(), ids=NOTHING_LEFT)
def test_data_of_which_nothing_is_left_says_why(tmp_path, monkeypatch, settings, problem):
    monkeypatch.chdir(tmp_path)
    rows = [
        GOOD | {"prompt": f"{i}", "chosen": "a" if i == 3 else "Because.", "rejected": "b", "w": 0} for i in range(20)
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "ties.jsonl").write_text(json.dumps(changed("HelpSteer3", overall_preference=0)))
    config = DataConfig(**({"source": "p.jsonl", "held_out_fraction": 0.04} | settings))
    with pytest.raises(DataError) as error:
        load_pairs(config)
    assert problem in str(error.value) and "\n" not in str(error.value)


def test_there_are_thirty():
    assert len(BAD_ROWS) + len(SETTINGS) >= 30
