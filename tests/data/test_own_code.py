"""What a reader of the user's own depends on: a change of it makes other pairs, one of other files does not."""

import importlib
import sys

import pytest

from prefkd.data.own_rows import reader_fingerprint
from prefkd.data.pairs import DataConfig, load_pairs
from tests.data.test_pairs import write

FILES = {
    "mine_reader.py": """
from json import dumps
import mine_tools.inner
from mine_helper import fix

def read_row(row, words=None):
    return fix(row)
""",
    "mine_helper.py": """
from prefkd.data.formats import Pair

def fix(row):
    from mine_late import END
    return Pair(prompt=row["q"], chosen=row["a"] + END, rejected=row["b"])
""",
    "mine_late.py": "END = '!'\n",
    "mine_tools/__init__.py": "",
    "mine_tools/inner.py": "from . import beside\n",
    "mine_tools/beside.py": "",
    "mine_stranger.py": "",
    "words.txt": "one\n",
}
READER = {"_component_": "mine_reader.read_row"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("mine_")]:
        del sys.modules[name]


@pytest.mark.parametrize("name", FILES)
def test_a_change_of_what_a_reader_uses_is_seen(folder, name):
    before = reader_fingerprint(READER | {"words": "words.txt"})
    (folder / name).write_text(FILES[name] + "\n")
    assert (reader_fingerprint(READER | {"words": "words.txt"}) == before) == (name == "mine_stranger.py")
    assert [*before[2]] == [*reader_fingerprint(READER)[2]] and "json" not in before[2]


def test_the_cache_knows_what_a_reader_imports(folder):
    source = str(write(folder / "p.jsonl", [{"q": "x", "a": "y", "b": "z"}]))
    for end in ("!", "??"):
        (folder / "mine_late.py").write_text(f"END = '{end}'\n")
        importlib.invalidate_caches()
        sys.modules.pop("mine_late", None)
        pairs = load_pairs(DataConfig(source, reader=READER, held_out_fraction=0.0)).train
        assert pairs["chosen"][:] == [f"y{end}"]
