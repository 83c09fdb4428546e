"""Text of others as a reader sees it."""

import pytest

from prefkd.reports.visible import visible, visible_block, visible_line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a b", "a b"),
        ("a\n\tb", "a↵\n⇥\tb"),
        ("a\x1b[31m\r", "a⟨U+001B⟩[31m⟨U+000D⟩"),
        ("a\u202eb\u2028", "a⟨U+202E⟩b⟨U+2028⟩"),
        ("a\u200bb\ufeff", "a⟨U+200B⟩b⟨U+FEFF⟩"),
        ("👨\u200d👩 🌡\ufe0f", "👨\u200d👩 🌡\ufe0f"),
        ("\u200d", "⟨U+200D⟩"),
        ("\ufe0f", "⟨U+FE0F⟩"),
        ("", ""),
    ],
)
def test_visible(text, shown):
    assert visible(text) == shown


def test_in_one_line_and_alone():
    assert visible_line("a b\n\tc") == "a␣b↵⇥c"
    assert visible_block("a b\n\tc\x00") == "a b\n\tc⟨U+0000⟩"
