"""Records of a pipeline: what counts as an input of a stage, and records that are not what it wrote."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from prefkd.config import Component
from prefkd.errors import PrefkdError
from prefkd.pipeline.records import FILE_NAME, Contents, StageInputs, paths_in, read_record, record_start


@dataclass
class Section:
    path: str
    template: Any = "auto"
    kind: Literal["file"] = "file"


@dataclass
class Settings:
    output_dir: Path
    listed: list[Section]
    named: dict[str, Section]
    logger: Component = field(default_factory=lambda: {"_component_": "json.dump", "folder": "logs"})
    terms: list[Component] = field(default_factory=list)


def test_sections_in_lists_and_dictionaries_and_files_of_the_users_own_are_inputs(tmp_path, monkeypatch):
    (tmp_path / "stage_terms.py").write_text("from functools import partial\ndef own(): ...\nother = partial(own)\n")
    monkeypatch.syspath_prepend(tmp_path)
    own, other = ({"_component_": f"stage_terms.{name}"} for name in ("own", "other"))
    template = {"path": "chat.jinja", "arguments": {"think": False}}
    config = Settings(
        output_dir=Path("out"),
        listed=[Section("a.jsonl"), Section("b.jsonl")],
        named={"student": Section("model", template)},
        terms=[{"_component_": "prefkd.training.terms.uld", "inner": own, "file": "c.txt"}, other],
    )
    assert {key: str(path) for key, path in paths_in(config)} == {
        "listed.0.path": "a.jsonl",
        "listed.0.template": "auto",
        "listed.1.path": "b.jsonl",
        "listed.1.template": "auto",
        "named.student.path": "model",
        "named.student.template.path": "chat.jinja",
        "terms.0.inner._component_": str(tmp_path / "stage_terms.py"),
        "terms.1._component_": str(tmp_path / "stage_terms.py"),
    }
    del sys.modules["stage_terms"]


def test_a_record_without_an_input_that_counts_now_says_which():
    settings = {"data.sources.0.source": "p.jsonl"}
    before, now = StageInputs("", settings, {}), StageInputs("", settings, {"data.sources.0.source": "f00"})
    assert before.changes(now) == ["the content of data.sources.0.source (p.jsonl)"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"fingerprint": 3, "seconds": 1, "files": {}}'])
def test_a_damaged_record_is_one_line(tmp_path, content):
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(PrefkdError, match=f"{FILE_NAME} is damaged; remove it, and the stage runs again$"):
        read_record(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", '{"a": 3}', '{"a": [1]}'])
def test_damaged_digests_are_computed_again(tmp_path, content):
    (tmp_path / "cache.json").write_text(content)
    (tmp_path / "a").write_text("text")
    assert len(Contents(tmp_path / "cache.json").digest(tmp_path / "a")) == 64


def test_a_record_is_read_as_it_was_written(tmp_path):
    written = StageInputs("recipe", {"a": 1}, {"b": "c"})
    record_start(tmp_path, written)
    record = read_record(tmp_path)
    assert record is not None and record.fingerprint == written and record.seconds is None
