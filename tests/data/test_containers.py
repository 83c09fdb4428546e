"""Whatever pandas, datasets or an editor writes is read as the same rows, or named for what it is."""

import bz2
import gzip
import io
import json
import lzma
import os
import tarfile
import zipfile

import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkd.data.containers import suffix_of
from prefkd.data.pairs import DataConfig, load_pairs
from prefkd.data.sources import open_source, source_problems
from prefkd.data.tables import rows_of_object
from prefkd.errors import DataError

ROWS = [{"prompt": f"Q{i}; ü?", "chosen": f'good "{i}",\n\tx', "rejected": f"bad; {i}"} for i in range(4)]
TALKS = [
    {"prompt": [{"role": "user", "content": f"Q{i}?"}], "chosen": [{"role": "assistant", "content": "Yes"}], "n": None}
    for i in range(3)
]
FRAME = pd.DataFrame(ROWS)
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
MARK = b"\xef\xbb\xbf"


def read(path, split="train"):
    return [row for rows in open_source(str(path), split=split, subset=None).parts.values() for _, row in rows()]


def problem(path):
    with pytest.raises(DataError) as error:
        read(path)
    assert "\n" not in str(error.value)
    return str(error.value).replace(f"{path.parent}/", "")


def stream(path):
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)


def zipped(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inner.jsonl", LINES)


def zstd(path):
    with pa.output_stream(path, compression="zstd") as file:
        file.write(LINES)


def shard(files, packing=""):
    """Writes a tar file of these files."""

    def write(path):
        with tarfile.open(path, f"w:{packing}") as archive:
            for name, content in files:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))

    return write


FIELDS = [(f"{i}.{name}.txt", text.encode()) for i, row in enumerate(ROWS) for name, text in row.items()]
SAMPLES = [(f"a/{i}.json", json.dumps(row).encode()) for i, row in enumerate(ROWS)]

WRITERS = {
    "marked.json": lambda path: path.write_bytes(MARK + json.dumps(ROWS).encode()),
    "marked.jsonl": lambda path: path.write_bytes(MARK + LINES),
    "marked.csv": lambda path: FRAME.to_csv(path, index=False, encoding="utf-8-sig"),
    "commas.jsonl": lambda path: path.write_bytes(LINES.replace(b"\n", b",\n")),
    "array.jsonl": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "lines.json": lambda path: path.write_bytes(b"\n" + LINES),
    "p.ndjson": lambda path: path.write_bytes(LINES),
    "p.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES)),
    "p.jsonl.bz2": lambda path: path.write_bytes(bz2.compress(LINES)),
    "p.jsonl.xz": lambda path: path.write_bytes(lzma.compress(LINES)),
    "p.jsonl.zst": zstd,
    "p.jsonl.zip": zipped,
    "records.json": lambda path: FRAME.to_json(path, orient="records"),
    "columns.json": lambda path: FRAME.to_json(path),
    "split.json": lambda path: FRAME.to_json(path, orient="split"),
    "index.json": lambda path: FRAME.to_json(path, orient="index", indent=2),
    "table.json": lambda path: FRAME.to_json(path, orient="table", index=False),
    "data.json": lambda path: path.write_text(json.dumps({"version": 1, "data": ROWS})),
    "viewer.json": lambda path: path.write_text(
        json.dumps({"features": [{"name": "prompt"}], "rows": [{"row_idx": 0, "row": row} for row in ROWS]})
    ),
    "lists.json": lambda path: path.write_text(json.dumps(FRAME.to_dict(orient="list"))),
    "semicolons.csv": lambda path: FRAME.to_csv(path, index=False, sep=";"),
    "tabs.csv": lambda path: FRAME.to_csv(path, index=False, sep="\t"),
    "p.tsv": lambda path: FRAME.to_csv(path, index=False, sep="\t"),
    "excel.csv": lambda path: path.write_text("sep=;\n" + FRAME.to_csv(index=False, sep=";")),
    "p.csv.zip": lambda path: FRAME.to_csv(path, index=False),
    "p.parquet": lambda path: FRAME.to_parquet(path, index=False),
    "p.feather": lambda path: pyarrow.feather.write_feather(FRAME, path),
    "stream.arrow": stream,
    "samples.tar": shard(SAMPLES),
    "fields.tar.gz": shard(FIELDS, "gz"),
    "lines.tar": shard([("._x.jsonl", b"\0"), ("x.jsonl", LINES)]),
    "tables.tar": shard(
        [("a.json", json.dumps(ROWS[:1]).encode()), ("b.json", json.dumps({"data": ROWS[1:]}).encode())]
    ),
    "both.tar": shard(
        [
            (f"{i}.{end}", part)
            for i, row in enumerate(ROWS)
            for end, part in (
                ("json", json.dumps({name: row[name] for name in ("prompt", "chosen")}).encode()),
                ("rejected.txt", row["rejected"].encode()),
            )
        ]
    ),
    "saved": lambda path: Dataset.from_list(ROWS).save_to_disk(path),
    "splits": lambda path: DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1])).save_to_disk(
        path
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_way_of_writing_gives_the_same_rows(tmp_path, name):
    WRITERS[name](tmp_path / name)
    assert list(source_problems(str(tmp_path / name))) == []
    assert read(tmp_path / name) == ROWS


@pytest.mark.parametrize("name", ["p.json", "p.jsonl", "p.parquet", "saved"])
def test_messages_are_read_whatever_holds_them(tmp_path, name):
    path = tmp_path / name
    if name == "p.parquet":
        Dataset.from_list(TALKS).to_parquet(path)
    elif name == "saved":
        Dataset.from_list(TALKS).save_to_disk(path)
    else:
        path.write_text(json.dumps(TALKS[0]) if name == "p.json" else "".join(json.dumps(row) + "\n" for row in TALKS))
    assert read(path) == (TALKS[:1] if name == "p.json" else TALKS)


def test_a_saved_split_is_found_by_its_name(tmp_path):
    WRITERS["splits"](tmp_path / "splits")
    assert read(tmp_path / "splits", "test") == ROWS[:1]
    with pytest.raises(DataError, match="splits: there is no split tset; did you mean test"):
        read(tmp_path / "splits", "tset")
    first = load_pairs(DataConfig(str(tmp_path / "splits"), held_out_split="test"))
    assert (len(first.train), len(first.held_out)) == (4, 1)


NAMED = {
    "utf16.csv": ("prompt,chosen,rejected\n".encode("utf-16"), "utf16.csv is UTF-16 text, not CSV; save it as UTF-8"),
    "bare16.csv": ("prompt,chosen\n".encode("utf-16-le"), "bare16.csv is UTF-16 text, not CSV; save it as UTF-8"),
    "latin.csv": (
        "prompt,chosen,rejected\nÜ?,a,b\n".encode("latin-1"),
        "latin.csv: cannot be read as .csv (line 2 is not UTF-8; save it as UTF-8)",
    ),
    "packed.jsonl": (gzip.compress(LINES), "packed.jsonl is gzip, not JSONL; name it packed.jsonl.gz"),
    "text.jsonl.gz": (LINES, "text.jsonl.gz is not gzip; name it after what it is"),
    "wrong.parquet": (b"ARROW1\x00\x00", "wrong.parquet is not Parquet, but Arrow; name it after what it is"),
    "pointer.parquet": (
        b"version https://git-lfs.github.com/spec/v1\n",
        "pointer.parquet is not Parquet, but a Git LFS pointer; fetch the file itself with git lfs pull",
    ),
    "page.json": (b"<!DOCTYPE html><html>", "page.json is a web page, not JSON; download the file itself"),
    "book.xlsx": (b"PK\x03\x04", "book.xlsx is a spreadsheet; use .jsonl, "),
    "book.csv": (
        b"PK\x03\x04\x14\x00\x06\x00[Content_Types].xml",
        "book.csv is an Excel workbook, not CSV; save it as CSV",
    ),
    "p.txt": (b"Why?\n", "p.txt is plain text, whose lines have no fields; use .jsonl, "),
    "p.pkl": (b"\x80\x04", "p.pkl is a pickle, which can run code when it is read; use .jsonl, "),
    "p.parquet.gz": (b"\x1f\x8b", "p.parquet.gz cannot be read; use .jsonl, "),
    "empty.jsonl": (b"", "empty.jsonl: there are no rows in it"),
    "twice.csv": (
        b"prompt,chosen,chosen\n1,2,3\n",
        "twice.csv: cannot be read as .csv (several columns are named 'cho",
    ),
    "tables.json": (
        json.dumps({"dev": ROWS, "test": ROWS}).encode(),
        "tables.json: cannot be read as .json (it holds several tables: dev, test; write each into a file of its own)",
    ),
    "ragged.json": (
        b'{"prompt": ["a", "b"], "chosen": ["c"]}',
        "ragged.json: cannot be read as .json (its columns have different lengths)",
    ),
    "p.tar": (LINES, "p.tar is not tar; name it after what it is"),
    "p.rar": (b"Rar!", "p.rar is an archive; use .jsonl, "),
    "cut.json": (b'[{"prompt": "Q"', "cut.json: cannot be read as .json ("),
    "deep.json": (b"[" * 100_000, "deep.json: cannot be read as .json (nested too deeply)"),
    "named.json": (b'[{"prompt": 1,\n"prompt": 2}]', "named.json: cannot be read as .json (two fields are named 'pro"),
}


@pytest.mark.parametrize("name", NAMED)
def test_what_cannot_be_read_is_named(tmp_path, name):
    content, expected = NAMED[name]
    (tmp_path / name).write_bytes(content)
    assert problem(tmp_path / name).startswith(expected)


def test_what_is_wrong_in_a_shard_is_told_by_its_file(tmp_path):
    files = [
        ("0.json", b"{"),
        ("1.jpg", b"x"),
        ("1.json", b"{}"),
        ("2.prompt.txt", b"\xff"),
        ("3.jsonl", b"{\n"),
        ("4.json", b'{"prompt": 1, "prompt": 2}'),
        ("5.json", b"[" * 100_000),
        ("6.json", b'{"prompt": "Q"}'),
        ("6.prompt.txt", b"Another"),
        *SAMPLES,
    ]
    shard(files)(tmp_path / "p.tar")
    *bad, first, _, _, _ = read(tmp_path / "p.tar")
    assert first == ROWS[0] and all(isinstance(row, DataError) and "\n" not in str(row) for row in bad)
    assert [str(row).partition(" (")[0] for row in bad] == [
        "0.json is not valid JSON",
        "1.jpg cannot be read: expected .json, .jsonl or .txt in a shard",
        "2.prompt.txt is not valid UTF-8",
        "a line of 3.jsonl is not valid JSON",
        "4.json is not valid JSON",
        "5.json is not valid JSON",
        "6.prompt.txt has field 'prompt' once more; remove one of the files",
    ]
    (tmp_path / "cut.tar").write_bytes((tmp_path / "p.tar").read_bytes()[:700])
    assert problem(tmp_path / "cut.tar").startswith("cut.tar: cannot be read as .tar (")


def test_a_shard_of_a_folder_with_links(tmp_path):
    """`tar -cf p.tar .` writes ./ before each name, and two files of one inode as a file and a link."""
    shard([(f"./{name}", content) for name, content in SAMPLES])(tmp_path / "p.tar")
    assert [*read(tmp_path / "p.tar")] == ROWS
    with tarfile.open(tmp_path / "p.tar", "a") as archive:
        link = tarfile.TarInfo("./copy.json")
        link.type, link.linkname = tarfile.LNKTYPE, f"./{SAMPLES[0][0]}"
        archive.addfile(link)
    assert str([*read(tmp_path / "p.tar")][-1]).startswith("copy.json is a link: expected a file in a shard")


def test_an_archive_of_several_files_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "p.csv.zip", "w") as archive:
        archive.writestr("a.csv", "x")
        archive.writestr("b.csv", "y")
    assert "it holds 2 files: expected one; unpack it into a folder" in problem(tmp_path / "p.csv.zip")


@pytest.mark.parametrize("content", [b"prompt,chosen,rejected\n", b"[]", b"\n\n"])
def test_a_file_without_rows_says_so(tmp_path, content):
    path = tmp_path / ("p.csv" if b"," in content else "p.json")
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path.name}: there are no rows in it"):
        load_pairs(DataConfig(str(path)))


def test_what_is_not_an_ordinary_file_is_named(tmp_path):
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "gone.jsonl")
    assert problem(tmp_path / "link.jsonl").startswith("link.jsonl is a link to ")
    assert problem(tmp_path / "link.jsonl").endswith("gone.jsonl, which does not exist")
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert problem(tmp_path / "pipe.jsonl").startswith("pipe.jsonl is not a file that can be read twice")
    (tmp_path / "folder.jsonl").mkdir()
    assert problem(tmp_path / "folder.jsonl").startswith("folder.jsonl holds no data files; use .jsonl")
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "a.jsonl").write_bytes(LINES)
    (tmp_path / "some" / "b.jsonl").symlink_to(tmp_path / "gone.jsonl")
    assert "b.jsonl is a link to " in problem(tmp_path / "some")


def test_hidden_files_and_notes_of_a_folder_are_not_data(tmp_path):
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "old.jsonl").write_text("{")
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / "README.md").write_text("Pairs.")
    (tmp_path / "a.jsonl").write_bytes(LINES)
    assert read(tmp_path) == ROWS


def test_rows_of_csv_keep_their_numbers_and_gaps(tmp_path):
    (tmp_path / "p.csv").write_text('prompt,chosen,rejected\n"Q\n1",a,b\nQ2,a\nQ3,a,b,c\n')
    rows = list(open_source(str(tmp_path / "p.csv"), split="train", subset=None).parts["p.csv"]())
    assert [number for number, _ in rows] == [1, 2, 3]
    assert rows[1][1] == {"prompt": "Q2", "chosen": "a", "rejected": None}
    assert str(rows[2][1]) == "it has more values than the header has names"


def test_gaps_that_pandas_writes_count_as_absent(tmp_path):
    frame = pd.DataFrame([ROWS[0], ROWS[1] | {"system": "Be brief."}])
    for name, write in {"p.csv": frame.to_csv, "p.parquet": frame.to_parquet, "p.json": frame.to_json}.items():
        write(tmp_path / name)
        prompts = load_pairs(DataConfig(str(tmp_path / name), held_out_fraction=0.0)).train["prompt"]
        assert [len(prompt) for prompt in prompts] == [1, 2], name
    (tmp_path / "p.jsonl").write_text('{"prompt": "Q?", "chosen": "a", "rejected": NaN}\n')
    with pytest.raises(DataError, match=r"row 1 of p\.jsonl: field 'rejected' is missing"):
        load_pairs(DataConfig(str(tmp_path / "p.jsonl")))


cells = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), max_size=12)
tables = st.lists(st.fixed_dictionaries({"prompt": cells, "chosen": cells, "rejected": cells}), min_size=2, max_size=4)


@settings(max_examples=40, deadline=None)
@given(rows=tables, orient=st.sampled_from(["records", "columns", "split", "index", "list"]))
def test_any_table_survives_every_orient(rows, orient):
    frame = pd.DataFrame(rows)
    text = json.dumps(frame.to_dict(orient="list")) if orient == "list" else frame.to_json(orient=orient)
    assert [row for _, row in rows_of_object(json.loads(text), 1)] == rows


@settings(max_examples=40, deadline=None)
@given(rows=tables, delimiter=st.sampled_from(",;\t|"), mark=st.booleans())
def test_any_text_survives_every_delimiter(tmp_path_factory, rows, delimiter, mark):
    path = tmp_path_factory.mktemp("csv") / "p.csv"
    pd.DataFrame(rows).to_csv(path, index=False, sep=delimiter, encoding="utf-8-sig" if mark else "utf-8")
    assert read(path) == rows


def test_the_end_of_a_name_says_how_a_file_is_read(tmp_path):
    ends = ["a.JSONL", "a.csv.GZ", "a.b.parquet", "a.jsonl.bak", "jsonl", "a.arrow.zst"]
    assert [suffix_of(tmp_path / end) for end in ends] == [".jsonl", ".csv.gz", ".parquet", None, None, None]
