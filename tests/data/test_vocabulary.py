"""The texts of tokens, and the map of one vocabulary to another that is kept between runs."""

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from huggingface_hub import cached_assets_path

from prefkd.data import vocabulary
from prefkd.data.token_map import cached
from prefkd.data.vocabulary import Vocabularies, token_texts
from prefkd.files import fingerprint
from tests.tiny import make_tokenizer

TOKENIZERS = {kind: make_tokenizer(kind) for kind in ("byte_level", "metaspace")}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_texts_of_an_answer_are_the_answer(kind):
    tokenizer = TOKENIZERS[kind]
    texts = token_texts(tokenizer)
    assert len(texts) == len(tokenizer)
    for answer in ("Drink water, rest.", "Use a for loop:\n\n\tfor i", "Voilà, un café."):
        ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
        text = "".join(texts[i] for i in ids).replace("<0xC3><0xA9>", "é")  # which may be two tokens
        assert text == answer.replace(" ", "▁")


def test_parts_of_a_character_and_special_tokens():
    texts = {kind: token_texts(tokenizer) for kind, tokenizer in TOKENIZERS.items()}
    assert texts["byte_level"].count("<0xE4>") == texts["metaspace"].count("<0xE4>") == 1
    assert "<|assistant|>" in texts["byte_level"] and "</s>" in texts["metaspace"]
    assert texts["metaspace"].count("~") == 1 and "<0x7E>" not in texts["metaspace"]


def test_a_map_is_made_once(capfd, monkeypatch):
    student, teacher = ("a", "▁the", "<0xE4>", "house"), ("▁houses", "Ġthe", "a")
    assert Vocabularies(student, teacher).nearest.tolist() == [3, 1, 0]
    assert "Mapping the teacher's tokens" in capfd.readouterr().err
    monkeypatch.setattr(vocabulary, "minimal_edit_vocabulary_map", lambda *_, **__: pytest.fail("it was made already"))
    assert Vocabularies(student, teacher).nearest.tolist() == [3, 1, 0]
    with pytest.raises(pytest.fail.Exception, match="made already"):
        _ = Vocabularies(student, ("▁houses", "Ġthe", "b")).nearest


def test_a_blank_is_the_same_in_both_vocabularies():
    found = Vocabularies.of(TOKENIZERS["metaspace"], TOKENIZERS["byte_level"]).nearest
    texts = {kind: token_texts(tokenizer) for kind, tokenizer in TOKENIZERS.items()}
    assert texts["metaspace"][found[texts["byte_level"].index("▁the")]] == "▁the"


def make(folder: Path) -> list[int]:
    """In a process of its own: a map that tells in a file that it was made."""

    def made() -> dict[str, torch.Tensor]:
        (folder / f"{os.getpid()}.made").touch()
        time.sleep(0.5)
        return {"ids": torch.arange(3)}

    return cached("test map", (str(folder),), made)["ids"].tolist()


def test_of_several_processes_one_makes_the_map(tmp_path):
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("fork")) as pool:
        assert list(pool.map(make, [tmp_path] * 3)) == [[0, 1, 2]] * 3
    assert len(list(tmp_path.iterdir())) == 1


def test_a_damaged_map_is_made_once_more(tmp_path):
    make(tmp_path)
    name = fingerprint("test map", str(tmp_path))
    path = cached_assets_path("prefkd", namespace="test_maps", subfolder=name) / "map.safetensors"
    path.write_bytes(path.read_bytes()[:20])
    (tmp_path / f"{os.getpid()}.made").unlink()
    assert make(tmp_path) == [0, 1, 2] and len(list(tmp_path.iterdir())) == 1


def test_without_a_folder_for_it_a_map_is_made_and_not_kept(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "file"))
    assert make(tmp_path) == [0, 1, 2]
    assert "is not cached" in caplog.text and "set HF_ASSETS_CACHE" in caplog.text
