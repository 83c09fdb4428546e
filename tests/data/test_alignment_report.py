"""The report counts what is in the data set and what is not."""

import json
from collections import Counter

from prefkd.data.alignment_report import alignment_report
from prefkd.data.mapping import NO_PARENT, SAME_TOKENS
from prefkd.data.pairs import DataConfig
from prefkd.data.sides import ModelSide
from prefkd.data.tokenizing import align_pairs
from tests.data.test_tokenizing import TEXT_PAIRS, make_pairs
from tests.tiny import make_tokenizer

STUDENT, TEACHER = ModelSide(make_tokenizer("byte_level")), ModelSide(make_tokenizer("metaspace"))


def report(answers, config, student=STUDENT, contrast=None):
    pairs = make_pairs(answers)
    left_out = Counter()
    aligned = align_pairs(pairs, student, TEACHER, config=config, contrast=contrast, left_out=left_out)
    return alignment_report(aligned, pairs, left_out), aligned[:]


def test_counts_of_whole_pairs():
    found, rows = report(TEXT_PAIRS, DataConfig("pairs.jsonl", max_length=2000))
    assert json.loads(json.dumps(found)) == found
    assert found["pairs"] == len(TEXT_PAIRS)
    assert found["dropped_pairs"] == 0
    assert found["share_of_responses_truncated"] == 0.0
    assert found["share_of_prompts_truncated"] == {"student": 0.0, "teacher": 0.0}
    assert found["response_tokens_dropped"] == found["prompt_tokens_dropped"] == {"student": 0, "teacher": 0}
    parents = sum(rows["chosen_parents"]) + sum(rows["rejected_parents"])
    answers = 2 * len(TEXT_PAIRS)
    assert found["parents_per_response"]["mean"] == round(parents / answers, 2)
    for side in ("student", "teacher"):
        tokens = sum(len(ids) for answer in ("chosen", "rejected") for ids in rows[f"{side}_{answer}"])
        assert found["tokens_per_parent"][side] == round((tokens - answers) / (parents - answers), 4)
    assert 0 < found["share_of_text_aligned_one_to_one"] < 1
    assert "pairs_without_contrast" not in found


def test_one_tokenizer_aligns_one_to_one():
    found, _ = report([("Boil the eggs.", "Look it up.")], DataConfig("pairs.jsonl"), student=TEACHER)
    assert found["tokens_per_parent"] == {"student": 1.0, "teacher": 1.0}
    assert found["share_of_text_aligned_one_to_one"] == 1.0


def test_counts_of_what_was_cut():
    config = DataConfig("pairs.jsonl", max_length=7, max_prompt_length=5)
    answers = [*TEXT_PAIRS, ("👍🏽", "🙃")]
    found, rows = report(answers, config, contrast=("Good: {prompt}", "Bad: {prompt}"))
    assert found["pairs"] == len(TEXT_PAIRS)
    assert found["dropped_pairs"] == 1
    assert found["share_of_responses_truncated"] == 1.0
    assert found["share_of_prompts_truncated"] == {"student": 1.0, "teacher": 1.0}
    assert found["response_tokens_dropped"]["teacher"] == sum(rows["teacher_chosen_cut"] + rows["teacher_rejected_cut"])
    assert found["pairs_without_contrast"] == found["pairs"]


def test_nothing_left_is_still_a_report():
    config = DataConfig("pairs.jsonl", max_length=7, max_prompt_length=5)
    found, _ = report([("👍🏽", "🙃")], config)
    assert found == {"pairs": 0, "dropped_pairs": 1, "dropped_for": {NO_PARENT: 1}}


def test_pairs_are_left_out_for_reasons_of_their_own():
    same = "Boil the eggs for eight minutes, then cool them "
    answers = [*TEXT_PAIRS, ("👍🏽", "🙃"), (f"{same} well.", f"{same} not.")]
    found, _ = report(answers, DataConfig("pairs.jsonl", max_length=7, max_prompt_length=5))
    assert found["dropped_for"] == {NO_PARENT: 1, SAME_TOKENS: 1}
    assert found["dropped_pairs"] == 2
