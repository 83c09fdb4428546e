"""What a pair is worth: read from its row, kept through aligning, and used by the loss."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkd.data.collate import collate_pairs
from prefkd.data.pair_worth import by_source, pair_worth
from prefkd.data.pairs import DataConfig, load_pairs
from prefkd.data.settings import Filters
from prefkd.data.sides import ModelSide
from prefkd.data.steps import Microbatch, split_step
from prefkd.data.tokenizing import align_pairs
from prefkd.data.worth import Worth, read_worth
from prefkd.errors import DataError
from tests.data.test_layouts import ROWS
from tests.tiny import make_tokenizer

ALL = {"held_out_fraction": 0.0}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


WORTHS = {
    "a column": ({"m": 2}, {"margin": "m"}, Worth(1.0, 2.0)),
    "text, as CSV has it": ({"m": "2.5"}, {"margin": "m", "scale": 0.5}, Worth(1.0, 1.25)),
    "scores": ({"score_chosen": 8.5, "score_rejected": 6}, {"margin": "gap"}, Worth(1.0, 2.5, 2.5)),
    "a difference": ({"a": 3, "b": {"c": 1}}, {"margin": "a - b.c"}, Worth(1.0, 2.0)),
    "a name with a minus": (
        {"chosen-rating": "5", "rejected-rating": 0},
        {"weight": "chosen-rating"},
        Worth(5.0, 0, 5.0),
    ),
    "no scores": ({"score_chosen": [1], "score_rejected": 2}, {}, Worth()),
    "weight": ({"w": 0}, {"weight": "w"}, Worth(0.0)),
}


@pytest.mark.parametrize(("row", "settings", "worth"), WORTHS.values(), ids=WORTHS)
def test_worth_is_read(row, settings, worth):
    assert read_worth(row, **({"weight": None, "margin": None} | settings)) == worth


BAD = {
    "missing": ({}, {"margin": "m"}, "column 'm' is missing"),
    "null": ({"m": None}, {"margin": "m"}, "field 'm' is missing"),
    "words": ({"m": "high"}, {"margin": "m"}, "field 'm' is text: expected a number"),
    "infinite": ({"m": "inf"}, {"margin": "m"}, "field 'm' is inf: expected a finite number"),
    "negative": ({"w": -1}, {"weight": "w"}, "the weight in 'w' is -1: expected 0 or more"),
    "no gap": ({}, {"margin": "gap"}, "the row has no gap between its answers"),
}


@pytest.mark.parametrize(("row", "settings", "problem"), BAD.values(), ids=BAD)
def test_bad_worth_is_told(row, settings, problem):
    with pytest.raises(DataError, match=problem):
        read_worth(row, **({"weight": None, "margin": None} | settings))


GAPS = {
    "SHP": 2.04,
    "HelpSteer2": 2.0,
    "HelpSteer3": 1.0,
    "webgpt_comparisons": 1.0,
    "openbmb/UltraFeedback": None,
    "Nectar": None,
    "Tulu 3": "nothing",
}


@pytest.mark.parametrize("name", GAPS)
def test_layouts_that_know_a_gap_tell_it(tmp_path, name):
    path = write(tmp_path / "p.jsonl", [ROWS[name][1]])
    found = load_pairs(DataConfig(path, **ALL)).train[0]["gap"]
    if GAPS[name] == "nothing":
        assert found is None
    else:
        assert found > 0 and (GAPS[name] is None or found == pytest.approx(GAPS[name]))


@pytest.mark.parametrize(("name", "column"), [("HelpSteer2", "preference_strength"), ("SHP", "score_ratio")])
def test_a_published_strength_can_be_named(tmp_path, name, column):
    rows = [ROWS[name][1]]
    if name == "HelpSteer2":  # the first answer is better now, and the strength has another sign
        rows.append(ROWS[name][1] | {"preference_strength": -3})
    config = DataConfig(write(tmp_path / "p.jsonl", rows), margin=column, **ALL)
    margins = load_pairs(config).train["margin"][:]
    assert margins == pytest.approx([2.0, 3.0] if name == "HelpSteer2" else [2.04])


PLAIN = [
    {"prompt": f"Q{i}", "chosen": "good " * (i + 1), "rejected": "bad ", "w": i, "score_chosen": i, "score_rejected": 1}
    for i in range(6)
]


def test_filters_leave_out_and_count(tmp_path):
    path = write(tmp_path / "p.jsonl", PLAIN)
    filters = Filters(gap=1, length_ratio=7.0, length=25)
    splits = load_pairs(DataConfig(path, filters=filters, **ALL))
    assert splits.train["row"][:] == [3, 4]
    assert splits.report["filtered"] == {"gap": 2, "length_ratio": 1, "length": 1}
    assert "2 by filters.gap, 1 by filters.length_ratio, 1 by filters.length" in splits.omissions
    assert len(load_pairs(DataConfig(path, **ALL)).train) == 6


@pytest.mark.parametrize(
    ("asked", "remedy"),
    [({"minimum_gap": 5.0}, "use filters.gap instead"), ({"pairing": "all"}, "remove it")],
)
def test_a_choice_among_answers_is_refused_where_there_is_none(tmp_path, asked, remedy):
    path, several = write(tmp_path / "p.jsonl", PLAIN), write(tmp_path / "s.jsonl", [ROWS["Nectar"][1]])
    with pytest.raises(DataError, match=f"p.jsonl: {next(iter(asked))}.* of a row, and these rows are pairs.*{remedy}"):
        load_pairs(DataConfig(path, **asked, **ALL))
    # The held-out pairs of such rows may be pairs already.
    splits = load_pairs(DataConfig(several, held_out_source=path, **asked | {"minimum_gap": 1.0}))
    assert len(splits.held_out) == len(PLAIN)


@pytest.fixture(scope="module")
def aligned(tmp_path_factory):
    path = write(tmp_path_factory.mktemp("worth") / "p.jsonl", PLAIN)
    config = DataConfig(path, weight="w", margin="gap", margin_scale=0.5, max_length=200, max_prompt_length=100, **ALL)
    side = ModelSide(make_tokenizer("byte_level"))
    return align_pairs(load_pairs(config).train, side, side, config=config)


def test_worth_reaches_the_batch(aligned):
    batch = collate_pairs(aligned, Microbatch([1, 5]), share_prompt=(True, True))
    torch.testing.assert_close(batch.weight, torch.tensor([1 / 3, 5 / 3]))
    assert batch.margin.tolist() == [0.0, 2.0]
    assert batch.sources == {}


@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 6), ranks=st.integers(1, 3), data=st.data())
def test_weights_make_the_weighted_mean_however_a_step_is_split(aligned, size, ranks, data):
    rows = data.draw(st.permutations(range(6)))
    losses = torch.arange(6.0) ** 2
    total = 0.0
    for rank in range(ranks):
        for microbatch in split_step(rows, size, rank, ranks):
            counted = len(microbatch.rows) - microbatch.fillers
            weight = pair_worth(aligned, microbatch)["weight"]
            total += (weight * losses[microbatch.rows])[:counted].sum().item() / len(rows)
    weights = torch.arange(6.0)
    assert total == pytest.approx(((weights * losses).sum() / weights.sum()).item(), rel=1e-5)


def test_accuracies_of_sources_are_means_of_their_own():
    accuracy = torch.tensor([1.0, 0.0, 1.0, 1.0])
    sources = {"a": torch.tensor([4.0, 0, 0, 0]), "b": torch.tensor([0, 4 / 3, 4 / 3, 4 / 3])}
    found = by_source({"accuracy": accuracy, "loss": accuracy}, sources)
    assert {name: value.mean().item() for name, value in found.items()} == pytest.approx(
        {"accuracy/a": 1.0, "accuracy/b": 2 / 3}
    )
