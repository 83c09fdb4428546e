"""Aligned pairs: the same text on both sides, cut to complete parents, the same from any number of workers."""

import json
import logging
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from prefkd.data import tokenizing
from prefkd.data.mapping import SAME_TOKENS
from prefkd.data.pairs import COLUMNS, DataConfig, load_pairs
from prefkd.data.rows import AlignedRow
from prefkd.data.sides import ModelSide
from prefkd.data.tokenizing import align_pairs, cut_pair
from prefkd.data.truncation import Limits, cut_prompt, kept_lengths
from prefkd.data.whole_pairs import with_instruction
from prefkd.errors import DataError, PrefkdError
from prefkd.method.parent_tokens import find_parents
from tests.tiny import TEXTS, make_tokenizer

SIDES, ANSWERS = ("student", "teacher"), ("chosen", "rejected")

HARD_TEXTS = {
    "emoji": ("Yes 👍🏽 👨‍👩‍👧‍👦!", "no 🙃"),
    "cjk": ("你好，世界。東京タワー", "我不知道"),
    "arabic": ("مرحبا بالعالم، كيف حالك؟", "لا"),
    "marks": ("ệ q\u0323\u0307 Z\u0351\u036b\u0343 नमस्ते", "x"),
    "code": ("def f(x):\n\tif x:\n\t\treturn {'a': [1, 2]}  # ok\n\n\n", "f = lambda x: x"),
    "blanks": ("  two  and   three \t tabs\t\t\r\n end ", "\tno\n"),
    "rare": ("𝒳y \u0013 \ufeff a\u00a0b \u200b c", "-"),
    "literal": ("Write </s> or <|im_end|> or <eos>, then <bos>.", "<s>"),
    "newline first": ("\nfoo 123456789 3.14", " Hello"),
}


def make_pairs(answers, prompt="Why? {}"):
    """A pairs data set as `load_pairs` makes it."""
    rows = [
        {
            "prompt": [{"role": "user", "content": prompt.format(i)}],
            "chosen": unicodedata.normalize("NFC", chosen),
            "rejected": rejected,
            "file": "pairs.jsonl",
            "row": i + 1,
        }
        for i, (chosen, rejected) in enumerate(answers)
    ]
    return Dataset.from_list(rows, features=COLUMNS)


@pytest.fixture(scope="module")
def student():
    return ModelSide(make_tokenizer("byte_level"), name="student")


@pytest.fixture(scope="module")
def teacher():
    return ModelSide(make_tokenizer("metaspace"), name="teacher")


TEXT_PAIRS = [(TEXTS[i], TEXTS[i - 1]) for i in range(len(TEXTS))]
ROOMY = DataConfig("pairs.jsonl", max_length=2000, max_prompt_length=1000)


# ---------------------------------------------------------------------------------------------- truncation


def test_lengths_of_the_published_code(golden: Path):
    """Answers get all the room there is; the published rule keeps fewer tokens where a prompt is below its limit."""
    for case in json.loads((golden / "tokenize_official.json").read_text()):
        limits = Limits(case["max_length"], case["max_prompt_length"], case["truncation_mode"])
        prompt, *answers = ([int(word) for word in case[name].split()] for name in ("prompt", *ANSWERS))
        lengths = [len(ids) + 1 for ids in answers]
        kept, room = kept_lengths(len(prompt), lengths, limits)
        cut = cut_prompt(prompt, kept, limits, bos_id=None)
        assert cut == case["result"]["prompt_input_ids"]
        # One answer that is too long has the published rule cut both to what the longest prompt would leave.
        published = limits.max_length - limits.max_prompt_length if max(lengths) > room else room
        for name, ids in zip(ANSWERS, answers, strict=True):
            ours, official = [*ids, 0][:room], case["result"][f"{name}_input_ids"][len(cut) :]
            if published < room and len(ids) + 1 > published:
                assert len(ours) > len(official)
                assert ours[: len(official)] == official
            else:
                assert ours == official


limits_of = st.builds(
    lambda prompt, room, end: Limits(prompt + room, prompt, end),
    st.integers(1, 20),
    st.integers(1, 20),
    st.sampled_from(["keep_start", "keep_end"]),
)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60), limits_of)
def test_what_is_kept_fits_and_wastes_no_room(prompt, chosen, rejected, limits):
    kept, room = kept_lengths(prompt, [chosen, rejected], limits)
    longer = max(chosen, rejected)
    assert kept + min(longer, room) <= limits.max_length
    if prompt + longer <= limits.max_length:
        assert kept == prompt
        assert room >= longer
    else:
        assert kept == min(prompt, limits.max_prompt_length)
        assert kept + room == limits.max_length


@given(st.lists(st.integers(3, 99), min_size=1, max_size=30), st.integers(1, 30), limits_of, st.booleans())
def test_a_cut_prompt_keeps_its_bos(ids, length, limits, has_bos):
    ids = [1, *ids] if has_bos else ids
    cut = cut_prompt(ids, length, limits, bos_id=1)
    assert len(cut) == min(length, len(ids))
    if limits.truncation == "keep_start":
        assert cut == ids[: len(cut)]
    else:
        text = cut[has_bos:]
        assert cut[:has_bos] == ids[:has_bos]
        assert text == ids[len(ids) - len(text) :]


words = st.lists(st.integers(1, 4), min_size=1, max_size=25)


@given(words, words, st.integers(1, 30), limits_of, st.sampled_from([[-1], [-2, -1]]))
def test_a_cut_answer_has_complete_parents_alone(student_widths, teacher_widths, prompt, limits, end):
    """Tokens of one to four characters, cut anywhere: what is left covers the same characters on both sides."""
    length = min(sum(student_widths), sum(teacher_widths))

    def offsets(widths):
        ends = np.minimum(np.cumsum(widths), length)
        starts = np.concatenate([[0], ends[:-1]])
        return [(a, b) for a, b in zip(starts.tolist(), ends.tolist(), strict=True) if a < b]

    both = {"student": offsets(student_widths), "teacher": offsets(teacher_widths)}
    parents = find_parents(both["student"], both["teacher"], length)
    sides = {side: _Ids(bos_id=None, end_ids=end) for side in SIDES}
    ids = {side: list(range(len(both[side]))) for side in SIDES}
    answers = {side: [ids[side], [token + 1000 for token in ids[side]]] for side in SIDES}
    prompts = {side: list(range(prompt)) for side in SIDES}
    try:
        found = cut_pair(prompts, answers, [parents, parents], sides, limits)  # pyright: ignore[reportArgumentType]
    except DataError as error:
        assert str(error) == tokenizing.NO_PARENT
        return
    row = found.columns()
    assert AlignedRow.of(row) == found
    reached = set()
    for side in SIDES:
        answer, owners = row[f"{side}_chosen"], row[f"{side}_chosen_parents"]
        assert len(row[f"{side}_prompt"]) + len(answer) <= limits.max_length
        assert len(answer) == len(owners)
        assert owners == sorted(owners)
        assert set(owners) == set(range(row["chosen_parents"]))
        assert row["chosen_ends"] == (answer[-len(end) :] == end) == (answer[-1] < 0)
        assert not row["chosen_ends"] or owners.count(owners[-1]) == len(end)
        assert row[f"{side}_chosen_cut"] == len(ids[side]) + len(end) - len(answer)
        text = [token for token in answer if token >= 0]
        assert text == ids[side][: len(text)]
        reached.add(both[side][len(text) - 1][1])
    assert reached == {row["chosen_characters"]}
    assert row["chosen_ends"] == (row["chosen_characters"] == length and row["student_chosen"][-1] == -1)


class _Ids:
    def __init__(self, bos_id, end_ids):
        self.bos_id, self.end_ids = bos_id, end_ids


# ---------------------------------------------------------------------------------------------- alignment


def text_of(model, row, side, answer):
    ids = row[f"{side}_{answer}"]
    return model.tokenizer.decode(ids[:-1] if row[f"{answer}_ends"] else ids)


def test_a_pair_is_the_same_text_on_both_sides(student, teacher):
    pairs = make_pairs(TEXT_PAIRS)
    for pair, row in zip(pairs, align_pairs(pairs, student, teacher, config=ROOMY), strict=True):
        assert (row["file"], row["row"]) == (pair["file"], pair["row"])
        for answer in ANSWERS:
            assert row[f"{answer}_ends"]
            text = pair[answer].strip()  # the student's template trims
            assert row[f"{answer}_characters"] == len(text)
            for side, model in (("student", student), ("teacher", teacher)):
                assert text_of(model, row, side, answer) == text
                assert row[f"{side}_{answer}"][-1] == model.eos_id
                assert row[f"{side}_{answer}_parents"][-1] == row[f"{answer}_parents"] - 1
        assert row["student_prompt"] == student.encode_prompts([student.frame(pair["prompt"])])[0]
        assert row["teacher_prompt"][0] == teacher.bos_id


def test_one_tokenizer_on_both_sides_is_one_token_a_parent(student):
    aligned = align_pairs(make_pairs([("Boil the eggs.", "Look it up.")]), student, student, config=ROOMY)
    [row] = aligned
    for answer in ANSWERS:
        assert row[f"student_{answer}"] == row[f"teacher_{answer}"]
        assert row[f"student_{answer}_parents"] == list(range(row[f"{answer}_parents"]))
        assert row[f"{answer}_single"] == row[f"{answer}_characters"]


def test_truncation_keeps_whole_parents(student, teacher):
    config = DataConfig("pairs.jsonl", max_length=40, max_prompt_length=20)
    pairs = make_pairs(TEXT_PAIRS, prompt="What would you say about this, question {}, and about all others?")
    roomy = align_pairs(pairs, student, teacher, config=ROOMY)
    for pair, whole, row in zip(pairs, roomy, align_pairs(pairs, student, teacher, config=config), strict=True):
        assert row["teacher_prompt"][0] == teacher.bos_id
        for answer in ANSWERS:
            assert not row[f"{answer}_ends"]
            kept = pair[answer][: row[f"{answer}_characters"]]
            for side, model in (("student", student), ("teacher", teacher)):
                assert len(row[f"{side}_prompt"]) + len(row[f"{side}_{answer}"]) <= 40
                assert len(row[f"{side}_prompt"]) == len(whole[f"{side}_prompt"]) - row[f"{side}_prompt_cut"]
                assert text_of(model, row, side, answer) == kept
                assert row[f"{side}_{answer}"] == whole[f"{side}_{answer}"][: len(row[f"{side}_{answer}"])]


def test_a_pair_without_a_parent_is_dropped_and_said(student, teacher, caplog):
    thumb = "👍🏽"  # its first character alone is more tokens of the student than there is room for
    pairs = make_pairs([("Yes.", "No."), (thumb, "No."), ("Drink water.", "No.")], prompt="Q{}")
    config = DataConfig("pairs.jsonl", max_length=7, max_prompt_length=5)
    with caplog.at_level(logging.WARNING):
        aligned = align_pairs(pairs, student, teacher, config=config)
    assert aligned["row"][:] == [1, 3]
    assert caplog.messages == [
        "1 of 3 pairs are left out; row 2 of pairs.jsonl: no parent token of an answer is left after truncation"
    ]


def test_a_pair_that_a_template_refuses_is_an_error_or_skipped(teacher, caplog):
    tokenizer = make_tokenizer("byte_level")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if 'Q1' in m.content %}{{ raise_exception('not this') }}{% endif %}"
        "<|{{ m.role }}|>{{ m.content | trim }}<|end|>{% endfor %}"
    )
    strict = ModelSide(tokenizer, name="strict")
    pairs = make_pairs([("Yes.", "No."), ("Yes.", "No."), ("a ", " a"), ("Yes.", "No.")], prompt="Q{}")
    with pytest.raises(DataError) as error:
        align_pairs(pairs, strict, teacher, config=ROOMY)
    assert str(error.value) == (
        "row 2 of pairs.jsonl: the chat template of strict refuses the conversation: not this; 1 more rows are bad; "
        "fix the data, or leave such rows out with on_bad_row: skip"
    )
    with caplog.at_level(logging.WARNING):
        config = DataConfig("pairs.jsonl", on_bad_row="skip")
        assert align_pairs(pairs, strict, teacher, config=config)["row"][:] == [1, 4]
    assert "row 3 of pairs.jsonl: fields 'chosen' and 'rejected' are the same text" in caplog.messages[1]


def test_answers_behind_different_ends_of_the_prompt_are_a_bad_row(teacher, caplog):
    tokenizer = make_tokenizer("byte_level")
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>\n\n{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n\n{% endif %}"
    )
    model = ModelSide(tokenizer, name="open")
    pairs = make_pairs([("Yes.", "No."), ("Yes.", " No."), ("Hm.", "Oh.")])
    with pytest.raises(
        DataError, match=r"row 2 of pairs\.jsonl: the tokenizer of open cuts the end of the prompt in one"
    ):
        align_pairs(pairs, model, teacher, config=ROOMY)
    aligned = align_pairs(pairs, model, teacher, config=DataConfig("pairs.jsonl", on_bad_row="skip"))
    assert aligned["row"][:] == [1, 3]
    for row in aligned:  # as in the whole chat
        ids = [*row["student_prompt"], *row["student_chosen"]]
        assert ids == tokenizer(tokenizer.decode(ids), add_special_tokens=False)["input_ids"]


def test_trimming_on_one_side_counts_for_both(student, teacher):
    [row] = align_pairs(make_pairs([("  Yes. \n", " No. ")]), student, teacher, config=ROOMY)
    assert student.uses_chat_template and not teacher.uses_chat_template
    assert text_of(teacher, row, "teacher", "chosen") == text_of(student, row, "student", "chosen") == "Yes."


def test_a_contrast_changes_the_last_user_message_alone(student, teacher):
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "{prompt}"}]
    talk.append({"role": "user", "content": "Why {x}?"})
    assert with_instruction(talk, "Lie: {prompt}!") == [*talk[:2], {"role": "user", "content": "Lie: Why {x}?!"}]

    pairs, contrast = make_pairs(TEXT_PAIRS), ("Good: {prompt}", "Bad, and longer: {prompt}")
    plain = align_pairs(pairs, student, teacher, config=ROOMY)
    aligned = align_pairs(pairs, student, teacher, config=ROOMY, contrast=contrast)
    assert set(aligned.column_names) - set(plain.column_names) == {"positive_prompt", "negative_prompt"}
    for row, without in zip(aligned, plain, strict=True):
        assert row == without | {name: row[name] for name in ("positive_prompt", "negative_prompt")}
        assert "Good: Why?" in teacher.tokenizer.decode(row["positive_prompt"])
        assert "Bad, and longer: Why?" in teacher.tokenizer.decode(row["negative_prompt"])
    with pytest.raises(PrefkdError, match=r"the instruction 'Good\.' lacks \{prompt\}"):
        align_pairs(pairs, student, teacher, config=ROOMY, contrast=("Good.", "Bad. {prompt}"))


def test_all_prompts_of_a_contrast_fit(student, teacher):
    config = DataConfig("pairs.jsonl", max_length=60, max_prompt_length=40)
    contrast = ("Answer well: {prompt}", "Answer as badly as you can, please: {prompt}")
    for row in align_pairs(make_pairs(TEXT_PAIRS), student, teacher, config=config, contrast=contrast):
        longest = max(len(row[f"teacher_{answer}"]) for answer in ANSWERS)
        for name in ("teacher", "positive", "negative"):
            assert row[f"{name}_prompt"][0] == teacher.bos_id
            assert len(row[f"{name}_prompt"]) + longest <= 60


def test_no_pairs_give_no_rows(student, teacher):
    empty = make_pairs(TEXT_PAIRS).select([])
    aligned = align_pairs(empty, student, teacher, config=ROOMY)
    assert len(aligned) == 0
    assert "student_prompt" in aligned.column_names


# ---------------------------------------------------------------------------------------------- workers and cache


def write_pairs(path):
    rows = [{"prompt": f"Q{i}?", "chosen": f"{TEXTS[i % 7]} {i}", "rejected": TEXTS[i % 5]} for i in range(150)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_workers_change_nothing(tmp_path, student, teacher, monkeypatch):
    source = write_pairs(tmp_path / "pairs.jsonl")
    results = []
    for workers in (1, 2):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / str(workers))
        config = DataConfig(source, workers=workers, max_length=60, max_prompt_length=30)
        aligned = align_pairs(
            load_pairs(config).train, student, teacher, config=config, contrast=("+{prompt}", "-{prompt}")
        )
        results.append((aligned[:], aligned._fingerprint, aligned.features))
    assert results[0] == results[1]


def test_the_second_time_comes_from_the_cache(tmp_path, student, teacher, monkeypatch):
    config = DataConfig(write_pairs(tmp_path / "pairs.jsonl"))
    first = align_pairs(load_pairs(config).train, student, teacher, config=config)
    batches = []
    real = tokenizing.find_parents_batch
    monkeypatch.setattr(tokenizing, "find_parents_batch", lambda *args: batches.append(args) or real(*args))
    again = align_pairs(load_pairs(config).train, student, teacher, config=config)
    assert not batches
    assert again[:] == first[:]
    assert again._fingerprint == first._fingerprint

    plain_student = ModelSide(student.tokenizer, "plain")
    for sides, settings in (
        ((plain_student, teacher), {}),
        ((student, student), {}),
        ((student, teacher), {"max_length": 300}),
        ((student, teacher), {"reverse": True}),
    ):
        batches.clear()
        changed = DataConfig(config.source, **settings)
        aligned = align_pairs(load_pairs(changed).train, *sides, config=changed)
        assert batches
        assert aligned._fingerprint != first._fingerprint


def test_reverse_swaps_the_tokens_too(tmp_path, student, teacher):
    source = write_pairs(tmp_path / "pairs.jsonl")
    straight, reverse = (
        align_pairs(load_pairs(config).train, student, teacher, config=config)
        for config in (DataConfig(source), DataConfig(source, reverse=True))
    )
    assert straight["student_chosen"][:] == reverse["student_rejected"][:]
    assert straight["teacher_rejected"][:] == reverse["teacher_chosen"][:]


# ---------------------------------------------------------------------------------------------- real tokenizers

REAL_PAIRS = [
    ("smollm2-135m-instruct", "gemma-3-270m"),
    ("gemma-3-270m", "smollm2-135m-instruct"),
    ("tokenizer-qwen", "tokenizer-mistral-v3"),
    ("smollm2-135m-instruct", "tokenizer-qwen"),
]


@pytest.mark.parametrize(("student_name", "teacher_name"), REAL_PAIRS)
def test_hard_text_through_real_tokenizers(real_sides, student_name, teacher_name):
    sides = {"student": real_sides[student_name], "teacher": real_sides[teacher_name]}
    pairs = make_pairs(list(HARD_TEXTS.values()))
    aligned = align_pairs(pairs, sides["student"], sides["teacher"], config=ROOMY)
    assert len(aligned) == len(pairs)
    for name, pair, row in zip(HARD_TEXTS, pairs, aligned, strict=True):
        for answer in ANSWERS:
            assert row[f"{answer}_ends"]
            assert row[f"{answer}_characters"] == len(pair[answer])
            for side, model in sides.items():
                text = text_of(model, row, side, answer)
                if name == "rare" and "smollm2" in model.name:
                    text = text.replace("  ", " \u0013 ", 1)  # its vocabulary lacks this byte
                if "mistral" in model.name:
                    text = text.removeprefix(" ") if not pair[answer].startswith(" ") else text
                    assert text.split() == pair[answer].split(), name
                else:
                    assert text == pair[answer], name


@pytest.mark.parametrize("name", ["hh_harmless_pairs", "hh_harmless_raw", "sharegpt_dpo_en"])
def test_real_pairs_through_real_tokenizers(real_sides, pairs, name):
    config = DataConfig(str(pairs / f"{name}.jsonl.gz"), limit=60, max_length=256, max_prompt_length=128)
    student, teacher = real_sides["smollm2-135m-instruct"], real_sides["gemma-3-270m"]
    train = load_pairs(config).train
    texts = {(row["file"], row["row"]): row for row in train}
    aligned = align_pairs(train, student, teacher, config=config)
    assert len(aligned) == 60
    for row in aligned:
        pair = texts[row["file"], row["row"]]
        for answer in ANSWERS:
            kept = pair[answer][: row[f"{answer}_characters"]]
            assert kept == pair[answer] or not row[f"{answer}_ends"]
            assert text_of(student, row, "student", answer) == kept
            assert text_of(teacher, row, "teacher", answer) == kept
            for side in SIDES:
                assert 0 < len(row[f"{side}_{answer}"]) <= 256 - len(row[f"{side}_prompt"])


def test_answers_that_are_equal_once_cut_are_left_out_and_counted(student, teacher, caplog):
    same = "Boil the eggs for eight minutes, then cool them in cold water. " * 12
    answers = [(f"{same}It is done", f"{same}Look yourself"), ("Yes.", "No."), (same.strip(), f"{same}Look yourself")]
    config = DataConfig("pairs.jsonl", max_length=96, max_prompt_length=40)
    left_out = Counter()
    aligned = align_pairs(make_pairs(answers), student, teacher, config=config, left_out=left_out)
    assert aligned["row"][:] == [2]
    assert left_out == {SAME_TOKENS: 2}
    assert f"2 of 3 pairs are left out; row 1 of pairs.jsonl: {SAME_TOKENS}" in caplog.text
    # With room for all of it there is a preference; an end that only one of them has is one, too.
    assert len(align_pairs(make_pairs(answers), student, teacher, config=ROOMY)) == 3
    assert len(align_pairs(make_pairs([("a b", "a b c d e f g")]), student, student, config=ROOMY)) == 1
