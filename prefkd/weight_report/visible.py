"""Text of others, shown to a reader: nothing in it is invisible, and nothing in it changes what stands around it."""

import re
import unicodedata

_MARKS = {"\n": "↵\n", "\t": "⇥\t"}
# Characters that change the direction of the text around them, and line ends that are not "\n".
_ACTING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029")


def visible(text: str) -> str:
    """A piece of text as it may stand on a page among others.

    Line ends and tabs get a sign before them, other control characters are written as code points. Joiners and
    selectors stay where they do their work (in emoji, in Indic and Arabic script), but a piece of nothing else is
    written as code points too.
    """
    unseen = all(_is_invisible(character) for character in text)
    return "".join(_named(character) if unseen else _shown(character) for character in text)


def visible_line(text: str) -> str:
    """A piece of text in one line of a list, blanks marked."""
    return re.sub(r"(?<=[↵⇥])[\n\t]", "", visible(text)).replace(" ", "␣")


def visible_block(text: str) -> str:
    """A text of several lines that stands alone: line ends and tabs need no signs there."""
    return re.sub(r"[↵⇥](?=[\n\t])", "", visible(text))


def _shown(character: str) -> str:
    if character in _MARKS:
        return _MARKS[character]
    acts = character in _ACTING or unicodedata.category(character) in ("Cc", "Cs")
    return _named(character) if acts else character


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) == "Cf" or "\ufe00" <= character <= "\ufe0f"


def _named(character: str) -> str:
    return f"⟨U+{ord(character):04X}⟩"
