"""The pairs that a page shows in full, each parent with its tokens on both sides."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prefkd.data.templates import ModelSide
from prefkd.data.tokenizing import SIDES
from prefkd.inspection.answers import Answer, InspectedPair, TokenText, token_texts
from prefkd.inspection.numbers import WORST_ROWS, pair_numbers, worst_pairs
from prefkd.inspection.weights import PairWeights
from prefkd.visible import visible, visible_block, visible_line

TYPICAL = 10
SEED = 0
# Keeps the page small enough to open when answers are thousands of words long.
MOST_PARENTS = 1000
MOST_CHARACTERS = 2000
# Colours stand for the tokens of a parent on its longer side: one, two, up to four, up to eight, more.
COLOUR_BOUNDS = (1, 2, 4, 8)
COLOUR_NAMES = ("1", "2", "3–4", "5–8", "9 or more")


@dataclass(frozen=True)
class ShownParent:
    """A parent on the page.

    Attributes:
        text: What it says.
        tokens: Its tokens on each side, where they are not one and one.
        spelled: Whether the tokens of one side or the other show its text; else the block has to.
        tail: The line ends and blanks that a block in one line cannot show.
        level: Its colour.
        is_end: Whether it is the end of the answer, mostly an EOS.
        details: What is told to a reader who points at it.
    """

    text: str
    tokens: Mapping[str, Sequence[TokenText]] | None
    spelled: bool
    tail: str
    level: int
    is_end: bool
    details: str


@dataclass(frozen=True)
class ShownAnswer:
    """An answer on the page: `hidden` parents are left out, and `cut` is what truncation took away."""

    name: str
    tokens: Mapping[str, int]
    parents: list[ShownParent]
    hidden: int
    cut: str
    cut_characters: int


@dataclass(frozen=True)
class ShownPair:
    """A pair on the page.

    Attributes:
        why: Why it is there.
        numbers: `prefkd.inspection.numbers.pair_numbers`, by which the pairs can be sorted; with weights also
            mean_weight of each answer, and their spread over all parents of text.
        prompt: Role and text of each message.
        prompt_cut: Tokens of the prompt that truncation took away, for each side.
    """

    why: str
    numbers: Mapping[str, object]
    prompt: list[tuple[str, str]]
    prompt_cut: Mapping[str, int]
    answers: list[ShownAnswer]


def choose_pairs(pairs: Sequence[InspectedPair]) -> list[tuple[InspectedPair, str]]:
    """The pairs that align worst, and random ones of the others, each with the reason."""
    worst = worst_pairs(pairs)
    if len(pairs) <= WORST_ROWS + TYPICAL:
        return [(pair, "one of all") for pair in pairs]
    rest = [pair for pair in pairs if not any(pair is other for other in worst)]
    drawn = np.sort(np.random.default_rng(SEED).permutation(len(rest))[:TYPICAL])
    return [(pair, "among the worst") for pair in worst] + [(rest[i], "drawn at random") for i in drawn.tolist()]


def token_colours(answer: Answer) -> np.ndarray:
    """(P,) colours by the tokens of each parent on its longer side."""
    return np.searchsorted(COLOUR_BOUNDS, answer.lengths.max(1))


def show_pair(
    pair: InspectedPair, why: str, sides: Mapping[str, ModelSide], weights: PairWeights | None = None
) -> ShownPair:
    """Put a pair together for the page, coloured by weight, or without weights by tokens."""
    return ShownPair(
        why=why,
        numbers=pair_numbers(pair) | (weights.numbers if weights else {}),
        prompt=[(turn["role"], visible_block(_shortened(turn["content"]))) for turn in pair.prompt],
        prompt_cut={side: pair.aligned[f"{side}_prompt_cut"] for side in SIDES},
        answers=[_show_answer(answer, sides, weights) for answer in pair.answers],
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
        shown.append(ShownParent("end", None, True, "", level=0, is_end=True, details=details))
    cut = answer.text[answer.kept :]
    return ShownAnswer(
        name=answer.name,
        tokens={side: len(answer.ids[side]) for side in SIDES},
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
        tokens=None if is_single else tokens,
        spelled=any(
            "".join(token.text for token in tokens[name] if token.is_text) == visible_line(text) for name in SIDES
        ),
        tail=tail[0] if tail and not is_single else "",
        level=level,
        is_end=False,
        details="\n".join([*details, *more]),
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
