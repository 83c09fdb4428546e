"""Scorers on hand-made cases, and Rouge-L against its definition written another way."""

import random
from functools import cache

import pytest

from prefkd.evaluation.scorers import contains, exact_match, longest_common_subsequence, rouge_l, words


def test_exact_match():
    assert exact_match(" Canberra\n", ["Sydney", "Canberra"]) == 1
    assert exact_match("canberra", ["Canberra"]) == 0
    assert exact_match("canberra", ["Canberra"], ignore_case=True) == 1
    assert exact_match("cafe\u0301 noir", ["café  noir"]) == 1
    assert exact_match("Canberra.", ["Canberra"]) == 0


def test_contains():
    assert contains("It is CANBERRA, of course.", ["Sydney", "canberra"]) == 1
    assert contains("It is CANBERRA.", ["canberra"], ignore_case=False) == 0
    assert contains("42", ["7"]) == 0


def test_words():
    assert words("Three small words!", []) == 3


def test_longest_common_subsequence():
    @cache
    def defined(one: str, other: str) -> int:
        if not one or not other:
            return 0
        if one[-1] == other[-1]:
            return defined(one[:-1], other[:-1]) + 1
        return max(defined(one[:-1], other), defined(one, other[:-1]))

    draw = random.Random(0)
    for _ in range(200):
        one, other = ("".join(draw.choices("abcd", k=draw.randint(0, 12))) for _ in range(2))
        assert longest_common_subsequence(one, other) == defined(one, other)


def test_rouge_l():
    # The example of the paper: police killed the gunman; police kill the gunman; the gunman kill police.
    assert rouge_l("police kill the gunman", ["police killed the gunman"]) == pytest.approx(0.75)
    assert rouge_l("the gunman kill police", ["police killed the gunman"]) == pytest.approx(0.5)
    assert rouge_l("the", ["the cat sat on the mat"]) == pytest.approx(2 * (1 / 6) * 1 / (1 / 6 + 1))
    assert rouge_l("", ["the cat"]) == 0
    assert rouge_l("Police, KILLED the gunman!", ["nothing", "police killed the gunman"]) == 1
    assert rouge_l("a b", ["a b c d"], beta=1e9) == pytest.approx(0.5)  # recall alone
