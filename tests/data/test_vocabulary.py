"""The texts of tokens, and the file that maps one vocabulary to another."""

from pathlib import Path

import pytest

from prefkd.cli.main import main
from prefkd.data.vocabulary import Vocabularies, read_vocabulary_map, token_texts, write_vocabulary_map
from prefkd.errors import PrefkdError
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


def test_a_map_is_written_and_read(tmp_path):
    vocabularies = Vocabularies(("a", "▁the", "<0xE4>", "house"), ("▁houses", "Ġthe", "a"))
    seen = []
    found = write_vocabulary_map(
        tmp_path / "new" / "map", vocabularies, lambda batches: map(lambda b: seen.append(b) or b, batches)
    )
    assert found.tolist() == [3, 1, 0] and len(seen) == 1
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["map"]
    assert read_vocabulary_map(tmp_path / "new" / "map", vocabularies).tolist() == [3, 1, 0]
    other = Vocabularies(vocabularies.student, ("▁houses", "Ġthe", "b"))
    with pytest.raises(PrefkdError, match="made for another tokenizer of the teacher"):
        read_vocabulary_map(tmp_path / "new" / "map", other)
    with pytest.raises(PrefkdError, match="does not exist"):
        read_vocabulary_map(tmp_path / "none", vocabularies)
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(PrefkdError, match="is no vocabulary map"):
        read_vocabulary_map(tmp_path / "text", vocabularies)


def test_the_command(tmp_path, capsys):
    for kind, tokenizer in TOKENIZERS.items():
        tokenizer.save_pretrained(tmp_path / kind)
    command = ["vocabulary-map", str(tmp_path / "metaspace"), str(tmp_path / "byte_level"), "--output"]
    assert main([*command, str(tmp_path / "map")]) == 0
    assert f"wrote {tmp_path}/map: 400 tokens of the teacher" in capsys.readouterr().out
    found = read_vocabulary_map(tmp_path / "map", Vocabularies.of(TOKENIZERS["metaspace"], TOKENIZERS["byte_level"]))
    texts = {kind: token_texts(tokenizer) for kind, tokenizer in TOKENIZERS.items()}
    assert texts["metaspace"][found[texts["byte_level"].index("▁the")]] == "▁the"

    assert main([*command, str(tmp_path / "map")]) == 2
    assert "is already there" in capsys.readouterr().err
    command[1] = str(Path("models") / "nowhere")
    assert main([*command, str(tmp_path / "other")]) == 2
    assert "no folder models/nowhere; fetch the model" in capsys.readouterr().err
