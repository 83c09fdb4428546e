"""The numbers of an inspection, ready for JSON."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prefkd.data.rows import SIDES
from prefkd.data.sides import ModelSide
from prefkd.reports.alignment.answers import Answer, InspectedPair, token_texts
from prefkd.reports.pairs import FEWEST_PARENTS

# Han and kana are written without blanks: each of their characters counts as a word.
_UNSPACED = "\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
PERCENTILES = (50, 90, 95, 99)
# Entries of each list.
LISTED = 15
WORST_ROWS = 10


def inspection_numbers(
    pairs: Sequence[InspectedPair], report: Mapping[str, Any], sides: Mapping[str, ModelSide]
) -> dict[str, Any]:
    """All that an inspection counts. Parents are of text (no end) and of what truncation leaves.

    Args:
        pairs: At least one.
        report: Their `prefkd.data.alignment_report`.
        sides: `student` and `teacher`.

    Returns:
        The report, and:

        words, parents_per_word, tokens_per_word: a word is what stands between blanks; each Han or kana character is
            one. Tokens for each side.
        share_of_parents_one_to_one: parents of one token on each side, of all.
        shapes: parents by their tokens on each side, the most frequent first: student, teacher, parents,
            share_of_parents, share_of_text (characters).
        splits: text in parents of other shapes, the most frequent first: text, times, and its tokens on each side
            (bytes of a part of a character in angle brackets).
        longest_parents: those of most tokens on a side, each text once: text, characters, tokens of each side, times,
            and the first place: file, row, answer.
        characters: of answers: kept, cut (by max_length), trimmed (by the templates); for each side `uncovered`, the
            kept ones, blanks aside, that no token covers.
        answers_changed_by_decoding: for each side how many answers its tokens do not spell, and the first: file, row,
            answer.
        pair_tokens: for each side percentiles and maximum of the tokens of prompt and longer answer, uncut.
        worst_rows: pairs with the smallest share of text in parents of one token on each side: `pair_numbers`.
    """
    answers = [answer for pair in pairs for answer in pair.answers]
    lengths = np.concatenate([answer.lengths for answer in answers])
    characters = np.concatenate([answer.characters for answer in answers])
    words = sum(len(WORD.findall(answer.text[: answer.kept])) for answer in answers)
    return {
        **report,
        "words": words,
        "parents_per_word": _ratio(len(lengths), words),
        "tokens_per_word": {side: _ratio(lengths[:, i].sum(), words) for i, side in enumerate(SIDES)},
        "share_of_parents_one_to_one": _ratio((lengths == 1).all(1).sum(), len(lengths)),
        "shapes": shape_numbers(lengths, characters),
        "splits": split_numbers(answers, sides),
        "longest_parents": longest_parents(pairs),
        "characters": {
            "kept": int(characters.sum()),
            "cut": sum(len(answer.text) - answer.kept for answer in answers),
            "trimmed": sum(answer.written - len(answer.text) for answer in answers),
            "uncovered": {side: sum(uncovered(answer, side) for answer in answers) for side in SIDES},
        },
        "answers_changed_by_decoding": {name: changed_by_decoding(pairs, name, side) for name, side in sides.items()},
        "pair_tokens": pair_tokens(pairs),
        "worst_rows": [pair_numbers(pair) for pair in worst_pairs(pairs)],
    }


def shape_numbers(lengths: np.ndarray, characters: np.ndarray) -> list[dict[str, Any]]:
    """Parents by how many tokens they have on each side.

    Args:
        lengths: (n, 2) tokens of each parent.
        characters: (n,) characters of each.
    """
    shapes, index = np.unique(lengths, axis=0, return_inverse=True)
    index = index.reshape(-1)
    counts, text = np.bincount(index), np.bincount(index, characters)
    return [
        {
            "student": int(shapes[i, 0]),
            "teacher": int(shapes[i, 1]),
            "parents": int(counts[i]),
            "share_of_parents": _ratio(counts[i], len(lengths)),
            "share_of_text": _ratio(text[i], characters.sum()),
        }
        for i in np.argsort(-counts, kind="stable")[:LISTED]
    ]


def split_numbers(answers: Sequence[Answer], sides: Mapping[str, ModelSide]) -> list[dict[str, Any]]:
    """The most frequent text in parents that are not one token on each side, with its tokens."""
    places: dict[Any, tuple[Answer, int]] = {}
    times: Counter[Any] = Counter()
    for answer in answers:
        for parent in np.flatnonzero(~answer.single).tolist():
            key = (answer.parent_text(parent), *(tuple(answer.parent_ids(parent, side)) for side in SIDES))
            places.setdefault(key, (answer, parent))
            times[key] += 1
    return [
        {
            "text": key[0],
            "times": count,
            **{name: list(map(str, token_texts(*places[key], name, side.tokenizer))) for name, side in sides.items()},
        }
        for key, count in times.most_common(LISTED)
    ]


def longest_parents(pairs: Sequence[InspectedPair]) -> list[dict[str, Any]]:
    """The parents with most tokens on a side, then with most characters; each text once, more than one token only."""
    times: Counter[str] = Counter()
    found: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        for answer in pair.answers:
            lengths = answer.lengths
            for parent in np.flatnonzero(~answer.single).tolist():
                text = answer.parent_text(parent)
                times[text] += 1
                student, teacher = lengths[parent].tolist()
                if text not in found:
                    place = {"file": pair.file, "row": pair.row, "answer": answer.name}
                    found[text] = {"student": student, "teacher": teacher, "characters": len(text), **place}
    ordered = sorted(found, key=lambda text: (-max(found[text][side] for side in SIDES), -len(text)))
    return [{"text": text, "times": times[text], **found[text]} for text in ordered[:LISTED]]


def uncovered(answer: Answer, side: str) -> int:
    """Characters that no token covers, among the kept ones. Blanks do not count: offsets may leave them out."""
    edges = np.zeros(len(answer.text) + 1, dtype=np.int64)
    spans = answer.offsets[side]
    np.add.at(edges, spans[:, 0], 1)
    np.add.at(edges, spans[:, 1], -1)
    open_places = np.flatnonzero(edges[: answer.kept].cumsum() == 0)
    return sum(not answer.text[i].isspace() for i in open_places.tolist())


def changed_by_decoding(pairs: Sequence[InspectedPair], name: str, side: ModelSide) -> dict[str, Any]:
    """How many answers a side's tokens do not spell, whole, and where the first of them is."""
    places = [(pair, answer) for pair in pairs for answer in pair.answers]
    rows = [list(answer.ids[name]) for _, answer in places]
    decoded = side.tokenizer.backend_tokenizer.decode_batch(rows, skip_special_tokens=False)
    # A blank before the text is not a loss: some tokenizers add one, some decoders take one away.
    changed = [
        {"file": pair.file, "row": pair.row, "answer": answer.name}
        for (pair, answer), text in zip(places, decoded, strict=True)
        if text.lstrip(" ") != answer.text.lstrip(" ")
    ]
    return {"answers": len(changed), "first": changed[0] if changed else None}


def pair_tokens(pairs: Sequence[InspectedPair]) -> dict[str, dict[str, int]]:
    """How long pairs are before they are cut, ends included."""
    numbers = {}
    for side in SIDES:
        totals = [
            len(reading.prompt) + reading.cut[0] + max(len(answer.ids[side]) + 1 for answer in pair.answers)
            for pair in pairs
            for reading in [pair.aligned.sides[side]]
        ]
        named = {f"percentile_{p}": int(np.percentile(totals, p, method="higher")) for p in PERCENTILES}
        numbers[side] = named | {"maximum": max(totals)}
    return numbers


def pair_numbers(pair: InspectedPair) -> dict[str, Any]:
    """Both answers of a pair together.

    Returns:
        file, row; share_one_to_one (of the text), parents, tokens of each side, longest_parent (most tokens on a side),
        characters_cut.
    """
    characters = np.concatenate([answer.characters for answer in pair.answers])
    single = np.concatenate([answer.single for answer in pair.answers])
    lengths = np.concatenate([answer.lengths for answer in pair.answers])
    return {
        "file": pair.file,
        "row": pair.row,
        "share_one_to_one": _ratio(characters[single].sum(), characters.sum()),
        "parents": len(lengths),
        **{side: int(lengths[:, i].sum()) for i, side in enumerate(SIDES)},
        "longest_parent": int(lengths.max()),
        "characters_cut": sum(len(answer.text) - answer.kept for answer in pair.answers),
    }


def worst_pairs(pairs: Sequence[InspectedPair]) -> list[InspectedPair]:
    """The pairs whose text is least in parents of one token on each side, short ones only where there are no others."""

    def order(pair: InspectedPair) -> tuple[bool, float]:
        numbers = pair_numbers(pair)
        return numbers["parents"] < FEWEST_PARENTS, numbers["share_one_to_one"]

    return sorted(pairs, key=order)[:WORST_ROWS]


def _ratio(part: Any, whole: Any) -> float:
    return round(float(part) / float(whole), 4)
