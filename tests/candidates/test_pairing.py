"""Pairs of scored candidates: what is chosen, what is dropped, and that the counts add up."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkd.candidates.pairing import PairingConfig, make_pairs, pair_rows, unused_candidates
from prefkd.candidates.rankers import agreement
from prefkd.candidates.reading import Candidate, Question
from prefkd.candidates.report import score_and_length
from prefkd.candidates.weights import answer_weights, weighted_rows
from prefkd.data.formats import Message, detect_format, read_pair


def question(key: str, *answers: str, cut: tuple[int, ...] = (), turns: int = 1) -> Question:
    said = ["user", "assistant"] * turns
    messages = [Message(role=said[turn], content=f"{key} {turn}") for turn in range(2 * turns - 1)]
    candidates = [Candidate(answer, "m", number in cut) for number, answer in enumerate(answers)]
    return Question(key, messages, [], candidates)


def scored(question: Question, *values: float) -> dict[tuple[str, int], float]:
    return {(question.key, number): value for number, value in enumerate(values)}


def chosen(config: PairingConfig, *values: float, answers: tuple[str, ...] = ("a", "b", "c", "d"), **how):
    one = question("q", *answers[: len(values)], **how)
    scores = scored(one, *values)
    pairs, dropped = make_pairs([one], scores, {"x": scores}, config)
    return [pair.answers() for pair in pairs] or [*dropped]


@pytest.mark.parametrize(
    ("settings", "values", "expected"),
    [
        ({}, (1.0, 3.0, 2.0), [("b", "a")]),
        ({}, (1.0, 1.0, 1.0), ["tie"]),
        ({}, (2.0, 2.0, 1.0), [("a", "c")]),
        ({}, (1.0,), ["fewer than two candidates"]),
        ({"minimum_gap": 2.0}, (1.0, 3.0), ["tie"]),
        ({"minimum_gap": 1.9}, (1.0, 3.0), [("b", "a")]),
        ({"kind": "above_threshold", "threshold": 2.0}, (1.0, 3.0, 2.5), [("b", "a")]),
        ({"kind": "above_threshold", "threshold": 4.0}, (1.0, 3.0), ["no answer above the threshold"]),
        ({"kind": "above_threshold", "threshold": 1.0}, (1.0, 3.0), ["no answer below the threshold"]),
        ({"kind": "best_random"}, (1.0, 3.0), [("b", "a")]),
        ({"kind": "all"}, (1.0, 3.0, 2.0), [("b", "a"), ("c", "a"), ("b", "c")]),
        ({"kind": "all"}, (2.0, 1.0, 1.0), [("a", "b"), ("a", "c")]),
        ({"kind": "all"}, (1.0, 1.0, 1.0), ["tie"]),
        ({"kind": "all", "minimum_gap": 1.5}, (1.0, 3.0, 2.0), [("b", "a")]),
        ({"kind": "all"}, (1.0,), ["fewer than two candidates"]),
    ],
)
def test_which_two(settings, values, expected):
    assert chosen(PairingConfig(**settings), *values) == expected


def test_cut_answers_and_answers_of_other_lengths():
    assert chosen(PairingConfig(), 1.0, 2.0, 3.0, cut=(2,)) == [("b", "a")]
    assert chosen(PairingConfig(drop_cut=False), 1.0, 2.0, 3.0, cut=(0, 2)) == [("b", "a")]
    long = {"answers": ("ab", "abcde")}
    assert chosen(PairingConfig(length_ratio=2.0), 1.0, 2.0, **long) == ["lengths differ"]
    assert chosen(PairingConfig(length_ratio=2.5), 1.0, 2.0, **long) == [("abcde", "ab")]


@pytest.mark.parametrize(
    ("kind", "values", "cut", "expected"),
    [
        ("best_worst", (1.0, 3.0, 2.0), (1,), [("c", "a")]),
        ("best_worst", (1.0, 3.0, 2.0), (0, 1), [("c", "a")]),
        ("best_worst", (1.0, 3.0), (0, 1), ["only cut answers"]),
        ("best_worst", (1.0, 3.0, 2.0), (1, 2), ["no answer worse than one that ended"]),
        ("best_worst", (1.0, 1.0), (0,), ["tie"]),
        ("best_random", (1.0, 3.0, 2.0), (1,), [("c", "a")]),
        ("all", (1.0, 3.0, 2.0), (1,), [("c", "a")]),
        ("all", (1.0, 3.0, 2.0), (0, 2), [("b", "a"), ("b", "c")]),
        ("all", (1.0, 3.0, 2.0), (0, 1, 2), ["only cut answers"]),
    ],
)
def test_a_cut_answer_is_never_chosen(kind, values, cut, expected):
    assert chosen(PairingConfig(kind, drop_cut=False), *values, cut=cut) == expected


def test_what_no_pair_is_made_of_is_counted():
    one = question("q", "a", "b", "c", "d", cut=(1, 2))
    scores = {key: value for key, value in scored(one, 1.0, 2.0, 3.0, 4.0).items() if key[1] != 2}
    assert unused_candidates([one], scores, PairingConfig()) == {"cut": 1, "without a score": 1}
    assert unused_candidates([one], scores, PairingConfig(drop_cut=False)) == {"without a score": 1}


def test_random_ones_are_spread_over_the_others():
    questions = [question(str(number), "a", "b", "c", "d") for number in range(60)]
    scores = {key: value for one in questions for key, value in scored(one, 1.0, 2.0, 3.0, 4.0).items()}
    pairs, _ = make_pairs(questions, scores, {"x": scores}, PairingConfig("best_random"))
    again, _ = make_pairs(questions, scores, {"x": scores}, PairingConfig("best_random"))
    other, _ = make_pairs(questions, scores, {"x": scores}, PairingConfig("best_random", seed=1))
    assert pairs == again != other
    assert {pair.chosen for pair in pairs} == {3}
    assert min(Counter(pair.rejected for pair in pairs).values()) > 8


def test_rankers_must_agree_on_the_pair():
    one = question("q", "a", "b")
    first, second = scored(one, 1.0, 2.0), scored(one, 5.0, 4.0)
    scores = agreement({"first": first, "second": second})
    assert make_pairs([one], first, {"first": first, "second": second}, PairingConfig())[1] == {"rankers disagree": 1}
    assert scores["q", 0] == pytest.approx(scores["q", 1])
    assert agreement({"first": first, "second": {("q", 0): 1.0}}).keys() == {("q", 0)}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(-3, 3), min_size=0, max_size=5), min_size=1, max_size=8),
    st.sampled_from(["best_worst", "best_random", "above_threshold"]),
    st.integers(0, 3),
)
def test_every_prompt_gives_a_pair_or_a_reason(values, kind, gap):
    questions = [question(str(number), *"abcde"[: len(own)]) for number, own in enumerate(values)]
    scores = {
        key: value for one, own in zip(questions, values, strict=True) for key, value in scored(one, *own).items()
    }
    config = PairingConfig(kind, threshold=0.0 if kind == "above_threshold" else None, minimum_gap=float(gap))
    pairs, dropped = make_pairs(questions, scores, {"x": scores}, config)
    assert len(pairs) + sum(dropped.values()) == len(questions)
    assert all(int(one.question.key) < int(other.question.key) for one, other in pairwise(pairs))
    for pair in pairs:
        own = values[int(pair.question.key)]
        assert pair.margin > gap and pair.scores[0] == max(own)
        if kind != "best_random":
            assert pair.scores[1] == min(own)


@pytest.mark.parametrize(("turns", "row_format"), [(1, "standard"), (2, "conversational")])
def test_rows_are_read_as_the_same_pairs(turns, row_format):
    one = question("q", "good", "bad", cut=(1,), turns=turns)
    scores = scored(one, 2.0, 1.0)
    pairs, _ = make_pairs([one], scores, {"x": scores}, PairingConfig(drop_cut=False))
    [row] = pair_rows(pairs)
    assert detect_format(row) == row_format
    read = read_pair(row, row_format)
    assert (read.prompt, read.chosen, read.rejected, read.cut) == (one.messages, "good", "bad", (False, True))
    assert (row["chosen_score"], row["rejected_score"], row["margin"]) == (2.0, 1.0, 1.0)


def test_the_correlation_with_length_is_that_within_prompts():
    short, long = question("s", "a", "bb"), question("l", "c" * 50, "d" * 51)
    assert score_and_length([short, long], scored(short, 0.0, 1.0) | scored(long, -9.0, -8.0)) == pytest.approx(1.0)
    assert score_and_length([short, long], scored(short, 1.0, 0.0) | scored(long, 8.0, 9.0)) == pytest.approx(0.0)
    assert score_and_length([short], scored(short, 1.0, 1.0)) is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=8), st.floats(0.01, 100))
def test_weights_of_answers_have_a_mean_of_one_and_follow_the_scores(values, temperature):
    weights = answer_weights(values, temperature)
    assert sum(weights) == pytest.approx(len(values))
    order = sorted(range(len(values)), key=values.__getitem__)
    assert all(weights[one] <= weights[other] + 1e-9 for one, other in pairwise(order))
    assert answer_weights([value + 3.0 for value in values], temperature) == pytest.approx(weights, rel=1e-6, abs=1e-9)


def test_ranked_answers_are_read_as_answers_without_a_rival():
    one, other = question("a", "x", "y", cut=(1,)), question("b", "z", turns=2)
    scores = scored(one, 1.0, 3.0) | scored(other, 2.0)
    rows = list(weighted_rows([one, other], scores, temperature=1e-3))
    assert [(row["answer"], row["weight"], row["score"]) for row in rows] == [("x", 0, 1), ("y", 2, 3), ("z", 1, 2)]
    found = [read_pair(row, "answers") for row in rows]
    assert [(pair.chosen, pair.rejected, pair.cut) for pair in found] == [
        ("x", "", (False, False)),
        ("y", "", (True, False)),
        ("z", "", (False, False)),
    ]
    assert {row["weight"] for row in weighted_rows([one], scored(one, 2.0, 2.0), 1.0)} == {1.0}
