"""How near an answer comes to its references: pure functions, each (answer, references) -> a number, 1 at best.

A function of your own of the same form is named in the config by its dotted path.
"""

import re
import unicodedata
from collections.abc import Sequence


def exact_match(answer: str, references: Sequence[str], ignore_case: bool = False) -> float:
    """1 if the answer is one of the references, but for blanks at the ends and how many there are in a row."""
    return float(any(_plain(answer, ignore_case) == _plain(text, ignore_case) for text in references))


def contains(answer: str, references: Sequence[str], ignore_case: bool = True) -> float:
    """1 if one of the references occurs in the answer."""
    return float(any(_plain(text, ignore_case) in _plain(answer, ignore_case) for text in references))


def rouge_l(answer: str, references: Sequence[str], beta: float = 1.0) -> float:
    """Rouge-L: the longest common subsequence of words as an F measure, the best over the references.

    With LCS the words that two texts of m and n words have in common, in order,

        R = LCS / m,   P = LCS / n,   F = (1 + beta^2) R P / (R + beta^2 P)

    where m belongs to the reference. Words are runs of letters and digits, case does not matter.

    Args:
        answer: A text.
        references: Texts, at least one.
        beta: How much more recall counts than precision.

    Source: Rouge, Lin 2004, https://aclanthology.org/W04-1013, equations 2 to 4.
    """
    return max(_rouge_l(_words(answer), _words(text), beta) for text in references)


def words(answer: str, references: Sequence[str]) -> float:
    """How many words an answer has: what an improvement must not be bought with."""
    return float(len(_words(answer)))


def _rouge_l(answer: Sequence[str], reference: Sequence[str], beta: float) -> float:
    common = longest_common_subsequence(answer, reference)
    if not common:
        return 0.0
    recall, precision = common / len(reference), common / len(answer)
    return (1 + beta**2) * recall * precision / (recall + beta**2 * precision)


def longest_common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """How many items two sequences have in common, in order. One row of the table of lengths is kept at a time."""
    lengths = [0] * (len(other) + 1)
    for left in one:
        diagonal = 0
        for column, right in enumerate(other, start=1):
            above = lengths[column]
            lengths[column] = diagonal + 1 if left == right else max(above, lengths[column - 1])
            diagonal = above
    return lengths[-1]


def _plain(text: str, ignore_case: bool) -> str:
    text = " ".join(unicodedata.normalize("NFC", text).split())
    return text.casefold() if ignore_case else text


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", unicodedata.normalize("NFC", text).casefold())
