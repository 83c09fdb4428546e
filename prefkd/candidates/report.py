"""What ranking made of candidates: who wins, how clear the pairs are, whether length decides, and what was dropped."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from prefkd.candidates.pairing import RankedPair
from prefkd.candidates.rankers import Scores
from prefkd.candidates.reading import Question
from prefkd.files import whole
from prefkd.reports.page import render_page
from prefkd.terminal import heading, in_one_line, table

PERCENTILES = (5, 25, 50, 75, 95)


def ranking_numbers(
    questions: Sequence[Question],
    scores: Scores,
    rankers: Mapping[str, Scores],
    pairs: Sequence[RankedPair],
    left_out: Counter[str],
    dropped: Counter[str],
    read_in_part: Counter[str],
) -> dict[str, Any]:
    """All numbers of the report, ready for JSON.

    Args:
        scores: The scores that decide.
        rankers: Scores of each ranker.
        left_out: Candidates that were not ranked, by reason.
        dropped: Prompts without a pair, by reason.
        read_in_part: Candidates that a ranker did not read as a whole, by ranker.

    Returns:
        prompts, candidates, pairs; models: name -> candidates, chosen, rejected, mean_score; gap: percentiles of the
        margins; score_and_length: correlation of score and characters among the candidates of a prompt, from -1 to 1;
        characters: means of both answers, and the share of pairs whose chosen answer is longer; agreement: of each two
        rankers the share of candidate pairs that both order alike; candidates_left_out, prompts_dropped, read_in_part.
    """
    models: dict[str, Counter[str]] = {}
    totals: Counter[str] = Counter()
    for question in questions:
        for number, candidate in enumerate(question.candidates):
            own = models.setdefault(candidate.model or "unnamed", Counter())
            own["candidates"] += 1
            if (question.key, number) in scores:
                own["scored"] += 1
                totals[candidate.model or "unnamed"] += scores[question.key, number]  # pyright: ignore[reportArgumentType]
    for pair in pairs:
        for number, place in ((pair.chosen, "chosen"), (pair.rejected, "rejected")):
            models[pair.question.candidates[number].model or "unnamed"][place] += 1
    lengths = np.array([[len(text) for text in pair.answers()] for pair in pairs]).reshape(-1, 2)
    margins = np.array([pair.margin for pair in pairs])
    return {
        "prompts": len(questions),
        "candidates": sum(len(question.candidates) for question in questions),
        "pairs": len(pairs),
        "models": {
            name: {
                "candidates": counts["candidates"],
                "chosen": counts["chosen"],
                "rejected": counts["rejected"],
                "mean_score": totals[name] / counts["scored"] if counts["scored"] else None,
            }
            for name, counts in models.items()
        },
        "gap": {str(p): float(np.percentile(margins, p)) for p in PERCENTILES} if len(pairs) else {},
        "score_and_length": score_and_length(questions, scores),
        "characters": {
            "chosen": float(lengths[:, 0].mean()),
            "rejected": float(lengths[:, 1].mean()),
            "chosen_is_longer": float((lengths[:, 0] > lengths[:, 1]).mean()),
        }
        if len(pairs)
        else {},
        "agreement": {
            f"{one}, {other}": _agreement(rankers[one], rankers[other])
            for index, one in enumerate(rankers)
            for other in list(rankers)[index + 1 :]
        },
        "candidates_left_out": dict(left_out),
        "prompts_dropped": dict(dropped),
        "read_in_part": dict(+read_in_part),
    }


def score_and_length(questions: Sequence[Question], scores: Scores) -> float | None:
    """Pearson correlation of score and characters, both less their mean over the prompt; None where there is none."""
    values, lengths = [], []
    for question in questions:
        own = [number for number in range(len(question.candidates)) if (question.key, number) in scores]
        if len(own) > 1:
            found = np.array([scores[question.key, number] for number in own])
            sizes = np.array([len(question.candidates[number].answer) for number in own], dtype=float)
            values.extend(found - found.mean())
            lengths.extend(sizes - sizes.mean())
    if not np.any(values) or not np.any(lengths):
        return None
    return float(np.dot(values, lengths) / (np.linalg.norm(values) * np.linalg.norm(lengths)))


def _agreement(one: Scores, other: Scores) -> float | None:
    by_question: dict[str, list[tuple[float, float]]] = {}
    for key in one.keys() & other.keys():
        by_question.setdefault(key[0], []).append((one[key], other[key]))
    same = total = 0
    for values in by_question.values():
        for index, first in enumerate(values):
            for second in values[index + 1 :]:
                order = (first[0] - second[0]) * (first[1] - second[1])
                total += order != 0
                same += order > 0
    return same / total if total else None


def shown_pairs(pairs: Sequence[RankedPair]) -> list[tuple[str, RankedPair]]:
    """Some pairs to look at: those with the largest, a median and the smallest margin, each with why it is shown."""
    ordered = sorted(pairs, key=lambda pair: pair.margin, reverse=True)
    middle = len(ordered) // 2
    places = {0: "largest gap", 1: "large gap", middle: "median gap", len(ordered) - 2: "small gap"}
    places |= {len(ordered) - 1: "smallest gap"}
    return [(places[place], ordered[place]) for place in sorted(places) if 0 <= place < len(ordered)]


def write_ranking_report(folder: Path, numbers: Mapping[str, Any], pairs: Sequence[RankedPair]) -> None:
    """Write rank_report.json and rank_report.html into a folder."""
    with whole(folder / "rank_report.json") as unfinished:
        text = json.dumps(numbers, indent=2, ensure_ascii=False, allow_nan=False)
        unfinished.write_text(text + "\n", encoding="utf-8")
    page = render_page(
        "ranking.html", numbers=numbers, percentiles=PERCENTILES, pairs=shown_pairs(pairs), weight_legend=None
    )
    with whole(folder / "rank_report.html") as unfinished:
        unfinished.write_text(page, encoding="utf-8")


def ranking_table(numbers: Mapping[str, Any], pairs: Sequence[RankedPair]) -> RenderableType:
    """The report for a terminal."""
    models = table("model", "candidates", "chosen", "rejected", "mean score")
    for name, own in numbers["models"].items():
        score = "–" if own["mean_score"] is None else f"{own['mean_score']:.3f}"
        models.add_row(Text(name), str(own["candidates"]), str(own["chosen"]), str(own["rejected"]), score)
    facts = table("", "")
    facts.add_row("pairs", f"{numbers['pairs']} of {numbers['prompts']} prompts")
    if numbers["pairs"]:
        gaps = ", ".join(f"{p} %: {numbers['gap'][str(p)]:.3g}" for p in PERCENTILES)
        facts.add_row("gap of scores", gaps)
        sizes = numbers["characters"]
        facts.add_row(
            "characters",
            f"{sizes['chosen']:.0f} chosen, {sizes['rejected']:.0f} rejected; "
            f"the chosen answer is longer in {sizes['chosen_is_longer']:.0%}",
        )
    if numbers["score_and_length"] is not None:
        facts.add_row("correlation of score and length", f"{numbers['score_and_length']:.2f}")
    for names, share in numbers["agreement"].items():
        facts.add_row(f"agreement of {names}", "–" if share is None else f"{share:.0%} of candidate pairs")
    if numbers["read_in_part"]:
        read = ", ".join(f"{count} by {ranker}" for ranker, count in numbers["read_in_part"].items())
        facts.add_row("candidates read in part", f"{read}: they or their prompts have more tokens than max_length")
    for title, key in (("candidates left out", "candidates_left_out"), ("prompts without a pair", "prompts_dropped")):
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(numbers[key].items()))
        facts.add_row(title, counts or "none")
    shown = table("", "", "")
    for why, pair in shown_pairs(pairs):
        chosen, rejected = pair.answers()
        shown.add_row(why, "prompt", in_one_line(" ".join(pair.question.messages[-1]["content"].split())))
        shown.add_row(f"{pair.margin:.3g}", "chosen", in_one_line(" ".join(chosen.split())))
        shown.add_row("", "rejected", in_one_line(" ".join(rejected.split())))
    return Group(models, Text(), facts, Text(), heading("some pairs"), shown)
