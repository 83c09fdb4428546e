"""Parent tokens: the published numbers, the definition itself on random tokenizations, and real tokenizers."""

import gzip
import itertools
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from prefkd.method.parent_tokens import find_parents, find_parents_batch, keep_complete


def clean_cuts(offsets, length, text):
    """The definition, read word for word: (position, tokens before it) of every clean cut of one side."""
    solid = [i for i, (start, end) in enumerate(offsets) if end > start]
    cuts = []
    for here in solid[:-1]:
        low = max(offsets[j][1] for j in solid if j <= here)
        high = min(offsets[j][0] for j in solid if j > here)
        if low <= high:
            kept = len(text[low:high].rstrip()) if text is not None else 0
            cuts.append((low + kept, here + 1))
    return [*cuts, (length, len(offsets))]


def has_solid(offsets):
    return any(end > start for start, end in offsets)


def parents_by_definition(student, teacher, length, text):
    if not (has_solid(student) and has_solid(teacher)):
        return []
    teacher_cuts = dict(clean_cuts(teacher, length, text))
    ends = [(place, i, teacher_cuts[place]) for place, i in clean_cuts(student, length, text) if place in teacher_cuts]
    return [
        [start, end, first, last, teacher_first, teacher_last]
        for (start, first, teacher_first), (end, last, teacher_last) in itertools.pairwise([(0, 0, 0), *ends])
    ]


@st.composite
def tokenizations(draw, length, *, covered=False):
    """Offsets of a text as tokenizers return them: pieces, bytes of one character, overlaps, holes, empty tokens."""
    inner = draw(st.sets(st.integers(1, length - 1))) if length > 1 else set()
    offsets = []
    for start, end in itertools.pairwise([0, *sorted(inner), length] if length else [0]):
        kinds = ["whole"] * 6 + ["bytes", "empty before", "overlap back"]
        kind = draw(
            st.sampled_from(kinds if covered else [*kinds, "trimmed", "missing", "overlap ahead", "empty after"])
        )
        if kind == "bytes":
            offsets += [(start, end)] * draw(st.integers(2, 4))
        elif kind == "empty before":
            offsets += [(draw(st.sampled_from([0, start])),) * 2, (start, end)]
        elif kind == "empty after":
            offsets += [(start, end), (end, end)]
        elif kind == "overlap back":
            offsets.append((max(start - 1, 0), end))
        elif kind == "overlap ahead":
            offsets.append((start, min(end + 1, length)))
        elif kind == "trimmed":
            offsets.append((start + 1, end))
        elif kind == "whole":
            offsets.append((start, end))
    return offsets


@st.composite
def wild_tokenizations(draw, length):
    """Anything that lies inside the text."""
    ends = st.tuples(st.integers(0, length), st.integers(0, length)).map(sorted).map(tuple)
    return draw(st.lists(ends, max_size=8))


TEXTS = st.text(alphabet="ab  \t\né\u0301日👍", max_size=12)


@st.composite
def aligned_texts(draw, *, covered=False):
    text = draw(TEXTS)
    kind = tokenizations(len(text), covered=covered)
    if not covered:
        kind = kind | wild_tokenizations(len(text))
    return text, draw(kind), draw(kind)


@given(aligned_texts(), st.booleans())
def test_random_tokenizations_follow_the_definition(case, with_text):
    text, student, teacher = case
    shown = text if with_text else None
    found = find_parents(student, teacher, len(text), shown)
    assert found.dtype == np.int64
    assert found.shape[1] == 6
    assert found.tolist() == parents_by_definition(student, teacher, len(text), shown)


@given(st.lists(aligned_texts(), max_size=6))
def test_a_batch_gives_what_single_texts_give(cases):
    texts, students, teachers = ([case[i] for case in cases] for i in range(3))
    batch = find_parents_batch(students, teachers, texts)
    assert [found.tolist() for found in batch] == [
        find_parents(student, teacher, len(text), text).tolist() for text, student, teacher in cases
    ]
    assert all(found.dtype == np.int64 and found.shape[1] == 6 for found in batch)


def check_partition_and_containment(parents, student, teacher, length):
    """I1 and I2: three tilings in one order, without an empty part. I3: each solid token lies inside its parent."""
    for column, total in ((0, length), (2, len(student)), (4, len(teacher))):
        assert parents[0, column] == 0
        assert parents[-1, column + 1] == total
        assert (parents[1:, column] == parents[:-1, column + 1]).all()
        assert (parents[:, column] < parents[:, column + 1]).all()
    for start, end, *ranges in parents.tolist():
        for offsets, first, last in ((student, *ranges[:2]), (teacher, *ranges[2:])):
            assert all(start <= low and high <= end for low, high in offsets[first:last] if high > low)


@given(aligned_texts())
def test_parents_tile_text_and_tokens_and_contain_their_tokens(case):
    text, student, teacher = case
    assume(has_solid(student) and has_solid(teacher))
    check_partition_and_containment(find_parents(student, teacher, len(text), text), student, teacher, len(text))


@given(aligned_texts())
def test_no_common_cut_lies_inside_a_parent(case):
    """I4, and I7: there are at most as many parents as either side has cuts."""
    text, student, teacher = case
    assume(has_solid(student) and has_solid(teacher))
    parents = find_parents(student, teacher, len(text), text)
    cuts = [{place for place, _ in clean_cuts(side, len(text), text)} for side in (student, teacher)]
    assert cuts[0] & cuts[1] == set(parents[:, 1].tolist())
    assert len(parents) <= min(map(len, cuts))


@given(aligned_texts())
def test_swapping_the_sides_swaps_the_ranges(case):
    """I5."""
    text, student, teacher = case
    there = find_parents(student, teacher, len(text), text)
    back = find_parents(teacher, student, len(text), text)
    assert there[:, [0, 1, 4, 5, 2, 3]].tolist() == back.tolist()


@given(aligned_texts())
def test_a_tokenization_against_itself_has_a_parent_per_cut(case):
    """I6."""
    text, student, _ = case
    assume(has_solid(student))
    parents = find_parents(student, student, len(text), text)
    assert [(end, last) for _, end, _, last, _, _ in parents.tolist()] == clean_cuts(student, len(text), text)


@given(aligned_texts(), st.data())
def test_splitting_a_token_removes_no_parent(case, data):
    """I8."""
    text, student, teacher = case
    wide = [i for i, (start, end) in enumerate(student) if end - start > 1]
    assume(wide and teacher)
    i = data.draw(st.sampled_from(wide))
    start, end = student[i]
    middle = data.draw(st.integers(start + 1, end - 1))
    finer = [*student[:i], (start, middle), (middle, end), *student[i + 1 :]]
    before = find_parents(student, teacher, len(text), text)
    after = find_parents(finer, teacher, len(text), text)
    assert set(before[:, 1].tolist()) <= set(after[:, 1].tolist())


@given(aligned_texts(covered=True), aligned_texts(covered=True))
def test_parents_of_a_concatenation_are_the_parents_of_its_parts(first, second):
    """I9."""
    (text, student, teacher), (more, more_student, more_teacher) = first, second
    assume(text and more)

    def shifted(offsets):
        return [(start + len(text), end + len(text)) for start, end in offsets]

    whole = find_parents(
        student + shifted(more_student), teacher + shifted(more_teacher), len(text) + len(more), text + more
    )
    shift = [len(text)] * 2 + [len(student)] * 2 + [len(teacher)] * 2
    parts = [find_parents(student, teacher, len(text), text), find_parents(more_student, more_teacher, len(more), more)]
    assert whole.tolist() == np.concatenate([parts[0], parts[1] + shift]).tolist()


@given(aligned_texts(), st.integers(0, 14), st.integers(0, 14))
def test_truncation_keeps_the_longest_complete_prefix(case, student_tokens, teacher_tokens):
    """I10."""
    text, student, teacher = case
    parents = find_parents(student, teacher, len(text), text)
    kept = keep_complete(parents, student_tokens, teacher_tokens)
    assert kept.tolist() == parents[: len(kept)].tolist()
    assert all(row[3] <= student_tokens and row[5] <= teacher_tokens for row in kept.tolist())
    if len(kept) < len(parents):
        following = parents[len(kept)]
        assert following[3] > student_tokens or following[5] > teacher_tokens


def test_arrays_and_lists_of_offsets_give_the_same():
    student, teacher = [(0, 2), (2, 5), (5, 6)], [(0, 5), (5, 6)]
    expected = [[0, 5, 0, 2, 0, 1], [5, 6, 2, 3, 1, 2]]
    small = [np.array(offsets, dtype=np.int32) for offsets in (student, teacher)]
    assert find_parents(student, teacher, 6).tolist() == expected
    assert find_parents(*small, 6).tolist() == expected
    assert find_parents(small[0], teacher, 6).tolist() == expected
    assert small[1].tolist() == [list(pair) for pair in teacher], "the input was changed"


NO_SOLID = {"nothing": [], "one": [(0, 0)], "inside": [(1, 1)], "many": [(0, 0), (1, 1), (2, 2), (0, 0)]}
SOLID = {"whole": [(0, 2)], "two": [(0, 1), (1, 2)], "mixed": [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2)]}


@pytest.mark.parametrize("text", ["ab", " \n", None])
@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        *itertools.product(NO_SOLID.values(), SOLID.values()),
        *itertools.product(SOLID.values(), NO_SOLID.values()),
        *itertools.product(NO_SOLID.values(), repeat=2),
    ],
)
def test_a_side_without_a_solid_token_has_no_parent(student, teacher, text):
    """Zero-width tokens stand for nothing of the text: no parents, whatever the other side has."""
    assert find_parents(student, teacher, 2, text).shape == (0, 6)
    if text is not None:
        whole = [(0, 2)]  # texts that do have parents, before and behind, are not touched
        found = find_parents_batch([whole, student, whole], [whole, teacher, whole], [text] * 3)
        assert [part.tolist() for part in found] == [[[0, 2, 0, 1, 0, 1]], [], [[0, 2, 0, 1, 0, 1]]]


@pytest.mark.parametrize(("student", "teacher"), itertools.product([[], [(0, 0)], [(0, 0)] * 3], repeat=2))
def test_an_empty_text_has_no_parent(student, teacher):
    for text in ("", None):
        assert find_parents(student, teacher, 0, text).shape == (0, 6)
    assert [part.shape for part in find_parents_batch([student] * 2, [teacher] * 2, [""] * 2)] == [(0, 6)] * 2


def test_zero_width_tokens_at_the_end_go_with_the_last_solid_token():
    assert find_parents([(0, 1), (1, 2), (2, 2), (0, 0)], [(0, 0), (0, 2)], 2, "ab").tolist() == [[0, 2, 0, 4, 0, 2]]


def test_no_texts_give_no_parents():
    assert find_parents_batch([], [], []) == []


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="beyond the end"):
        find_parents([(0, 3)], [(0, 2)], 2)
    with pytest.raises(ValueError, match="beyond the end"):
        find_parents_batch([[(0, 3)], [(0, 1)]], [[(0, 2)], [(0, 1)]], ["ab", "c"])
    with pytest.raises(ValueError, match="length is 3"):
        find_parents([(0, 2)], [(0, 2)], 3, "ab")
    with pytest.raises(ValueError, match="1 texts, but 2 student"):
        find_parents_batch([[(0, 1)], [(0, 1)]], [[(0, 1)]], ["a"])


def test_golden_offset_maps(golden: Path):
    for case in json.loads((golden / "parents_edge.json").read_text())["cases"]:
        found = find_parents(case["a"], case["b"], case["length"], case["text"])
        assert found.tolist() == case["parents"], case["name"]
        if "kept" in case:
            assert len(keep_complete(found, case["keep_a"], case["keep_b"])) == case["kept"], case["name"]


def test_golden_strings(golden: Path):
    students, teachers, texts, expected = [], [], [], []
    for string in json.loads((golden / "parents_strings.json").read_text())["strings"]:
        for pair, answer in string["pairs"].items():
            student, teacher = (string["tok"][name]["offsets"] for name in pair.split("|"))
            found = find_parents(student, teacher, string["length"], string["text"])
            assert found.tolist() == answer["parents"], (string["name"], pair)
            students.append(student)
            teachers.append(teacher)
            texts.append(string["text"])
            expected.append(answer["parents"])
    assert [found.tolist() for found in find_parents_batch(students, teachers, texts)] == expected


STRINGS = [
    "Hello world, it's 2024-05-17 and that's 3.14159 or 1,234,567.",
    "  two  leading and   inner blanks  ",
    "\n\nfoo\n\tbar\r\n\t\tbaz \n",
    "def f(x):\n\tif x == 0:\n\t\treturn {'a': [1, 2]}\n    # naïve café\n\treturn f(x - 1)\n",
    "for (let i=0;i<n;i++){ console.log(`${i}\\t`); } // → done",
    "👍👍🏽 👩‍👩‍👧‍👦 🇩🇪🇫🇷 ok 🎉!",
    "東京タワーは1958年に完成した。漢字とカタカナ、mixed English。",
    "你好，世界！这是一个测试。𠮷野家",
    "مرحبا بالعالم، كيف حالك؟ ١٢٣ السَّلَامُ",
    "שלום עולם and ไทยภาษา and Tiếng Việt có dấu",
    "e\u0301a e\u0301\u0323 ﬁne 𝒳y \u200bzero\u200d width",
    "see https://example.org/a?b=c&d=%20e#f or mail <|im_end|> and </s> literally",
    " ",
    "\t",
    "a",
    "日",
]
SIDES = ["chosen", "rejected"]
NAMES = ["smollm2-135m-instruct", "gemma-3-270m", "tokenizer-mistral-v3", "tokenizer-qwen"]


@pytest.fixture(scope="module")
def tokenizers(real_models: Path):
    transformers = pytest.importorskip("transformers")
    return {name: transformers.AutoTokenizer.from_pretrained(real_models / name) for name in NAMES}


@pytest.fixture(scope="module")
def real_texts(pairs: Path):
    with gzip.open(pairs / "hh_harmless_pairs.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in itertools.islice(lines, 40)]
    return [unicodedata.normalize("NFC", text) for text in STRINGS + [row[s] for row in rows for s in SIDES]]


def spelling(tokenizer, ids: list[int], byte_of: dict[str, int]) -> bytes:
    """The bytes that tokens stand for, in a byte-level vocabulary or one of sentencepiece's kind."""
    sentencepiece = tokenizer.convert_tokens_to_ids("▁the") not in (None, tokenizer.unk_token_id)
    out = b""
    for token in tokenizer.convert_ids_to_tokens(ids):
        if not sentencepiece:
            out += bytes(byte_of[symbol] for symbol in token)
        elif token.startswith("<0x") and len(token) == 6:
            out += bytes([int(token[3:5], 16)])
        else:
            out += token.replace("▁", " ").encode()
    return out


def byte_symbols() -> dict[str, int]:
    """Byte-level vocabularies write a printable byte as itself, and the n-th other byte as the character 256 + n."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


@pytest.mark.parametrize(("student_name", "teacher_name"), list(itertools.permutations(NAMES, 2)))
def test_real_tokenizers(tokenizers, real_texts, student_name, teacher_name):
    """I1 to I7, I10 and I11 on what two real tokenizers make of real texts."""
    sides = [
        tokenizers[name](
            real_texts, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        for name in (student_name, teacher_name)
    ]
    batch = find_parents_batch(sides[0]["offset_mapping"], sides[1]["offset_mapping"], real_texts)
    byte_of = byte_symbols()
    for i, (text, parents) in enumerate(zip(real_texts, batch, strict=True)):
        student, teacher = (side["offset_mapping"][i] for side in sides)
        check_partition_and_containment(parents, student, teacher, len(text))
        assert parents.tolist() == parents_by_definition(student, teacher, len(text), text)
        assert parents.tolist() == find_parents(student, teacher, len(text), text).tolist()
        kept = keep_complete(parents, len(student) // 2, len(teacher) // 2)
        assert kept.tolist() == parents[: len(kept)].tolist()
        for start, end, *ranges in parents.tolist():
            spans = [ranges[:2], ranges[2:]]
            for name, side, (first, last) in zip((student_name, teacher_name), sides, spans, strict=True):
                spelled = spelling(tokenizers[name], side["input_ids"][i][first:last], byte_of)
                expected = text[start:end].encode()
                extra_blank = start == 0 and spelled == b" " + expected
                assert spelled == expected or extra_blank, (name, text[start:end], spelled)
