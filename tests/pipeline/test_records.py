"""Records of a pipeline that are not what it wrote."""

import pytest

from prefkd.errors import PrefkdError
from prefkd.pipeline.records import FILE_NAME, Contents, StageInputs, read_record, record_start


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
