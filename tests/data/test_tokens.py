"""Pairs as tokens of one model: whole where they fit, cut between characters where they do not."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefkd.data.mapping import NOTHING_LEFT, SAME_TOKENS
from prefkd.data.pairs import DataConfig, load_pairs
from prefkd.data.sides import ModelSide
from prefkd.data.tokenizing import align_pairs, cut_pair
from prefkd.data.tokens import cut_tokens, tokenize_pairs, whole_characters
from prefkd.data.truncation import Limits
from prefkd.errors import DataError
from tests.data.test_tokenizing import HARD_TEXTS, make_pairs
from tests.tiny import make_tokenizer

ROOMY = DataConfig("pairs.jsonl", max_length=2000, max_prompt_length=1000)


@pytest.fixture(scope="module")
def side():
    return ModelSide(make_tokenizer("byte_level"), name="model")


@pytest.mark.parametrize("max_length", [2000, 40, 24])
def test_tokens_are_those_that_a_distillation_trains_the_same_model_on(side, max_length):
    config = DataConfig("pairs.jsonl", max_length=max_length, max_prompt_length=max_length // 2)
    pairs = make_pairs(HARD_TEXTS.values())
    alone = {row["row"]: row for row in tokenize_pairs(pairs, side, config=config)}
    aligned = {row["row"]: row for row in align_pairs(pairs, side, side, config=config)}
    assert alone.keys() == aligned.keys()
    assert alone
    for number, row in alone.items():
        for part in ("prompt", "chosen", "rejected"):
            assert row[part] == aligned[number][f"student_{part}"]
            assert row[f"{part}_cut"] == aligned[number][f"student_{part}_cut"]


@given(st.data())
def test_a_cut_falls_between_characters(data):
    widths = data.draw(st.lists(st.integers(1, 4), min_size=2, max_size=12))  # tokens of each character
    offsets = np.array([(i, i + 1) for i, width in enumerate(widths) for _ in range(width)])
    most = data.draw(st.integers(0, len(offsets) - 1))
    kept = whole_characters(offsets, most)
    boundaries = {0, *np.cumsum(widths).tolist()}
    assert kept == max(boundary for boundary in boundaries if boundary <= most)


def test_an_end_is_cut_first_and_what_is_left_is_counted(side):
    answers, offsets = side.encode_responses(["a b c d", "e"])
    prompt, ends = [1, 2, 3], len(side.end_ids)
    room = len(answers[0])
    reading = cut_tokens(prompt, answers, offsets, side, Limits(3 + room, 3, "keep_end"))
    assert reading.answers == (answers[0], [*answers[1], *side.end_ids])
    assert reading.cut == (0, ends, 0)


def test_pairs_of_which_nothing_can_be_preferred_are_left_out(side):
    left_out: Counter[str] = Counter()
    answers = [("same " * 30 + "a", "same " * 30 + "b"), ("yes", "no")]
    config = DataConfig("pairs.jsonl", max_length=30, max_prompt_length=10)
    assert tokenize_pairs(make_pairs(answers), side, config=config, left_out=left_out)["row"][:] == [2]
    assert left_out == {SAME_TOKENS: 1}


def test_an_answer_of_one_long_character_cannot_be_cut(side):
    answers, offsets = side.encode_responses(["𝒳", "no"])
    assert len(answers[0]) > 2, "the tokenizer has a token for it"
    with pytest.raises(DataError, match=NOTHING_LEFT):
        cut_tokens([1], answers, offsets, side, Limits(2, 1, "keep_end"))


def test_a_prompt_without_tokens_is_refused(side):
    """Its answers would be predicted from whatever lies before it in the batch."""
    answers, offsets = side.encode_responses(["yes", "no"])
    with pytest.raises(DataError, match="the prompt has no tokens"):
        cut_tokens([], answers, offsets, side, Limits(20, 10, "keep_end"))
    both, parents = {"student": answers, "teacher": answers}, [np.array([[0, 1, 0, 1, 0, 1]])] * 2
    for prompts in ({"student": [], "teacher": [1]}, {"student": [1], "teacher": [], "positive": [1], "negative": [1]}):
        with pytest.raises(DataError, match="the prompt has no tokens"):
            cut_pair(prompts, both, parents, {"student": side, "teacher": side}, Limits(20, 10, "keep_end"))


def test_a_template_of_the_prompt_alone_needs_a_prompt(tmp_path):
    bare = "{% for message in messages %}{{ message['content'] | trim }}{% endfor %}"
    tokenizer = make_tokenizer("byte_level")
    tokenizer.chat_template = bare
    pairs = make_pairs([("yes", "no")], prompt=" ")
    with pytest.raises(DataError, match=r"row 1 of pairs\.jsonl: the prompt has no tokens"):
        tokenize_pairs(pairs, ModelSide(tokenizer), config=ROOMY)


def test_no_pairs_give_no_rows(side):
    empty = make_pairs([("yes", "no")]).select([])
    assert tokenize_pairs(empty, side, config=ROOMY).column_names[:3] == ["file", "row", "prompt"]


def test_a_cut_answer_of_a_pair_has_no_end(tmp_path, side):
    """Nothing ends where a limit of tokens stopped it, whichever of the two answers that is, and however it is read."""
    pair = {"prompt": "Why?", "chosen": "Because it is", "rejected": "I was about to"}
    rows = [pair | {"rejected_finish": "length"}, pair | {"prompt": "How?", "rejected_finish": "stop"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for reverse, cut, whole in ((False, "rejected", "chosen"), (True, "chosen", "rejected")):
        config = DataConfig(f"{tmp_path}/pairs.jsonl", held_out_fraction=0.0, reverse=reverse)
        pairs = load_pairs(config).train
        for found, name in (
            (tokenize_pairs(pairs, side, config=config), ""),
            (align_pairs(pairs, side, side, config=config), "student_"),
        ):
            first, second = found
            assert [*first[f"{name}{cut}"], *side.end_ids] == second[f"{name}{cut}"]
            assert first[f"{name}{whole}"] == second[f"{name}{whole}"]
            assert not any(row[f"{name}{part}_cut"] for row in (first, second) for part in (cut, whole))
        assert (first[f"{cut}_ends"], first[f"{whole}_ends"], second[f"{cut}_ends"]) == (False, True, True)
