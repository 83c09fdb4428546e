"""What the numbers of an inspection mean for a run, in plain words."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from prefkd.data.pairs import DataConfig, in_rows
from prefkd.data.rows import SIDES

Grade = Literal["good", "fair", "poor"]

# Shares of the text in parents of one token on each side. Related vocabularies reach 0.8 to 0.95 on English and code.
GOOD_SHARE = 0.75
FAIR_SHARE = 0.5
# Tokens of a parent from which on one weight covers a phrase.
LONG_PARENT = 16
# Shares of pairs or answers below which a loss is not worth a word.
WORTH_A_WORD = 0.05
TOKEN_RATIO = 1.25
ROUND_LENGTH = 64


@dataclass(frozen=True)
class Verdict:
    """A judgement.

    Attributes:
        grade: Grade of the alignment alone.
        summary: The grade in words.
        advice: Things to do or to know, most important first; may be empty.
    """

    grade: Grade
    summary: str
    advice: list[str]


def judge(numbers: Mapping[str, Any], config: DataConfig) -> Verdict:
    """Judge the numbers of an inspection.

    Args:
        numbers: `prefkd.reports.alignment.numbers.inspection_numbers`, and what reading counted (`PairSplits.report`).
        config: Settings of the inspected pairs.
    """
    share = numbers["share_of_text_aligned_one_to_one"]
    grade: Grade = "good" if share >= GOOD_SHARE else "fair" if share >= FAIR_SHARE else "poor"
    if share == 1:
        summary = "The two read this text in the same pieces: every parent is one token on each side."
    else:
        summary = (
            f"{share:.1%} of the text is in parents of one token on each side. "
            + {
                "good": "Weights and log-probs of parents fall on words and parts of words.",
                "fair": "The rest is in larger pieces, over which a weight is the same.",
                "poor": "A weight mostly falls on larger pieces, and says little of the words in them.",
            }[grade]
        )
    return Verdict(grade, summary, list(_advice(numbers, config, grade)))


def needed_length(numbers: Mapping[str, Any]) -> int:
    """A round `max_length` that leaves 95 % of the pairs whole on both sides."""
    longest = max(numbers["pair_tokens"][side]["percentile_95"] for side in SIDES)
    return -(-longest // ROUND_LENGTH) * ROUND_LENGTH


def _advice(numbers: Mapping[str, Any], config: DataConfig, grade: Grade) -> Iterator[str]:
    contrast = numbers["weights"]["contrast"]["verdict"] if "weights" in numbers else None
    if contrast and contrast["advice"]:
        yield f"The contrast of the scores {contrast['summary']} {contrast['advice']}"
    if grade == "poor":
        yield (
            "Take a teacher whose vocabulary is nearer to the student's, or a method of whole answers (DPO), which "
            "needs no parents."
        )
    elif grade == "fair":
        yield "Look at the text that is split differently; a teacher with a related vocabulary would be better."
    cut = numbers["share_of_responses_truncated"]
    prompts_cut = max(numbers["share_of_prompts_truncated"].values())
    if max(cut, prompts_cut) >= WORTH_A_WORD:
        yield (
            f"max_length {config.max_length} cuts {cut:.1%} of the answers and {prompts_cut:.1%} of the prompts; "
            f"max_length {needed_length(numbers):,} would leave 95 % of the pairs whole."
        )
    if numbers["dropped_pairs"]:
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in numbers["dropped_for"].items())
        yield (
            f"{numbers['dropped_pairs']:,} pairs are left out: {reasons}. Raise max_length, or lower max_prompt_length."
        )
    skipped = numbers["skipped_rows"]
    if skipped:
        yield f"Rows that cannot be used: {len(skipped):,}; the first is {skipped[0]}."
    if numbers["rows_without_preference"]:
        yield f"Rows without a preference, which are left out: {numbers['rows_without_preference']:,}."
    if numbers["unread_fields"]:
        yield f"Fields that hold something and are not read: {in_rows(numbers['unread_fields'])}."
    for side in SIDES:
        lost = numbers["answers_changed_by_decoding"][side]
        if lost["answers"]:
            first = lost["first"]
            yield (
                f"The {side}'s tokens do not spell {lost['answers']:,} of the answers (row {first['row']} of "
                f"{first['file']}, {first['answer']}, say): the model cannot see, or write, some of their characters."
            )
    longest = numbers["longest_parents"][0] if numbers["longest_parents"] else None
    if longest and max(longest[side] for side in SIDES) >= LONG_PARENT:
        yield (
            f"The longest parent has {longest['student']:,} tokens of the student and {longest['teacher']:,} of the "
            f"teacher (row {longest['row']} of {longest['file']}): one weight for all of them. Such text is often of a "
            "script or a symbol that one vocabulary lacks; look whether the rows are worth keeping."
        )
    fertility = numbers["tokens_per_word"]
    ratio = fertility["student"] / fertility["teacher"]
    if max(ratio, 1 / ratio) >= TOKEN_RATIO:
        longer, shorter = ("student", "teacher") if ratio > 1 else ("teacher", "student")
        excess = max(ratio, 1 / ratio) - 1
        yield f"The {longer} needs {excess:.0%} more tokens than the {shorter} for the same text; mind max_length."
