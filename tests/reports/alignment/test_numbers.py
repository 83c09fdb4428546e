"""The numbers of an inspection equal those that a plain loop over the texts counts."""

import json

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prefkd.data.pairs import DataConfig
from prefkd.data.sides import ModelSide
from prefkd.method.parent_tokens import find_parents
from prefkd.reports.alignment.numbers import WORD
from prefkd.reports.alignment.report import inspect_pairs
from prefkd.reports.alignment.verdict import judge
from tests.reports.conftest import HARD

WHOLE = {"max_length": 4000, "max_prompt_length": 2000, "held_out_fraction": 0.0}


@pytest.fixture(scope="module")
def whole(hard_file, sides):
    """The inspection of the hard pairs with room for all."""
    return inspect_pairs(DataConfig(str(hard_file), **WHOLE), sides["student"], sides["teacher"], most=2000).numbers


@pytest.fixture(scope="module")
def counted(sides):
    """(text, student tokens, teacher tokens) of each parent of each answer."""
    parents = []
    for _, *answers in HARD:
        for text in map(str.strip, answers):  # as the templates do
            offsets = [side.encode_responses([text])[1][0] for side in sides.values()]
            for start, end, s0, s1, t0, t1 in find_parents(*offsets, len(text), text).tolist():
                parents.append((text[start:end], s1 - s0, t1 - t0))
    return parents


def test_shares_and_means(whole, counted):
    words = sum(len(WORD.findall(answer)) for _, *answers in HARD for answer in answers)
    single = [text for text, student, teacher in counted if student == teacher == 1]
    characters = sum(len(text) for text, *_ in counted)
    written = sum(len(answer) for _, *answers in HARD for answer in answers)
    assert whole["characters"] == {
        "kept": characters,
        "cut": 0,
        "trimmed": written - characters,
        "uncovered": {"student": 0, "teacher": 0},
    }
    assert whole["words"] == words
    assert whole["parents_per_word"] == round(len(counted) / words, 4)
    assert whole["tokens_per_word"]["teacher"] == round(sum(teacher for *_, teacher in counted) / words, 4)
    assert whole["share_of_parents_one_to_one"] == round(len(single) / len(counted), 4)
    assert whole["share_of_text_aligned_one_to_one"] == round(sum(map(len, single)) / characters, 4)


def test_lists(whole, counted):
    for shape in whole["shapes"]:
        assert shape["parents"] == [parent[1:] for parent in counted].count((shape["student"], shape["teacher"]))
    longest = max(counted, key=lambda parent: (max(parent[1:]), len(parent[0])))
    first = whole["longest_parents"][0]
    assert (first["text"], first["student"], first["teacher"]) == longest
    assert first["times"] == [text for text, *_ in counted].count(longest[0])
    for piece in whole["splits"]:
        assert (piece["text"], len(piece["student"]), len(piece["teacher"])) in counted


def test_worst_rows_come_first_and_short_ones_last(whole):
    order = [(row["parents"] < 20, row["share_one_to_one"]) for row in whole["worst_rows"]]
    assert order == sorted(order) and len(order) == len(HARD)
    assert order[0][0] is False and order[-1][0] is True


def test_a_word_is_what_stands_between_blanks_or_a_character_of_han_or_kana():
    assert WORD.findall("It's  9,5 東京タ ok。") == ["It's", "9,5", "東", "京", "タ", "ok。"]


def test_what_is_cut_is_counted(hard, whole):
    long_answer = HARD[-1][1].strip()
    assert hard.numbers["characters"]["cut"] > len(long_answer) / 3
    assert hard.numbers["characters"]["cut"] + hard.numbers["characters"]["kept"] == whole["characters"]["kept"]
    assert any("max_length 512 cuts" in advice for advice in hard.verdict.advice)


def test_needed_length_leaves_the_pairs_whole(hard_file, sides, hard):
    [advice] = [advice for advice in hard.verdict.advice if "max_length 512" in advice]
    needed = int(advice.split("max_length ")[2].split()[0].replace(",", ""))
    config = DataConfig(str(hard_file), max_length=needed, held_out_fraction=0.0)
    numbers = inspect_pairs(config, sides["student"], sides["teacher"], most=2000).numbers
    assert numbers["share_of_responses_truncated"] == 0
    assert numbers["share_of_prompts_truncated"] == {"student": 0, "teacher": 0}


def test_numbers_are_json(hard):
    assert json.loads(json.dumps(hard.numbers, allow_nan=False)) == hard.numbers


def test_a_random_part_is_the_same_each_time(hard_file, sides):
    config = DataConfig(str(hard_file), held_out_fraction=0.0)
    first, second = (inspect_pairs(config, sides["student"], sides["teacher"], most=3).numbers for _ in range(2))
    assert first == second
    assert (first["pairs"], first["pairs_in_data"]) == (3, len(HARD))


def test_one_tokenizer_twice(hard_file, sides):
    config = DataConfig(str(hard_file), **WHOLE)
    found = inspect_pairs(config, sides["student"], sides["student"], most=2000)
    assert found.verdict.grade == "good"
    assert found.numbers["tokens_per_parent"]["student"] == found.numbers["tokens_per_parent"]["teacher"]


def lossy_side() -> ModelSide:
    """A tokenizer that knows words in small letters only."""
    vocabulary = {word: i for i, word in enumerate(["<unk>", "</s>", "no", "yes", "thanks"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return ModelSide(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>"), name="lossy")


def test_a_tokenizer_that_loses_text_is_named(tmp_path, sides):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "Well?", "chosen": "Yes thanks", "rejected": "no"}) + "\n")
    found = inspect_pairs(DataConfig(str(path), **WHOLE), sides["student"], lossy_side(), most=2000)
    assert found.numbers["answers_changed_by_decoding"] == {
        "student": {"answers": 0, "first": None},
        "teacher": {"answers": 1, "first": {"file": "pairs.jsonl", "row": 1, "answer": "chosen"}},
    }
    assert any("The teacher's tokens do not spell 1 of" in advice for advice in found.verdict.advice)


@pytest.mark.parametrize(("share", "grade"), [(0.9, "good"), (0.6, "fair"), (0.2, "poor"), (1.0, "good")])
def test_grades(share, grade, whole, hard_file):
    verdict = judge(whole | {"share_of_text_aligned_one_to_one": share}, DataConfig(str(hard_file)))
    assert verdict.grade == grade
    assert (grade != "good") == any("vocabulary" in advice for advice in verdict.advice[:1])
