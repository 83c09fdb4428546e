"""prefkd inspect."""

import json
import os
import typing
from pathlib import Path

import pytest

from tests.tiny import make_tokenizer, write_pairs


@pytest.fixture
def tokenizers(folder) -> tuple[str, str]:
    """Two folders with tokenizers and no weights, next to pairs.jsonl."""
    for name, kind in (("small", "byte_level"), ("large", "metaspace")):
        make_tokenizer(kind).save_pretrained(folder / name)
    write_pairs(folder / "pairs.jsonl", 40)
    return "small", "large"


def test_tables_page_and_numbers(tokenizers, prefkd):
    ended = prefkd("inspect", *tokenizers, "pairs.jsonl", "--json", "new/numbers.json")
    assert ended.code == 0, ended.err
    for part in ("one-to-one parents", "parents per word", "longest parents", "worst rows", " alignment: "):
        assert part in ended.out
    assert "wrote inspect.html and new/numbers.json" in ended.out
    numbers = json.loads(Path("new/numbers.json").read_text())
    assert numbers["pairs"] == numbers["pairs_in_data"] == 40
    assert f"{numbers['share_of_text_aligned_one_to_one']:.1%} of the text" in ended.out
    assert numbers["verdict"]["summary"] in Path("inspect.html").read_text()


def test_options_reach_the_data(tokenizers, prefkd):
    options = ["--limit", "7", "--max-length", "30", "--truncation", "keep_start", "--student-template", "plain"]
    ended = prefkd("inspect", *tokenizers, "pairs.jsonl", *options, "--html", "a.html", "--json", "a.json")
    assert ended.code == 0, ended.err
    numbers = json.loads(Path("a.json").read_text())
    assert numbers["limits"] == {"max_length": 30, "max_prompt_length": 15, "truncation": "keep_start"}
    assert numbers["pairs"] + numbers["dropped_pairs"] == 7
    assert numbers["student"] == {"name": "small", "template": "plain"}
    assert "7 of 40" in ended.out or numbers["dropped_pairs"]


def test_bad_rows_are_left_out_and_told(tokenizers, prefkd):
    with Path("pairs.jsonl").open("a") as file:
        file.write('{"prompt": "Why?", "chosen": "", "rejected": "no"}\n')
    ended = prefkd("inspect", *tokenizers, "pairs.jsonl")
    assert ended.code == 0
    assert "Rows that cannot be used: 1; the first is row 41 of pairs.jsonl" in " ".join(ended.out.split())


def test_terminal_shows_control_characters_and_markup_as_text(tokenizers, prefkd):
    row = {"prompt": "Why?", "chosen": "[red]Q\x1b[31mq[/red]\u202e" * 9, "rejected": "no"}
    Path("odd.jsonl").write_text(json.dumps(row) + "\n")
    ended = prefkd("inspect", *tokenizers, "odd.jsonl")
    assert ended.code == 0, ended.err
    assert "\x1b" not in ended.out and "\u202e" not in ended.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("student", "large", "pairs.jsonl"), "student holds no tokenizer; expected one of tokenizer.json"),
        (("./nowhere", "large", "pairs.jsonl"), "no folder ./nowhere; fetch the model with `prefkd download`"),
        (("toy.yaml", "large", "pairs.jsonl"), "toy.yaml is a file; name the folder that holds the tokenizer"),
        (("", "large", "pairs.jsonl"), "an empty text names no model"),
        (("small", "large", ""), "source: an empty text names no data"),
        (("broken", "large", "pairs.jsonl"), "cannot load the tokenizer of broken: "),
        (("small", "large", "pair.jsonl"), "source: pair.jsonl does not exist; did you mean pairs.jsonl?"),
        (("small", "large", "toy.yaml"), "source: toy.yaml is YAML; use .jsonl"),
        (("small", "large", "pairs.jsonl", "--limit", "0"), "--limit 0 leaves nothing to look at; give 1 or more"),
        (("small", "large", "pairs.jsonl", "--max-length", "1"), "max_length: 1 leaves no room for an answer"),
        (("small", "large", "emoji.jsonl", "--max-length", "2"), "emoji.jsonl: no pair is left after aligning"),
        (("small", "large", "pairs.jsonl", "--teacher-template", "chat"), "large: its tokenizer has no chat template"),
        (("small", "large", "pairs.jsonl", "--html", "toy.yaml/a.html"), "toy.yaml: "),
        (("small", "large", "pairs.jsonl", "--scores", "nowhere"), "no folder nowhere; write it with recipe score"),
        (("small", "large", "pairs.jsonl", "--scores", "small"), "small holds no fingerprint.json; name the folder"),
    ],
)
def test_mistakes(arguments, message, tokenizers, prefkd):
    Path("broken").mkdir()
    Path("broken/tokenizer.json").write_text("{")
    Path("emoji.jsonl").write_text(json.dumps({"prompt": "Why?", "chosen": "🙃", "rejected": "🦀"}) + "\n")
    ended = prefkd("inspect", *arguments)
    assert ended.code == 2
    assert [line for line in ended.err.splitlines() if line.startswith("error: ")] == ended.err.splitlines()[-1:]
    assert message in ended.err


def test_choices_are_those_of_the_data_config():
    from prefkd.cli.inspect import inspect
    from prefkd.data.pairs import DataConfig

    verb, config = (typing.get_type_hints(hints) for hints in (inspect, DataConfig))
    assert typing.get_args(verb["truncation"]) == typing.get_args(config["truncation"])


@pytest.mark.parametrize(
    ("student", "teacher", "data"),
    [
        ("tokenizer-qwen", "tokenizer-mistral-v3", "sharegpt_dpo_en"),
        ("smollm2-135m-instruct", "gemma-3-270m", "hh_harmless_pairs"),
    ],
)
def test_real_tokenizers_on_real_pairs(student, teacher, data, pairs, real_models, prefkd):
    folders, before = (str(real_models / name) for name in (student, teacher)), os.times()
    ended = prefkd("inspect", *folders, str(pairs / f"{data}.jsonl.gz"), "--json", "a.json")
    after = os.times()
    assert ended.code == 0, ended.err
    assert ended.err == ""
    numbers = json.loads(Path("a.json").read_text())
    assert numbers["verdict"]["grade"] == "good"
    assert numbers["answers_changed_by_decoding"]["student"]["answers"] == 0
    # Below five seconds on a free machine. The processor's time, because others may be at work on it.
    assert sum(after[:4]) - sum(before[:4]) < 14
