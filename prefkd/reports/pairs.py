"""The pairs that a page shows in full, parent by parent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

# Keeps the page small enough to open when answers are thousands of words long.
MOST_PARENTS = 1000
# Two answers of a word each are the extreme of every order, and say the least.
FEWEST_PARENTS = 20


@dataclass(frozen=True)
class TokenText:
    """A token as a reader sees it: its characters, or if it has none of its own (a part of one) its bytes or name."""

    text: str
    is_text: bool

    def __str__(self) -> str:
        return self.text if self.is_text else f"<{self.text}>"


@dataclass(frozen=True)
class ShownParent:
    """A parent on the page.

    Attributes:
        text: Its text.
        level: Its colour.
        details: Text shown on pointing at it.
        is_end: Whether it is the end of the answer, mostly an EOS.
        tokens: Its tokens on each side, where the page shows them.
        spelled: Whether the tokens of one side or the other show its text; else the block has to.
        tail: The line ends and blanks that a block in one line cannot show.
    """

    text: str
    level: int
    details: str
    is_end: bool = False
    tokens: Mapping[str, Sequence[TokenText]] | None = None
    spelled: bool = True
    tail: str = ""


@dataclass(frozen=True)
class ShownAnswer:
    """An answer on the page.

    Attributes:
        caption: Caption, in one line.
        parents: Its first parents.
        hidden: How many more it has.
        cut: Text that truncation took away, shortened.
        cut_characters: How many characters that is.
    """

    caption: str
    parents: list[ShownParent]
    hidden: int
    cut: str = ""
    cut_characters: int = 0


@dataclass(frozen=True)
class ShownPair:
    """A pair on the page.

    Attributes:
        file, row: Where it comes from.
        why: Why it is there.
        remark: More about it.
        prompt: Role and text of each message; no role where the prompt is one text.
        answers: Chosen and rejected.
        numbers: By which pairs can be sorted.
    """

    file: str
    row: int
    why: str
    remark: str
    prompt: list[tuple[str | None, str]]
    answers: list[ShownAnswer]
    numbers: Mapping[str, object] = field(default_factory=dict)


def drawn(others: Sequence[int] | np.ndarray, most: int, generator: np.random.Generator) -> list[int]:
    """Random ones of some pairs, in the order of the data."""
    return np.sort(generator.permutation(others)[:most]).tolist()
