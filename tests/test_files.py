"""What is written appears whole or not at all, with the permissions of the user."""

import os
import stat
from collections.abc import Iterator

import pytest
import torch
from safetensors.torch import save_file

from prefkd.files import sha256, whole


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def permissions(request) -> Iterator[int]:
    before = os.umask(request.param)
    yield 0o666 & ~request.param
    os.umask(before)


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_and_a_folder_have_the_users_permissions(tmp_path, permissions):
    with whole(tmp_path / "new" / "one.safetensors") as unfinished:
        save_file({"x": torch.zeros(2)}, unfinished)
    with whole(tmp_path / "model") as unfinished:
        (unfinished / "inner").mkdir(parents=True)
        save_file({"x": torch.zeros(2)}, unfinished / "inner" / "two.safetensors")
        (unfinished / "config.json").write_text("{}")
    for name in ("new/one.safetensors", "model/inner/two.safetensors", "model/config.json"):
        assert mode(tmp_path / name) == permissions, name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "new"]


@pytest.mark.parametrize("before", ["file", "folder"])
@pytest.mark.parametrize("after", ["file", "folder"])
def test_what_was_there_is_replaced(tmp_path, before, after):
    path = tmp_path / "x"
    for kind in (before, after):
        with whole(path) as unfinished:
            if kind == "folder":
                unfinished.mkdir()
            (unfinished / "y" if kind == "folder" else unfinished).write_text(kind)
    assert (path / "y" if after == "folder" else path).read_text() == after


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), whole(path) as unfinished:
        unfinished.write_text("ne")
        raise OSError("full")
    assert path.read_text() == "old"
    with whole(path) as unfinished:
        unfinished.write_text("new")
    assert [file.name for file in tmp_path.iterdir()] == ["x"] and path.read_text() == "new"


def test_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
