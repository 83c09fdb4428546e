"""What the tests of an inspection share: hard pairs, two tiny tokenizers, a browser."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from prefkd.data.pairs import DataConfig
from prefkd.data.sides import ModelSide
from prefkd.reports.alignment.report import inspect_pairs
from tests.cli.conftest import folder, prefkd
from tests.tiny import make_tokenizer

__all__ = ["folder", "prefkd"]

# (prompt, chosen, rejected)
HARD = [
    ("Emoji?", "Yes 👍🏽 👨‍👩‍👧‍👦 and 🙃.", "no 🙃"),
    ("中文？", "你好，世界。東京タワー", "我不知道"),
    ("Arabic?", "مرحبا بالعالم، كيف حالك؟", "لا"),
    ("Code?", "def f(x):\n\tif x:\n\t\treturn {'a': [1, 2]}\n\n\nprint(f(1))", "f = lambda x: x"),
    (
        "<script>document.title='HARMED'</script> {{ 7 * 7 }} {% raw %}",
        "<script>document.title='HARMED'; document.body.remove()</script>"
        "<img src=x onerror=\"document.title='HARMED'\"> </div></article></body>"
        " &lt;already&gt; \" onmouseover=\"document.title='HARMED'",
        "<img src=x onerror=document.title='HARMED'>",
    ),
    ("Turns?", "a\u202eb\u202c c\u200bd \u0007 e\u00a0f", "plain"),
    ("Long? " * 60, "Eggs boil for eight minutes in water. " * 40, "Eight minutes."),
]


@pytest.fixture(scope="session")
def hard_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "hard.jsonl"
    rows = [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in HARD]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def sides() -> dict[str, ModelSide]:
    return {
        "student": ModelSide(make_tokenizer("byte_level"), name="tiny-student"),
        "teacher": ModelSide(make_tokenizer("metaspace"), name="tiny-teacher"),
    }


@pytest.fixture(scope="session")
def hard(hard_file, sides):
    """The inspection of the hard pairs."""
    datasets.disable_progress_bars()
    config = DataConfig(str(hard_file), held_out_fraction=0.0)
    return inspect_pairs(config, sides["student"], sides["teacher"], most=2000)


@pytest.fixture(scope="session")
def dom(tmp_path_factory) -> Callable[[str], str]:
    """From a page to what a browser makes of it, once its scripts have run."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip(f"needs a browser: {', '.join(names)}")

    def render(page: str) -> str:
        folder = tmp_path_factory.mktemp("browser")
        (folder / "page.html").write_text(page, encoding="utf-8")
        quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic")
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", *quiet]
        command += [f"--user-data-dir={folder / 'profile'}", "--dump-dom", (folder / "page.html").as_uri()]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    return render
