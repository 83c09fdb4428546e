"""The pairs that a page shows in full, each parent with its tokens on both sides."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from prefkd.data.rows import SIDES
from prefkd.data.sides import ModelSide
from prefkd.reports.alignment.answers import Answer, InspectedPair, token_texts
from prefkd.reports.alignment.numbers import WORST_ROWS, pair_numbers, worst_pairs
from prefkd.reports.alignment.weights import PairWeights
from prefkd.reports.page import percent
from prefkd.reports.pairs import MOST_PARENTS, ShownAnswer, ShownPair, ShownParent, drawn
from prefkd.reports.visible import visible, visible_block, visible_line

TYPICAL = 10
SEED = 0
# A longer prompt, or a longer end of an answer that is cut off, is shown in part.
MOST_CHARACTERS = 2000
# Colours stand for the tokens of a parent on its longer side: one, two, up to four, up to eight, more.
COLOUR_BOUNDS = (1, 2, 4, 8)
COLOUR_NAMES = ("1", "2", "3–4", "5–8", "9 or more")


def choose_pairs(pairs: Sequence[InspectedPair]) -> list[tuple[InspectedPair, str]]:
    """The pairs that align worst, and random ones of the others, each with the reason."""
    worst = worst_pairs(pairs)
    if len(pairs) <= WORST_ROWS + TYPICAL:
        return [(pair, "one of all") for pair in pairs]
    rest = [pair for pair in pairs if not any(pair is other for other in worst)]
    typical = drawn(range(len(rest)), TYPICAL, np.random.default_rng(SEED))
    return [(pair, "among the worst") for pair in worst] + [(rest[i], "drawn at random") for i in typical]


def token_colours(answer: Answer) -> np.ndarray:
    """(P,) colours by the tokens of each parent on its longer side."""
    return np.searchsorted(COLOUR_BOUNDS, answer.lengths.max(1))


def show_pair(
    pair: InspectedPair, why: str, sides: Mapping[str, ModelSide], weights: PairWeights | None = None
) -> ShownPair:
    """Put a pair together for the page, coloured by weight, or without weights by tokens."""
    numbers = pair_numbers(pair) | (weights.numbers if weights else {})
    cut = {side: reading.cut[0] for side, reading in pair.aligned.sides.items()}
    unseen = (f"The {side} does not see {cut[side]:,} tokens of the prompt." for side in SIDES if cut[side])
    return ShownPair(
        file=pair.file,
        row=pair.row,
        why=why,
        remark=" ".join([f"{percent(numbers['share_one_to_one'])} of the text one to one.", *unseen]),
        prompt=[(turn["role"], visible_block(_shortened(turn["content"]))) for turn in pair.prompt],
        answers=[_show_answer(answer, sides, weights) for answer in pair.answers],
        numbers=numbers,
    )


def _show_answer(answer: Answer, sides: Mapping[str, ModelSide], weights: PairWeights | None) -> ShownAnswer:
    single = answer.single.tolist()
    levels = token_colours(answer) if weights is None else weights.levels(answer.name)
    shown = [
        _show_parent(
            answer,
            parent,
            sides,
            level=int(levels[parent]),
            is_single=single[parent],
            more=weights.details(answer.name, parent) if weights else (),
        )
        for parent in range(min(len(single), MOST_PARENTS))
    ]
    hidden = len(single) - len(shown)
    if answer.ends and not hidden:
        details = "\n".join(["the end of the answer", *(f"{name}: {_end(sides[name])}" for name in SIDES)])
        shown.append(ShownParent("end", level=0, details=details, is_end=True))
    cut = answer.text[answer.kept :]
    student, teacher = (len(answer.ids[side]) for side in SIDES)
    return ShownAnswer(
        caption=f"{answer.name}: {student:,} tokens of the student, {teacher:,} of the teacher",
        parents=shown,
        hidden=hidden,
        cut=visible_block(_shortened(cut)),
        cut_characters=len(cut),
    )


def _show_parent(
    answer: Answer, parent: int, sides: Mapping[str, ModelSide], *, level: int, is_single: bool, more: Sequence[str]
) -> ShownParent:
    text = answer.parent_text(parent)
    tokens = {name: token_texts(answer, parent, name, side.tokenizer) for name, side in sides.items()}
    details = [f"“{visible_line(text)}” {len(text)} character{'s' if len(text) > 1 else ''}"]
    for name in SIDES:
        named = zip(tokens[name], answer.parent_ids(parent, name), strict=True)
        details.append(f"{name}: " + "  ".join(f"{token} ({token_id})" for token, token_id in named))
    tail = re.search(r"\n\s*$", text)
    return ShownParent(
        text=visible(text) if is_single else visible_line(text),
        level=level,
        details="\n".join([*details, *more]),
        tokens=None if is_single else tokens,
        spelled=any(
            "".join(token.text for token in tokens[name] if token.is_text) == visible_line(text) for name in SIDES
        ),
        tail=tail[0] if tail and not is_single else "",
    )


def _shortened(text: str) -> str:
    """The start and the end of a long text."""
    if len(text) <= MOST_CHARACTERS:
        return text
    half = MOST_CHARACTERS // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters …]\n{text[-half:]}"


def _end(side: ModelSide) -> str:
    """The tokens that end an answer, with their ids."""
    names = side.tokenizer.convert_ids_to_tokens(side.end_ids)
    tokens = ", ".join(f"{visible_line(name)} ({i})" for name, i in zip(names, side.end_ids, strict=True))
    return f"{tokens}: text, at which no model stops by itself" if side.stop_text else tokens
