"""Scored candidates -> preference pairs."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from prefkd.candidates.rankers import Scores
from prefkd.candidates.reading import Question


@dataclass
class PairingConfig:
    """Which two candidates make a pair.

    Attributes:
        kind: `best_worst`: the best and the worst candidate of a prompt. `best_random`: the best and another one at
            random. `above_threshold`: the best candidate, if its score is at least `threshold`, and the worst, if its
            score is below. `all`: any two candidates, for a loss that ranks all answers to a prompt (PAD).
        threshold: See `kind`; the mean over several rankers is in their standard deviations.
        minimum_gap: Pairs whose scores differ by this much or less are dropped as ties.
        length_ratio: Pairs are dropped if one answer has more than so many times the characters of the other, so
            that length is not what is learned. None keeps all.
        drop_cut: Leave out candidates that `max_new_tokens` ended; else they can only be rejected, and have no end.
        seed: Seed of `best_random`.
    """

    kind: Literal["best_worst", "best_random", "above_threshold", "all"] = "best_worst"
    threshold: float | None = None
    minimum_gap: float = 0.0
    length_ratio: float | None = None
    drop_cut: bool = True
    seed: int = 0

    def problems(self) -> Iterator[str]:
        if self.kind == "above_threshold" and self.threshold is None:
            yield "threshold: missing; above_threshold needs the score that a good answer has at least"
        if self.kind != "above_threshold" and self.threshold is not None:
            yield f"threshold: goes with kind: above_threshold, and kind is {self.kind}; change one of them"
        if self.threshold is not None and not math.isfinite(self.threshold):
            yield f"threshold: {self.threshold} is not a score that an answer can have; use a finite number"
        if not 0 <= self.minimum_gap < math.inf:
            yield f"minimum_gap: {self.minimum_gap} is not a difference of scores; use 0 to drop exact ties alone"
        if self.length_ratio is not None and not self.length_ratio >= 1:
            yield f"length_ratio: {self.length_ratio} is not a ratio of the longer to the shorter; use 2, say"


@dataclass(frozen=True)
class RankedPair:
    """Two candidates of a prompt.

    Attributes:
        chosen, rejected: Their numbers among the candidates.
        scores: Scores of the two.
    """

    question: Question
    chosen: int
    rejected: int
    scores: tuple[float, float]

    @property
    def margin(self) -> float:
        """By how much the chosen one is better."""
        return self.scores[0] - self.scores[1]

    def answers(self) -> tuple[str, str]:
        """The two texts."""
        return self.question.candidates[self.chosen].answer, self.question.candidates[self.rejected].answer


def make_pairs(
    questions: Sequence[Question], scores: Scores, rankers: Mapping[str, Scores], config: PairingConfig
) -> tuple[list[RankedPair], Counter[str]]:
    """At most one pair for each prompt, or with `all` one of any two of its candidates.

    Args:
        scores: The scores that decide.
        rankers: Scores of each ranker; a pair on which they do not agree is dropped.

    Returns:
        The pairs, and how many prompts have none by reason: `fewer than two candidates`, `no answer above the
        threshold`, `no answer below the threshold`, `only cut answers`, `no answer worse than one that ended`, `tie`,
        `rankers disagree`, `lengths differ`.
    """
    pairs, dropped = [], Counter()
    for question in questions:
        usable = [
            (scores[question.key, number], number)
            for number, candidate in enumerate(question.candidates)
            if (question.key, number) in scores and not (config.drop_cut and candidate.is_cut)
        ]
        choices = combinations(usable, 2) if config.kind == "all" and len(usable) > 1 else [usable]
        outcomes = [_checked(_choose(question, [*choice], config), rankers, config) for choice in choices]
        found = [outcome for outcome in outcomes if isinstance(outcome, RankedPair)]
        pairs += found
        if not found:
            dropped.update(outcome for outcome in outcomes[:1] if isinstance(outcome, str))
    return pairs, dropped


def unused_candidates(questions: Sequence[Question], scores: Scores, config: PairingConfig) -> Counter[str]:
    """How many candidates no pair is made of: `without a score`, `cut`."""
    found: Counter[str] = Counter()
    for question in questions:
        for number, candidate in enumerate(question.candidates):
            if (question.key, number) not in scores:
                found["without a score"] += 1
            elif config.drop_cut and candidate.is_cut:
                found["cut"] += 1
    return found


def _checked(outcome: RankedPair | str, rankers: Mapping[str, Scores], config: PairingConfig) -> RankedPair | str:
    """The same, or why it is not good enough."""
    if isinstance(outcome, RankedPair):
        keys = [(outcome.question.key, number) for number in (outcome.chosen, outcome.rejected)]
        short, long = sorted(map(len, outcome.answers()))
        if not all(one[keys[0]] > one[keys[1]] for one in rankers.values()):
            return "rankers disagree"
        if config.length_ratio is not None and long > config.length_ratio * short:
            return "lengths differ"
    return outcome


def _choose(question: Question, usable: list[tuple[float, int]], config: PairingConfig) -> RankedPair | str:
    """A pair, or why there is none. Of equal scores the first candidate counts."""
    if len(usable) < 2:
        return "fewer than two candidates"
    # Nobody knows how a cut answer would have ended, so none is held up as an example.
    ended = [one for one in usable if not question.candidates[one[1]].is_cut]
    if not ended:
        return "only cut answers"
    best = max(ended, key=lambda one: (one[0], -one[1]))
    others = [one for one in usable if one[1] != best[1] and one[0] <= best[0]]
    if not others:
        return "no answer worse than one that ended"
    worst = min(others, key=lambda one: (one[0], one[1]))
    if config.kind == "above_threshold":
        assert config.threshold is not None, "the config says so"
        if best[0] < config.threshold:
            return "no answer above the threshold"
        if worst[0] >= config.threshold:
            return "no answer below the threshold"
    if config.kind == "best_random":
        digest = hashlib.sha256(f"{config.seed} {question.messages}".encode()).digest()
        worst = others[int.from_bytes(digest[:8], "little") % len(others)]
    if best[0] - worst[0] <= config.minimum_gap:
        return "tie"
    return RankedPair(question, best[1], worst[1], (best[0], worst[0]))


def pair_rows(pairs: Sequence[RankedPair]) -> Iterator[dict[str, Any]]:
    """The pairs as rows of preference data, `prefkd.data.formats`: `standard`, or `conversational` if prompts are more
    than a question; with chosen_score, rejected_score, margin, chosen_model, rejected_model, and chosen_finish and
    rejected_finish, which is `length` for an answer that was cut."""
    are_questions = all(len(pair.question.messages) == 1 for pair in pairs)
    for pair in pairs:
        messages, (chosen, rejected) = pair.question.messages, pair.answers()
        row: dict[str, Any] = {"prompt": messages[0]["content"], "chosen": chosen, "rejected": rejected}
        if not are_questions:
            row = {
                "prompt": messages,
                **{name: [_said(text)] for name, text in (("chosen", chosen), ("rejected", rejected))},
            }
        row |= {"chosen_score": pair.scores[0], "rejected_score": pair.scores[1], "margin": pair.margin}
        both = {"chosen": pair.question.candidates[pair.chosen], "rejected": pair.question.candidates[pair.rejected]}
        row |= {f"{name}_model": candidate.model for name, candidate in both.items()}
        yield row | {f"{name}_finish": candidate.finish for name, candidate in both.items()}


def _said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
