"""docs/data.md: its fragments are configs that can be read, and its table has every format."""

import json
import re
import shutil

import pytest
import yaml

from prefkd.catalog import RECIPES, load_recipe
from prefkd.config import examine_config
from prefkd.data.formats import FORMATS
from prefkd.data.layouts import LAYOUTS
from tests.conftest import ROOT
from tests.tiny import make_model, write_pairs

PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
FRAGMENTS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    for name in ("student", "teacher"):
        make_model(folder / name, "llama", "byte_level")
    write_pairs(folder / "pairs.jsonl")
    replies = [{"text": "a", "votes": 3}, {"text": "b", "votes": 1}]
    (folder / "votes.jsonl").write_text(json.dumps({"post": "Hi?", "replies": replies}) + "\n")
    (folder / "my.jinja").write_text(
        "{% if enable_thinking %}Think.{% endif %}"
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    shutil.copy(ROOT / "examples" / "04_own_format.py", folder / "mine.py")
    return folder


@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_a_fragment_is_a_sound_config(home, monkeypatch, fragment):
    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend(str(home))
    config = {"output_dir": "out", "student": {"path": "student"}, "teacher": {"path": "teacher"}}
    written = yaml.safe_load(fragment)
    config |= written | {"student": written.get("student", {}) | {"path": "student"}}
    config.setdefault("data", {"source": "pairs.jsonl"})
    (home / "config.yaml").write_text(yaml.safe_dump(config))
    recipe = load_recipe(RECIPES / "dpo_distill.py")
    _, problems = examine_config(recipe.Config, home / "config.yaml")
    assert list(map(str, problems)) == []


def test_every_format_is_on_the_page():
    cells = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    named = set(re.findall(r"`(\w+)`", "".join(cells)))
    assert {*FORMATS, *LAYOUTS} <= named
