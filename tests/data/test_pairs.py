"""From files and folders to splits: the same rows whatever the container, and nothing lost in silence."""

import csv
import gzip
import json
from dataclasses import replace

import fsspec
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from prefkd.data import sources
from prefkd.data.containers import KINDS
from prefkd.data.mixtures import mixture_sizes
from prefkd.data.pairs import DataConfig, load_pairs
from prefkd.data.settings import MixedRows
from prefkd.errors import DataError

ROWS = [{"prompt": f"Q{i}?", "chosen": f"good {i}", "rejected": f'bad {i}\n, "x"'} for i in range(20)]
ALL = {"held_out_fraction": 0.0}


def write(path, rows=ROWS):
    """Write rows in the container that the file's name asks for."""
    path.parent.mkdir(exist_ok=True)
    container = path.name.removesuffix(".gz").rpartition(".")[2]
    if container == "parquet":
        Dataset.from_list(rows).to_parquet(path)
        return path
    open_text = gzip.open if path.suffix == ".gz" else open
    with open_text(path, "wt", encoding="utf-8", newline="") as file:
        if container == "csv":
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        elif container == "json":
            json.dump(rows, file)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def plain(pairs):
    return [
        {"prompt": row["prompt"][-1]["content"], "chosen": row["chosen"], "rejected": row["rejected"]} for row in pairs
    ]


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz", "p.json", "p.json.gz", "p.csv", "p.csv.gz", "p.parquet"])
def test_every_container_gives_the_same_pairs(tmp_path, name):
    pairs = load_pairs(DataConfig(str(write(tmp_path / name)), **ALL)).train
    assert plain(pairs) == ROWS
    assert pairs[3]["file"] == name
    assert pairs[3]["row"] == 4


def test_json_lines_may_be_named_json(tmp_path):
    path = write(tmp_path / "p.jsonl").rename(tmp_path / "p.json")
    assert plain(load_pairs(DataConfig(str(path), **ALL)).train) == ROWS


def test_a_folder_is_read_file_by_file(tmp_path):
    write(tmp_path / "b.jsonl", ROWS[:5])
    write(tmp_path / "a.csv", ROWS[5:])
    pairs = load_pairs(DataConfig(str(tmp_path), **ALL)).train
    assert plain(pairs) == ROWS[5:] + ROWS[:5]
    assert pairs["file"][-1] == "b.jsonl"


def test_files_of_a_folder_belong_to_the_split_they_are_named_after(tmp_path):
    write(tmp_path / "train-00000.parquet", ROWS[:12])
    (tmp_path / "test").mkdir()
    write(tmp_path / "test" / "part.jsonl", ROWS[12:])
    splits = load_pairs(DataConfig(str(tmp_path), held_out_split="test"))
    assert plain(splits.train) == ROWS[:12]
    assert plain(splits.held_out) == ROWS[12:]
    with pytest.raises(DataError, match=r"no file is named after the split dev; there are test/part\.jsonl, train"):
        load_pairs(DataConfig(str(tmp_path), split="dev"))


def test_a_hub_data_set_is_read_like_a_file(monkeypatch):
    asked = []

    def load_dataset(path, **kwargs):
        asked.append((path, kwargs))
        if kwargs.get("name") == "harmless-base":
            raise ValueError("BuilderConfig 'harmless-base' not found.")
        return Dataset.from_list(ROWS)

    monkeypatch.setattr(sources, "load_dataset", load_dataset)
    config = DataConfig("owner/name", subset="harmless-base", split="train_prefs", revision="v1", **ALL)
    pairs = load_pairs(config).train
    assert plain(pairs) == ROWS
    assert pairs[0]["file"] == "owner/name"
    assert asked[-1] == ("owner/name", {"data_dir": "harmless-base", "split": "train_prefs", "revision": "v1"})


def test_a_hub_data_set_that_is_not_given_out_is_one_clear_line(monkeypatch):
    def load_dataset(path, **kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(sources, "load_dataset", load_dataset)
    with pytest.raises(DataError) as error:
        load_pairs(DataConfig("owner/name"))
    assert str(error.value) == "owner/name: no file here, and the Hub does not give it out: no route to host"


def test_values_of_a_csv_file_stay_text(tmp_path):
    rows = [
        {"prompt": "2+2?", "chosen": "4", "rejected": "None"},
        {"prompt": "Pi?", "chosen": "3.14", "rejected": "NA"},
    ]
    assert plain(load_pairs(DataConfig(str(write(tmp_path / "p.csv", rows)), **ALL)).train) == rows


BAD_LINES = {
    "missing": (json.dumps({"prompt": "Q?", "chosen": "yes"}), "field 'rejected' is missing"),
    "empty": (
        json.dumps({"prompt": "Q?", "chosen": "", "rejected": "no"}),
        "field 'chosen' is empty: expected an answer",
    ),
    "wrong type": (
        json.dumps({"prompt": "Q?", "chosen": {"a": 1}, "rejected": "no"}),
        "field 'chosen' is an object: expected text",
    ),
    "not an object": (json.dumps(["Q?", "yes", "no"]), "it is of type list: expected an object with named fields"),
    "not JSON": ('{"prompt": "Q?", "chosen"', "not valid JSON (Expecting ':' delimiter at column 26)"),
    "not UTF-8": (b'{"prompt": "\xff"}', "not valid UTF-8 (invalid start byte at byte 12)"),
}


@pytest.mark.parametrize(("line", "problem"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_row_is_an_error_that_names_file_row_and_field(tmp_path, line, problem):
    path = write(tmp_path / "p.jsonl")
    lines = path.read_bytes().splitlines()
    lines[2] = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(DataError) as error:
        load_pairs(DataConfig(str(path)))
    assert str(error.value).startswith(f"row 3 of p.jsonl: {problem}")
    assert str(error.value).endswith("; fix the data, or leave such rows out with on_bad_row: skip")

    splits = load_pairs(DataConfig(str(path), on_bad_row="skip", **ALL))
    assert plain(splits.train) == ROWS[:2] + ROWS[3:]
    assert [str(row) for row in splits.skipped] == [str(error.value).partition("; fix")[0]]


def test_all_bad_rows_are_counted(tmp_path):
    rows = [row | {"chosen": "" if i % 5 == 1 else row["chosen"]} for i, row in enumerate(ROWS)]
    path = str(write(tmp_path / "p.jsonl", rows))
    with pytest.raises(DataError, match=r"row 2 of p.jsonl: field 'chosen' is empty.*; 3 more rows are bad; fix"):
        load_pairs(DataConfig(path))
    for _ in range(2):  # the second time out of the cache
        splits = load_pairs(DataConfig(path, on_bad_row="skip", **ALL))
        assert [row.row for row in splits.skipped] == [2, 7, 12, 17]
        assert len(splits.train) == 16


def test_a_first_row_without_a_form_does_not_decide_for_the_others(tmp_path):
    path = str(write(tmp_path / "p.jsonl", [{"text": "?"}, *ROWS]))
    splits = load_pairs(DataConfig(path, on_bad_row="skip", **ALL))
    assert plain(splits.train) == ROWS
    assert splits.skipped[0].reason == (
        "field 'chosen' is missing: tell with data.columns which it is (the row has text)"
    )


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("p.parquet", b"PAR0", "p.parquet is not Parquet; name it after what it is"),
        ("p.parquet", b"PAR1 and no more", "p.parquet: cannot be read as .parquet ("),
        ("p.jsonl.gz", b"{}", "p.jsonl.gz is not gzip; name it after what it is"),
        ("p.jsonl.gz", b"\x1f\x8b and no more", "p.jsonl.gz: cannot be read as .jsonl.gz ("),
        ("p.json", b'[{"prompt": ', "p.json: cannot be read as .json"),
        ("p.csv", b'prompt,chosen,rejected\n"a,b\n', "p.csv: cannot be read as .csv"),
        ("p.jsonl", b"", "p.jsonl: there are no rows in it"),
    ],
)
def test_a_broken_file_is_one_clear_line(tmp_path, name, content, problem):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        load_pairs(DataConfig(str(path)))
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


def test_reverse_swaps_the_answers(tmp_path):
    path = str(write(tmp_path / "p.jsonl"))
    straight, reverse = (load_pairs(DataConfig(path, reverse=flag)) for flag in (False, True))
    for one, other in ((straight.train, reverse.train), (straight.held_out, reverse.held_out)):
        assert one["chosen"][:] == other["rejected"][:]
        assert one["rejected"][:] == other["chosen"][:]
        assert one["row"][:] == other["row"][:]
        assert one.features == other.features
        assert one._fingerprint != other._fingerprint


def test_a_part_is_held_out_by_prompt_and_seed(tmp_path):
    rows = [row | {"prompt": f"Q{i // 2}?"} for i, row in enumerate(ROWS)]
    path = str(write(tmp_path / "p.jsonl", rows))
    splits = load_pairs(DataConfig(path, held_out_fraction=0.3))
    train, held_out = plain(splits.train), plain(splits.held_out)
    assert len(held_out) == 6
    assert sorted(row["chosen"] for row in train + held_out) == sorted(row["chosen"] for row in rows)
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held_out}
    assert plain(load_pairs(DataConfig(path, held_out_fraction=0.3)).held_out) == held_out
    assert plain(load_pairs(DataConfig(path, held_out_fraction=0.3, seed=1)).held_out) != held_out


def test_pairs_of_one_prompt_are_trained_on(tmp_path):
    rows = [row | {"prompt": "Human: rewrite line 3"} for row in ROWS]
    splits = load_pairs(DataConfig(str(write(tmp_path / "p.jsonl", rows))))
    assert plain(splits.train) == rows
    assert len(splits.held_out) == 0


def test_a_limit_takes_a_seeded_part(tmp_path):
    path = str(write(tmp_path / "p.jsonl"))
    small, large, other = (
        load_pairs(DataConfig(path, limit=limit, seed=seed, **ALL)).train["row"][:]
        for limit, seed in ((5, 0), (10, 0), (5, 1))
    )
    assert len(small) == 5
    assert set(small) < set(large)
    assert small == sorted(small)
    assert small != other
    held_out = load_pairs(DataConfig(path, held_out_fraction=0.5, held_out_limit=4)).held_out
    assert len(held_out) == 4


def test_a_held_out_source_is_read_whole(tmp_path):
    train, held_out = write(tmp_path / "a.jsonl"), write(tmp_path / "b.jsonl", ROWS[:3])
    splits = load_pairs(DataConfig(str(train), held_out_source=str(held_out)))
    assert (len(splits.train), len(splits.held_out)) == (20, 3)


def test_the_cache_knows_content_not_place(tmp_path):
    first = load_pairs(DataConfig(str(write(tmp_path / "p.jsonl")))).train
    (tmp_path / "elsewhere").mkdir()
    moved = load_pairs(DataConfig(str(write(tmp_path / "elsewhere" / "p.jsonl")))).train
    assert moved._fingerprint == first._fingerprint
    assert moved.cache_files == first.cache_files
    changed = load_pairs(DataConfig(str(write(tmp_path / "p.jsonl", [*ROWS[:-1], ROWS[0]])))).train
    assert changed._fingerprint != first._fingerprint


PROBLEMS = {
    "no file": ({"source": "data/pears.jsonl"}, "source: data/pears.jsonl does not exist; did you mean pairs.jsonl?"),
    "no id": ({"source": "pairs"}, "source: pairs does not exist"),
    "unknown suffix": (
        {"source": "data/pairs.txt"},
        f"source: data/pairs.txt is plain text, whose lines have no fields; use {KINDS}",
    ),
    "empty folder": (
        {"source": "empty"},
        f"source: empty holds no data files; use {KINDS}",
    ),
    "no such split": (
        {"source": "data", "split": "dev"},
        "split: data: no file is named after the split dev; there are pairs.jsonl",
    ),
    "no such held-out split": (
        {"source": "data", "held_out_split": "test"},
        "held_out_split: data: no file is named after the split test; there are pairs.jsonl",
    ),
    "same source": (
        {"held_out_source": "data/pairs.jsonl"},
        "held_out_source: data/pairs.jsonl is what is trained on; name another or leave it out",
    ),
    "same split": (
        {"source": "owner/name", "held_out_split": "train"},
        "held_out_split: train is what is trained on; name another or leave it out",
    ),
    "split of a file": (
        {"held_out_split": "test"},
        "held_out_split: test means nothing to a file; name a held_out_source instead",
    ),
    "subset of a file": ({"subset": "x"}, "subset: x means nothing to a file; leave it out"),
    "training split of a file": ({"split": "test"}, "split: test means nothing to a file; leave it out"),
    "fraction": (
        {"held_out_fraction": 1.0},
        "held_out_fraction: 1.0 is not a part of the data; use 0.1 for a tenth",
    ),
    "limit": ({"limit": 0}, "limit: 0 is too small; use 1 or more"),
    "lengths": (
        {"max_length": 256},
        "max_length: 256 leaves no room for an answer after 256 tokens of prompt; raise it or lower max_prompt_length",
    ),
}


@pytest.mark.parametrize(("settings", "problem"), PROBLEMS.values(), ids=PROBLEMS)
def test_a_config_that_cannot_work_says_so(tmp_path, monkeypatch, settings, problem):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "empty").mkdir()
    write(tmp_path / "data" / "pairs.jsonl")
    (tmp_path / "data" / "pairs.txt").touch()
    assert list(DataConfig("data/pairs.jsonl").problems()) == []
    assert list(DataConfig("owner/name").problems()) == []
    assert list(map(str, DataConfig(**({"source": "data/pairs.jsonl"} | settings)).problems())) == [problem]


@pytest.mark.parametrize(
    ("name", "count"), [("hh_harmless_pairs", 1200), ("hh_harmless_raw", 200), ("sharegpt_dpo_en", 300)]
)
def test_real_data_is_read_without_loss(pairs, name, count):
    splits = load_pairs(DataConfig(str(pairs / f"{name}.jsonl.gz")))
    assert len(splits.train) + len(splits.held_out) == count
    assert len(splits.held_out) == pytest.approx(count / 10, abs=3)
    assert splits.skipped == []
    for row in splits.train:
        assert row["prompt"][-1]["role"] == "user"
        assert row["chosen"].strip() and row["rejected"].strip()


@pytest.mark.parametrize("name", ["hh_harmless_pairs", "hh_harmless_raw"])
def test_hh_transcripts_become_turns(pairs, name):
    for row in load_pairs(DataConfig(str(pairs / f"{name}.jsonl.gz"), **ALL)).train:
        turns = row["prompt"]
        assert [turn["role"] for turn in turns] == ["user", "assistant"] * (len(turns) // 2) + ["user"]
        assert all(turn["content"] == turn["content"].strip() for turn in turns)


# -------------------------------------------------------------------------------------------- forms of a whole file

TURNS = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: {}?\n\nAssistant:"


def test_a_prompt_that_begins_like_a_transcript_changes_no_other_row(tmp_path):
    rows = [row | {"prompt": "Human: rewrite line 3"} if i == 0 else row for i, row in enumerate(ROWS)]
    for order in (rows, rows[::-1]):
        splits = load_pairs(DataConfig(str(write(tmp_path / "p.jsonl", order)), **ALL))
        assert plain(splits.train) == order
        assert splits.formats == {"standard": 20}


def test_a_file_of_transcripts_and_other_text_is_named_in_any_order(tmp_path):
    rows = [row | {"prompt": TURNS.format(i)} if i % 7 == 3 else row for i, row in enumerate(ROWS)]
    for order in (rows, rows[::-1]):
        with pytest.raises(DataError) as error:
            load_pairs(DataConfig(str(write(tmp_path / "p.jsonl", order)), on_bad_row="skip"))
        counts = "3 of hh, 17 of standard"
        problem = f"p.jsonl mixes rows of several formats ({counts}); set data.format, or split the file"
        assert str(error.value) == problem
    assert len(load_pairs(DataConfig(str(tmp_path / "p.jsonl"), format="standard", **ALL)).train) == 20


def test_forms_that_differ_in_type_are_read_row_by_row(tmp_path):
    whole = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "yes"}]
    other = {"chosen": whole, "rejected": [whole[0], {"role": "assistant", "content": "no"}]}
    path = str(write(tmp_path / "p.jsonl", [*ROWS[:3], other, other | {"prompt": "Q?"}]))
    splits = load_pairs(DataConfig(path, **ALL))
    assert len(splits.train) == 5
    assert splits.formats == {"standard": 3, "conversational": 1, "ultrafeedback": 1}


def test_fields_that_are_not_read_are_counted_and_said_once(tmp_path, caplog):
    rows = [row | {"critique": "Short." if i < 7 else "", "score": i} for i, row in enumerate(ROWS)]
    path = str(write(tmp_path / "p.jsonl", rows))
    for _ in range(2):  # the second time out of the cache
        caplog.clear()
        splits = load_pairs(DataConfig(path, **ALL))
        assert splits.unread == splits.report["unread_fields"] == {"critique": 7}
        assert splits.omissions == "0 bad rows skipped, not read: critique (7 rows)"
        [said] = [record.getMessage() for record in caplog.records]
        assert said == f"{path}: fields that hold something and are not read: critique (7 rows)"
    caplog.clear()
    assert load_pairs(DataConfig(str(write(tmp_path / "q.jsonl")), **ALL)).unread == {}
    assert not caplog.records


def test_messages_in_csv_are_not_learned_as_text(tmp_path):
    whole = "[{{'content': 'Hi', 'role': 'user'}}, {{'content': '{}', 'role': 'assistant'}}]"
    rows = [{"prompt": "Hi", "chosen": whole.format(f"Good {i}"), "rejected": whole.format("Bad")} for i in range(3)]
    pairs = load_pairs(DataConfig(str(write(tmp_path / "p.csv", rows)), **ALL)).train
    assert pairs["chosen"][:] == ["Good 0", "Good 1", "Good 2"]
    assert pairs[0]["prompt"] == [{"role": "user", "content": "Hi"}]


# ------------------------------------------------------------------------------------------------ other file systems


def test_files_of_another_file_system_are_fetched_once(tmp_path, monkeypatch):
    system = fsspec.filesystem("memory")
    system.pipe("/bucket/p.jsonl", write(tmp_path / "p.jsonl").read_bytes())
    system.pipe("/bucket/more/train-0.jsonl", write(tmp_path / "q.jsonl", ROWS[:5]).read_bytes())
    assert list(DataConfig("memory://bucket/p.jsonl").problems()) == []
    assert plain(load_pairs(DataConfig("memory://bucket/p.jsonl", **ALL)).train) == ROWS
    assert len(load_pairs(DataConfig("memory://bucket/more", **ALL)).train) == 5
    monkeypatch.setattr(type(system), "get_file", None)
    pairs = load_pairs(DataConfig("memory://bucket/p.jsonl", **ALL)).train
    assert pairs[0]["file"] == "p.jsonl"
    with pytest.raises(DataError, match=r"memory://bucket/none\.jsonl: there is no such file or folder"):
        load_pairs(DataConfig("memory://bucket/none.jsonl"))
    [problem] = map(str, DataConfig("nos3://bucket/p.jsonl").problems())
    assert problem.startswith("source: nos3://bucket/p.jsonl: fsspec knows no nos3://")


@pytest.mark.parametrize(
    "source",
    [
        "https://me:hunter2@host/p.jsonl",
        "https://hunter2@host/p.jsonl",
        "HTTPS://me:hunter2@host/p.jsonl",
        "https://host/p.jsonl?key=hunter2",
        "sftp://me:hunter2@host/p.jsonl",
    ],
)
def test_an_address_with_a_password_or_a_key_is_refused_without_showing_it(source):
    problems = [str(problem) for problem in DataConfig(source, held_out_source=source).problems()]
    assert all("://host/p.jsonl has a password or a query" in problem for problem in problems[:2])
    assert len(problems) == 3 and "hunter2" not in "".join(problems)


def test_an_account_without_a_password_is_no_secret():
    assert sources.WITH_KEYS.match("sftp://me@host/p.jsonl") is None
    assert sources.WITH_KEYS.match("abfs://container@account.dfs.core.windows.net/p.jsonl") is None
    assert sources.WITH_KEYS.match("https://host/package@1.0/p.jsonl") is None


# --------------------------------------------------------------------------------------------------------- mixtures


def test_a_mixture_has_its_shares(tmp_path):
    parts = []
    for name, count, weight in (("a", 120, 0.5), ("b", 500, 0.3), ("c", 90, 0.2)):
        rows = [{"prompt": f"{name} {i}", "chosen": f"good {i}", "rejected": "bad"} for i in range(count)]
        parts.append(MixedRows(str(write(tmp_path / name / "p.jsonl", rows)), name=name, weight=weight))
    config = DataConfig(sources=parts, seed=3)
    splits = load_pairs(config)
    total = len(splits.train)
    assert {name: part["pairs"] / total for name, part in splits.sources.items()} == pytest.approx(
        {"a": 0.5, "b": 0.3, "c": 0.2}, abs=0.01
    )
    assert total == 216 and splits.sources["a"] == {"pairs": 108, "share": 0.5, "held_out": 12}
    assert splits.train[0]["file"] == "a/p.jsonl"
    assert len({(row["file"], row["row"]) for row in splits.train}) == total
    again = load_pairs(DataConfig(sources=parts, seed=3)).train
    assert again["prompt"][:] == splits.train["prompt"][:] and again._fingerprint == splits.train._fingerprint
    assert load_pairs(DataConfig(sources=parts, seed=4)).train["prompt"][:] != splits.train["prompt"][:]
    limited = [replace(part, weight=None, limit=10) for part in parts]
    assert {part["pairs"] for part in load_pairs(DataConfig(sources=limited)).sources.values()} == {10}


@given(st.lists(st.tuples(st.integers(50, 10**6), st.floats(0.05, 1)), min_size=1, max_size=5))
def test_no_source_gives_more_than_it_has_and_all_their_share(parts):
    available, weights = zip(*parts, strict=True)
    sizes = mixture_sizes(available, weights)
    assert all(size <= most for size, most in zip(sizes, available, strict=True))
    assert any(size == most for size, most in zip(sizes, available, strict=True))
    for size, weight in zip(sizes, weights, strict=True):
        assert size == pytest.approx(sum(sizes) * weight / sum(weights), abs=len(sizes))


def test_repeated_and_leaked_prompts_are_counted_and_dropped(tmp_path):
    rows = [
        {"prompt": prompt, "chosen": f"good {i}", "rejected": "bad"}
        for i, prompt in enumerate(["A b", "c", " a  B", "d"])
    ]
    path = str(write(tmp_path / "p.jsonl", rows))
    held_out = str(write(tmp_path / "h.jsonl", [{"prompt": "D", "chosen": "x", "rejected": "y"}]))
    counted = load_pairs(DataConfig(path, held_out_source=held_out))
    assert (len(counted.train), counted.repeated_prompts, counted.leaked_prompts) == (4, 1, 1)
    assert counted.report["leaked_prompts"] == 1
    assert counted.omissions == "0 bad rows skipped, 1 with a held-out prompt kept"
    dropped = load_pairs(DataConfig(path, held_out_source=held_out, duplicates="drop", leakage="drop"))
    assert [row["prompt"][0]["content"] for row in dropped.train] == ["A b", "c"]
    assert (dropped.repeated_prompts, dropped.leaked_prompts) == (0, 0)
    left_out = "1 with a held-out prompt left out, 1 with a repeated prompt left out"
    assert dropped.omissions == f"0 bad rows skipped, {left_out}"
    # What is not trained on, for whatever reason, is not counted.
    limited = load_pairs(DataConfig(path, held_out_source=held_out, limit=1, leakage="drop"))
    assert (limited.repeated_prompts, limited.leaked_prompts) == (0, 0)
    # Prompts that differ in capitals and blanks alone are held out together.
    splits = load_pairs(DataConfig(path, held_out_fraction=0.5))
    assert splits.leaked_prompts == 0 and len(splits.held_out) in (2, 3)


def test_prompts_of_two_sources_are_dropped_and_held_out_together(tmp_path):
    def rows(name, numbers):
        return [{"prompt": f"Question {i}?", "chosen": f"good {i} {name}", "rejected": "bad"} for i in numbers]

    parts = [
        MixedRows(str(write(tmp_path / name / "p.jsonl", rows(name, numbers))), name=name)
        for name, numbers in (("a", range(40)), ("b", range(20, 60)))
    ]
    splits = load_pairs(DataConfig(sources=parts, held_out_fraction=0.3))
    train, held_out = ([row["prompt"] for row in plain(part)] for part in (splits.train, splits.held_out))
    assert len(train) + len(held_out) == 80 and len(held_out) == pytest.approx(24, abs=4)
    assert not set(train) & set(held_out) and splits.leaked_prompts == 0
    assert splits.repeated_prompts == len(train) - len(set(train)) > 0
    dropped = load_pairs(DataConfig(sources=parts, held_out_fraction=0.3, duplicates="drop"))
    prompts = [row["prompt"] for row in plain(dropped.train)]
    assert len(prompts) == len(set(prompts)) and set(prompts) == set(train)
    assert dropped.report["repeated_prompts_dropped"] == splits.repeated_prompts
    assert f"{splits.repeated_prompts} with a repeated prompt left out" in dropped.omissions


MIXTURES = {
    "both": (
        {"source": "data/pairs.jsonl", "sources": [{"source": "data/pairs.jsonl"}]},
        "source: goes with no sources",
    ),
    "neither": ({"source": None}, "source: missing; give a string"),
    "a missing weight": (
        {"sources": [{"source": "data/pairs.jsonl", "weight": 1.0}, {"source": "data/more.jsonl"}]},
        "sources[1].weight: missing; give one to each source, or to none",
    ),
    "one name": (
        {"sources": [{"source": "data/pairs.jsonl"}, {"source": "data/pairs.jsonl"}]},
        "sources[0].name: pairs is the name of two sources; give one of them another",
    ),
    "columns": (
        {"sources": [{"source": "data/pairs.jsonl"}], "columns": {"prompt": "q"}},
        "columns: belongs to each of sources; move it there",
    ),
}


@pytest.mark.parametrize(("values", "problem"), MIXTURES.values(), ids=MIXTURES)
def test_a_mixture_that_cannot_work_says_so(tmp_path, monkeypatch, values, problem):
    monkeypatch.chdir(tmp_path)
    for name in ("pairs", "more"):
        write(tmp_path / "data" / f"{name}.jsonl")
    values = values | {"sources": [MixedRows(**part) for part in values.get("sources", [])]}
    assert str(next(iter(DataConfig(**values).problems()))).startswith(problem)
