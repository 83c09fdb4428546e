"""The runner, the table and the controls of benchmarks/study."""

import json
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks" / "study"))
import readings  # pyright: ignore[reportMissingImports]
import run as runner  # pyright: ignore[reportMissingImports]
import summary  # pyright: ignore[reportMissingImports]
from settings import Arguments  # pyright: ignore[reportMissingImports]
from shuffle_scores import shuffled  # pyright: ignore[reportMissingImports]


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_reading(out: Path, part: str, name: str, margins: list[float], checkpoint: str = "model") -> None:
    """As `evaluate` writes it: pairs whose rejected answer has log-prob -10."""
    folder = out / "read" / part / name
    records = [
        {"key": f"a:{i}", "chosen_logprob": m - 10, "rejected_logprob": -10, "chosen_tokens": 5, "rejected_tokens": 5}
        for i, m in enumerate(margins)
    ]
    write_rows(folder / "preferences" / "pairs" / f"{checkpoint}.jsonl", records)
    (folder / "table.json").write_text("{}")


def write_answers(out: Path, name: str, texts: list[str]) -> None:
    rows = [{"key": f"a:{i}", "prompt": "?", "answer": text} for i, text in enumerate(texts)]
    write_rows(out / "read" / "answers" / name / "answers" / "held_out" / "answers" / "model.jsonl", rows)


def test_a_row_takes_the_rate_that_is_best_on_the_development_pairs(tmp_path):
    write_reading(tmp_path, "development", "start", [0, 0, 0])
    for rate, margins in {1e-5: [1, -1, -1], 3e-5: [1, 1, -1], 1e-4: [2, 2, -1]}.items():
        write_reading(tmp_path, "development", readings.run_name("dpo", 4, rate), margins)
    assert readings.best_rate(tmp_path, "dpo", 4, (1e-5, 3e-5, 1e-4), "reward accuracy") == 3e-5  # a tie, the first
    assert readings.best_rate(tmp_path, "dpo", 4, (1e-5, 3e-5, 1e-4), "reward margin, nats") == 1e-4


def test_the_runner_tries_each_rate_and_goes_on_with_the_best(tmp_path):
    arguments = Arguments("s", "t", "d", out=tmp_path, rows=("tis_student",), seeds=(0, 1), rates=(1e-5, 1e-4))
    entries = runner.read_rows(arguments)
    write_reading(tmp_path, "development", "start", [0, 0])
    done = []
    for job in runner.chain("tis_student", 1, arguments, entries):
        done.append(job.name)
        if job.name.startswith("read/development/"):
            margins = [1, 1] if job.name.endswith("1e-05") else [1, -1]
            write_reading(tmp_path, "development", job.name.removeprefix("read/development/"), margins)
        if job.recipe == "tis_dpo_distill":
            assert f"{job.settings['optimizer']['lr']:g}" in job.name
    assert done == [
        *("sft_teacher", "dpo_teacher", "reversed_teacher", "scores"),
        *("tis_student/seed_0_lr_1e-05", "read/development/tis_student/seed_0_lr_1e-05"),
        *("tis_student/seed_0_lr_0.0001", "read/development/tis_student/seed_0_lr_0.0001"),
        *("tis_student/seed_1_lr_1e-05", "read/held_out/tis_student/seed_1_lr_1e-05"),
    ]


def test_the_table_compares_rows_on_the_seeds_that_both_have(tmp_path):
    write_reading(tmp_path, "held_out", "start", [0, 0])
    for name, margins in {
        "dpo/seed_0": [1, 1],
        "dpo/seed_1": [1, -1],
        "sft/seed_1": [-3, -3],
        "sft/seed_1_lr_0.001": [9, 9],
    }.items():
        write_reading(tmp_path, "held_out", name, margins)
    names = {row: summary.names_of(tmp_path, row, tuned=False) for row in ("dpo", "sft", "tis_student")}
    assert names == {"dpo": {0: "dpo/seed_0", 1: "dpo/seed_1"}, "sft": {1: "sft/seed_1"}, "tis_student": {}}
    values = summary.read_values(tmp_path, names)
    assert list(values) == ["start", "dpo", "sft"]
    found = summary.differences(values["sft"], values["dpo"])
    assert found["reward accuracy"].tolist() == [[-1, 0]]
    assert found["reward margin, nats"].tolist() == [[-4, -2]]
    assert summary.differences(values["start"], values["dpo"])["reward accuracy"].tolist() == [
        [-0.5, -0.5],
        [-0.5, 0.5],
    ]
    assert summary.names_of(tmp_path, "sft", tuned=True) == {1: "sft/seed_1_lr_0.001"}
    write_reading(tmp_path, "held_out", "sft/seed_1_lr_0.01", [0, 0])
    with pytest.raises(SystemExit, match="seed 1 was read at several learning rates"):
        summary.names_of(tmp_path, "sft", tuned=True)


def test_the_whole_table_of_tuned_runs(tmp_path, capsys):
    write_reading(tmp_path, "held_out", "start", [0] * 8)
    write_reading(tmp_path, "development", "start", [0, 0])
    for row, margins in {"dpo": [1] * 4 + [-1] * 4, "tis_student": [1] * 8}.items():
        write_reading(tmp_path, "held_out", f"{row}/seed_0_lr_1e-05", margins)
        write_reading(tmp_path, "development", f"{row}/seed_0_lr_1e-05", [1, -1])
    write_answers(tmp_path, "start", ["a b", "a", "a", ""])
    write_answers(tmp_path, "dpo/seed_0_lr_1e-05", ["b", "a", "", "c d e " * 3])
    readings.comparisons(tmp_path, "dpo/seed_0_lr_1e-05").write_text("")
    for checkpoint, margin in {"judge": 2, "base": 1}.items():
        write_reading(tmp_path, "judged", "dpo/seed_0_lr_1e-05", [margin], checkpoint)
    assert readings.wins(tmp_path, "dpo/seed_0_lr_1e-05").tolist() == [1, 0.5, 0, 1]
    summary.main(summary.Arguments(out=tmp_path, tuned=True, draws=50))
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "table_tuned.md").read_text()
    assert "| tis_student | 1 | 1.000 [1.000, 1.000] |" in printed
    assert "| tis_student | +0.500 [" in printed
    assert "| row | reward accuracy, 1e-05 | NLL of chosen, nats a token, 1e-05 |\n|---|---|---|\n" in printed
    assert "| dpo | 0.500 | 2.000 |" in printed  # nine and eleven nats of five tokens
    assert "| dpo | 1 | 0.625 [" in printed
    assert "| start |  |  | 1.0 | 0 |" in printed  # words, and answers that repeat themselves
    assert " | 2.8 | 1 |" in printed


def test_holms_correction():
    found = summary.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert {name: corrected for name, (_, corrected) in found.items()} == pytest.approx(
        {"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06}
    )


def test_the_interval_of_a_mean_is_that_of_normal_theory():
    values = np.random.default_rng(1).normal(size=(1, 400))
    low, high = np.quantile(summary.Bootstrap(2000).means(values), [0.025, 0.975])
    width = 2 * 1.96 * values.std() / 20
    assert high - low == pytest.approx(width, rel=0.1)
    assert summary.Bootstrap(2000).p(values + 1) == pytest.approx(0.001)


def test_shuffled_contrasts_are_the_same_numbers_elsewhere():
    lists = pa.list_(pa.float32())
    positive = [[0.0, -1.0, -2.5], [-4.0], [], [-0.5, -8.0]]
    tables = [
        pa.table({"p": pa.array(rows, lists), "n": pa.array([[-1.0] * len(row) for row in rows], lists)})
        for rows in (positive[:3], positive[3:])
    ]
    found = shuffled(tables, "p", "n", np.random.default_rng(0))
    dealt = [row for table in found for row in table["p"].to_pylist()]
    assert [len(row) for row in dealt] == [3, 1, 0, 2]
    assert sorted(chain(*dealt)) == sorted(chain(*positive))
    assert dealt != positive
    assert [table["n"] for table in found] == [table["n"] for table in tables]
    assert [table.schema for table in found] == [table.schema for table in tables]


def test_the_picture_names_the_rows_that_are_finished(tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    import draw  # pyright: ignore[reportMissingImports]

    for name, margins in {"start": [0, 0], "dpo/seed_0": [1, 1], "sft/seed_1_lr_1e-05": [1, 2]}.items():
        write_reading(tmp_path, "held_out", name, margins)
    picture = tmp_path / "rows.svg"
    draw.main(draw.Arguments(tmp_path, picture=picture))
    text = picture.read_text(encoding="utf-8")
    assert all(f">{name}<" in text for name in ("start", "dpo")) and ">sft<" not in text
    draw.main(draw.Arguments(tmp_path, tuned=True, picture=picture))
    assert ">sft<" in picture.read_text(encoding="utf-8")
