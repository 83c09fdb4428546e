"""The page of an inspection, in a real browser."""

import re
from html.parser import HTMLParser

import pytest

from prefkd.reports.visible import visible_line
from tests.reports.conftest import HARD

POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
SCRIPT = re.compile(r"<script>.*?</script>", re.DOTALL)


class Reader(HTMLParser):
    """The text that a reader sees, the tags, what they tell on pointing, and what they would run."""

    def __init__(self, page: str):
        super().__init__()
        self.text, self.tags, self.handlers, self.titles = "", [], [], []
        self.feed(SCRIPT.sub("", page[page.index("<body") :]))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.titles += [value for name, value in attrs if name == "title"]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def rendered(hard, dom) -> str:
    """The page as the browser has it."""
    return dom(hard.page)


def test_the_content_is_there_without_scripts(hard):
    text = Reader(hard.page).text
    for part in (
        "A parent token is",
        hard.verdict.summary,
        "How parents are made up",
        "Row 7 of hard.jsonl",
        "👨",
        "東",
    ):
        assert part in text


def test_text_of_data_does_no_harm_in_a_browser(rendered):
    title = re.search("<title>(.*?)</title>", rendered)
    assert title is not None and title[1] == "How tiny-student and tiny-teacher align"
    assert rendered.count("<script") == 1
    reader = Reader(rendered)
    assert not {"script", "img"} & set(reader.tags)
    assert reader.handlers == []
    assert "<script>document.title='HARMED'</script> {{ 7 * 7 }} {% raw %}" in reader.text


def test_the_browser_itself_refuses_other_scripts(hard, dom):
    """Escaping is the first wall, the page's policy the second."""
    attack = "<script>document.title='HARMED'</script><img src=x onerror=\"document.title='HARMED'\">"
    assert "<title>HARMED</title>" in dom(POLICY.sub("", hard.page).replace("</body>", f"{attack}</body>"))
    assert "<title>HARMED</title>" not in dom(hard.page.replace("</body>", f"{attack}</body>"))


def test_all_text_of_answers_is_there(rendered):
    """The parents of an answer make the answer, whatever is in it."""
    for row in (1, 2, 3, 5, 6):
        article = rendered[rendered.index(f'id="pair{row}"') :]
        told = Reader(f"<body {article[: article.index('</article>')]}").titles
        parents = [text[1] for text in (re.match(r"“(.*)” \d+ character", title) for title in told) if text]
        answers = "".join(map(visible_line, HARD[row - 1][1:]))
        assert "".join(map(joined, parents)) == joined(answers)


def joined(text: str) -> str:
    """A joiner alone in a parent is a code point."""
    return text.replace("⟨U+200D⟩", "\u200d")


def test_sorting(hard, rendered, dom):
    click = "document.querySelectorAll('#pairs th button')[1].click();"
    assert "<button type=" in rendered  # the policy lets the page's own script run
    for clicks, reverse in ((1, False), (2, True)):
        page = POLICY.sub("", hard.page).replace("</body>", f"<script>{click * clicks}</script></body>")
        sorted_page = dom(page)
        shares = [float(share) for share in re.findall(r'<td data-value="(0\.\d+|1\.0|0\.0)">', sorted_page)]
        assert shares == sorted(shares, reverse=reverse) and len(shares) == len(HARD)
        rows = re.findall(r'data-pair="(pair\d+)"', sorted_page)
        assert rows == re.findall(r'<article id="(pair\d+)"', sorted_page)


def test_nothing_is_loaded(hard):
    assert not re.search(r"<(link|img|iframe|object|embed|base)\b", hard.page)
    assert set(re.findall(r'(?:src|href)="([^"]*)"', hard.page)) == {f"#pair{i + 1}" for i in range(len(HARD))}
    assert "url(" not in hard.page and "@import" not in hard.page
