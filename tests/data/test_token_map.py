"""Tokens as bytes, and the map between two vocabularies that is kept between runs."""

import itertools
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from prefkd.data import token_map as module
from prefkd.data import vocabulary
from prefkd.data.token_map import cached_token_map, token_bytes, token_pieces
from prefkd.data.vocabulary import Vocabularies
from prefkd.errors import PrefkdError
from prefkd.method.shared_tokens import find_shared_tokens, image
from tests.tiny import TEXTS, make_tokenizer

TOKENIZERS = {kind: make_tokenizer(kind) for kind in ("byte_level", "metaspace")}
REAL = ("smollm2-135m-instruct", "gemma-3-270m", "tokenizer-mistral-v3", "tokenizer-qwen")


def assert_bytes_are_those_of_the_text(tokenizer, known: list[bytes | None], text: str) -> None:
    found = [known[index] for index in tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert None not in found
    assert b"".join(found).removeprefix(b" ") == text.encode()  # some tokenizers begin every text with a blank


@pytest.mark.parametrize(("kind", "text"), itertools.product(TOKENIZERS, TEXTS))
def test_the_bytes_of_an_answer_are_the_answer(kind, text):
    assert_bytes_are_those_of_the_text(TOKENIZERS[kind], token_bytes(TOKENIZERS[kind]), text)


@pytest.mark.parametrize("name", REAL)
def test_the_bytes_of_real_tokenizers(real_models: Path, name):
    tokenizer = AutoTokenizer.from_pretrained(real_models / name)
    known = token_bytes(tokenizer)
    for text in (*TEXTS, "\n\n\n\tint  x = 0;\r\n    return", "ÿ € 𝔘 ỗ 한국어 👩‍👩‍👧", "<table><tr>"):
        assert_bytes_are_those_of_the_text(tokenizer, known, text)
    assert not any(known[index] for index in tokenizer.all_special_ids)


def test_special_tokens_and_bytes_that_have_a_character_are_no_text():
    for tokenizer in TOKENIZERS.values():
        assert all(token_bytes(tokenizer)[index] is None for index in tokenizer.all_special_ids)
    found, tokenizer = token_bytes(TOKENIZERS["metaspace"]), TOKENIZERS["metaspace"]
    fallback = {byte: tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in (0x61, 0x20, 0x7F, 0xE4)}
    assert {byte: found[index] for byte, index in fallback.items()} == {
        0x61: None,
        0x20: None,
        0x7F: b"\x7f",
        0xE4: b"\xe4",
    }


def test_a_letter_is_shared_as_its_own_token():
    """Not as the byte that stands in for it, whose id is lower and which no text has."""
    own, other = (token_bytes(tokenizer) for tokenizer in (TOKENIZERS["metaspace"], TOKENIZERS["byte_level"]))
    shared = find_shared_tokens(own, other)
    pairs = dict(zip(shared.student.tolist(), shared.teacher.tolist(), strict=True))
    for letter in "aeint":
        first, second = (
            tokenizer.convert_tokens_to_ids(letter) for tokenizer in (TOKENIZERS["metaspace"], TOKENIZERS["byte_level"])
        )
        assert pairs[first] == second
    byte = TOKENIZERS["metaspace"].convert_tokens_to_ids("<0xF0>")
    assert other[pairs[byte]] == b"\xf0"


def test_pieces_are_those_in_the_middle_of_a_text():
    for tokenizer in TOKENIZERS.values():
        texts = (b" water", b"minutes", b"\n\t", "é".encode(), b"\xf0\x9f", None, b"")
        pieces, known = token_pieces(tokenizer, texts), token_bytes(tokenizer)
        assert [b"".join(known[index] for index in found) for found in pieces] == [text or b"" for text in texts]


def test_a_map_is_made_once(monkeypatch, caplog):
    student, teacher = TOKENIZERS["metaspace"], TOKENIZERS["byte_level"]
    vocabularies = Vocabularies.of(student, teacher, (student.eos_token_id, teacher.eos_token_id))
    found = vocabularies.token_map
    sums = found.weights.sum(1)
    assert (torch.isclose(sums, torch.ones(())) | (sums == 0)).all()
    assert (found.weights[found.indices < 0] == 0).all() and len(image(found)[0]) > 100
    for own, other in zip(*map(torch.Tensor.tolist, vocabularies.shared), strict=True):
        assert found.indices[own].tolist() == [other, -1, -1, -1] and found.weights[own, 0] == 1
    unshared = next(
        index
        for index, text in enumerate(token_bytes(student))
        if text and len(text) > 2 and index not in vocabularies.shared.student
    )
    [pieces] = token_pieces(teacher, [token_bytes(student)[unshared]])
    assert set(pieces[:2]) <= set(found.indices[unshared].tolist())

    monkeypatch.setattr(module, "projection_weights", lambda *_: pytest.fail("it was made already"))
    again = cached_token_map(student, teacher, vocabularies.shared)
    assert all(map(torch.equal, found, again))
    monkeypatch.undo()
    monkeypatch.setattr(module, "save_file", lambda *_: (_ for _ in ()).throw(OSError("read-only file system")))
    other = cached_token_map(teacher, student, find_shared_tokens(token_bytes(teacher), token_bytes(student)))
    assert len(other.indices) == len(teacher)
    assert "is not cached (read-only file system); set HF_ASSETS_CACHE" in caplog.text


def words(*texts: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE({text: index for index, text in enumerate(texts)}, []))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_tokenizers_with_little_in_common(caplog):
    letters = [chr(ord("a") + index) for index in range(20)]
    few = Vocabularies.of(words(*letters), words("a", "1", "2", "3"), (19, 3))
    assert [len(ids) for ids in few.shared] == [2, 2]
    assert caplog.text == ""
    vocabulary._warn_of_little.cache_clear()
    few = Vocabularies.of(words(*letters, "z"), words("a", "1", "2", "3"), (19, 3))
    assert few.shared and "share only 2 of the student's 21 tokens" in caplog.text
    for ends in (None, (19, 3)):
        with pytest.raises(PrefkdError, match="share no token"):
            _ = Vocabularies.of(words(*letters), words("1", "2", "3", "4"), ends).shared
