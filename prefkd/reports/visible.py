"""Text from data, shown to a reader: what is in it can be seen, and it does nothing to the text around it."""

import unicodedata

_SIGNS = {"\n": "↵", "\t": "⇥"}
# Characters that turn the direction of their neighbours.
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Joiners, and the tags of flags: they shape the characters around them.
_SHAPING = frozenset("\u200c\u200d") | frozenset(map(chr, range(0xE0020, 0xE0080)))


def visible(text: str) -> str:
    """A piece of a text on a page: line ends and tabs stand behind a sign, what is invisible is a code point.

    Joiners and variation selectors do their work inside emoji and words; alone they are code points too.
    """
    alone = all(unicodedata.category(character) == "Cf" or "\ufe00" <= character <= "\ufe0f" for character in text)
    return "".join(_code_point(c) if alone or _acts(c) else f"{_SIGNS.get(c, '')}{c}" for c in text)


def visible_line(text: str) -> str:
    """A piece of a text in one line, blanks marked."""
    shown = visible(text)
    for character, sign in _SIGNS.items():
        shown = shown.replace(sign + character, sign)
    return shown.replace(" ", "␣")


def visible_block(text: str) -> str:
    """A text of its own, whose line ends and tabs need no signs."""
    shown = visible(text)
    for character, sign in _SIGNS.items():
        shown = shown.replace(sign + character, character)
    return shown


def _acts(character: str) -> bool:
    category = unicodedata.category(character)
    if category == "Cf":
        return character in _TURNING or (unicodedata.bidirectional(character) == "BN" and character not in _SHAPING)
    return category in ("Cc", "Cs", "Zl", "Zp") and character not in _SIGNS


def _code_point(character: str) -> str:
    return f"⟨U+{ord(character):04X}⟩"
