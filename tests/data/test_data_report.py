"""What tokenizing cut is counted as the limit cut it, whoever reads the pairs."""

import json
from collections import Counter

from prefkd.data.data_report import count_cut, data_line, data_report
from prefkd.data.pairs import DataConfig, PairSplits
from prefkd.data.sides import ModelSide
from prefkd.data.tokenizing import align_pairs
from prefkd.data.tokens import tokenize_pairs
from tests.data.test_tokenizing import make_pairs
from tests.tiny import make_tokenizer

STUDENT, TEACHER = ModelSide(make_tokenizer("byte_level")), ModelSide(make_tokenizer("metaspace"))
SHORT = DataConfig("pairs.jsonl", max_length=40, max_prompt_length=20)
ANSWERS = [("good words here " * 80, "no"), ("Yes, boil them.", "No.")]


def test_cut_answers_are_counted_and_said():
    pairs = make_pairs(ANSWERS)
    left_out = Counter()
    tokens = tokenize_pairs(pairs, STUDENT, config=SHORT, left_out=left_out)
    splits = PairSplits(pairs, pairs.select([]), skipped=[])
    report = data_report(tokens, splits, left_out, max_length=40)
    assert json.loads(json.dumps(report)) == report
    assert (report["pairs"], report["answers_cut"], report["prompts_cut"]) == (2, 1, 0)
    line = data_line(report, splits.held_out, splits.omissions)
    said = "0 dropped, 1 answers and 0 prompts cut to max_length, 0 bad rows skipped"
    assert line == f"2 pairs to train on, 0 held out, {said}"
    assert "cut" not in data_line(report | {"answers_cut": 0}, splits.held_out, splits.omissions)
    assert count_cut(tokens, 40, ("rejected",)) == (0, 0)


def test_what_both_sides_cut_counts_once():
    aligned = align_pairs(make_pairs(ANSWERS, prompt="Why? " * 12), STUDENT, TEACHER, config=SHORT)
    assert count_cut(aligned, 40) == (1, 2)


def test_an_answer_that_the_data_has_unfinished_is_not_cut_to_the_limit():
    pairs = make_pairs(ANSWERS[1:]).add_column("cut", [True])
    contrast = ("Good: {prompt}", "Bad: {prompt}")
    for tokens in (
        tokenize_pairs(pairs, STUDENT, config=SHORT),
        align_pairs(pairs, STUDENT, TEACHER, config=SHORT, contrast=contrast),
    ):
        assert count_cut(tokens, 40) == (0, 0)
