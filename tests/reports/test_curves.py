"""prefkd plot."""

import json
import math
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from prefkd.errors import PrefkdError
from prefkd.reports.curves import RunCurves, panels, read_metrics, read_runs, smooth


def write_run(folder: Path | str, steps: int = 30, **metrics: float) -> Path:
    """A run with the metrics of tis_dpo_distill, or with others."""
    lines = [{"step": 0, "held_out/loss": 0.7, "held_out/margin": 0.0, "held_out/accuracy": 0.5}]
    for step in range(1, steps + 1):
        usual = {"loss": 1 / step, "margin": step / 10, "accuracy": 0.5 + step / 100}
        lines.append({"step": step, **(metrics or usual)})
    lines[-1] |= {"held_out/loss": 0.3, "held_out/margin": 1.0, "held_out/accuracy": 0.8}
    Path(folder).mkdir(parents=True)
    file = Path(folder, "metrics.jsonl")
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def svg_text(path: str) -> str:
    return " ".join(ElementTree.parse(path).getroot().itertext())


def test_one_run(prefkd):
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    write_run("runs/first")
    ended = prefkd("plot", "runs/first")
    assert (ended.code, ended.out, ended.err) == (0, "wrote plot.png and plot.svg\n", "")
    assert Path("plot.png").read_bytes().startswith(b"\x89PNG")
    text = svg_text("plot.svg")
    assert all(part in text for part in ("loss", "margin", "accuracy", "first", "held-out pairs"))


def test_several_runs_are_told_apart(prefkd):
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    write_run("a/tis")
    write_run("b/tis")
    write_run("b/_$odd$", kd=1.0, **{"objective/uld": 0.5}, loss=3.0)
    ended = prefkd("plot", "a/tis", "b/tis/metrics.jsonl", "b/_$odd$", "--output", "new/both.svg")
    assert (ended.code, ended.err) == (0, "")
    text = svg_text("new/both.svg")
    assert all(part in text for part in ("a/tis", "b/tis", "_$odd$", "kd", "objective/uld"))
    before = Path("new/both.svg").read_bytes()
    assert prefkd("plot", "a/tis", "b/tis/metrics.jsonl", "b/_$odd$", "--output", "new/both").code == 0
    assert Path("new/both.svg").read_bytes() == before


def test_a_killed_run_is_drawn_without_its_last_line(prefkd):
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    file = write_run("killed")
    file.write_bytes(file.read_bytes()[:-20])
    ended = prefkd("plot", "killed")
    assert (ended.code, ended.err) == (0, "")
    assert "killed/metrics.jsonl: the last line is unfinished, as a killed run leaves it; it is left out" in ended.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "missing: RUN"),
        (("student",), "student holds no metrics.jsonl; name the folder of a run (its output_dir)"),
        (("nowhere",), "nowhere does not exist; name the folder of a run"),
        (("broken",), "broken/metrics.jsonl, line 3: not JSON; fix or delete the line"),
        (("stepless",), "stepless/metrics.jsonl, line 2: not an object with an integer as step; fix or delete the"),
        (("empty",), "empty/metrics.jsonl holds no step yet; wait until the run has written one"),
        (("other",), "no run has loss, margin, accuracy; name others with --metric: lr"),
        (("other", "--metric", "rl"), "no run has the metric rl; they have lr"),
        (("sound", "--output", "toy.yaml/plot"), "toy.yaml: "),
    ],
)
def test_mistakes(arguments, message, prefkd):
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    write_run("sound")
    broken = write_run("broken")
    lines = broken.read_text().splitlines()
    broken.write_text("\n".join([*lines[:2], lines[2][:30], *lines[3:]]) + "\n")
    for name, text in (
        ("stepless", '{"step": 0}\n{"loss": 1}\n{"step": 2}\n'),
        ("empty", '{"step'),
        ("other", '{"step": 1, "lr": 0.1}\n'),
    ):
        Path(name).mkdir()
        Path(name, "metrics.jsonl").write_text(text)
    ended = prefkd("plot", *arguments)
    assert ended.code == 2
    assert ended.err.startswith(f"error: {message}")
    assert len(ended.err.splitlines()) == 1


def test_without_matplotlib(prefkd, monkeypatch):
    write_run("run")
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ended = prefkd("plot", "run")
    assert (ended.code, ended.err) == (
        2,
        "error: drawing needs matplotlib; install it with pip install 'prefkd[plot]'\n",
    )


def test_what_a_resumed_run_writes_again_replaces_what_was_there(tmp_path):
    file = tmp_path / "metrics.jsonl"
    steps = [0, 1, 2, 3, 4, 3, 4, 5]
    file.write_text("".join(json.dumps({"step": step, "loss": i}) + "\n" for i, step in enumerate(steps)))
    rows, unfinished = read_metrics(file)
    assert [(row["step"], row["loss"]) for row in rows] == [(0, 0), (1, 1), (2, 2), (3, 5), (4, 6), (5, 7)]
    assert not unfinished


def test_a_last_line_without_its_end_counts_if_it_is_whole(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": 2}')
    rows, unfinished = read_metrics(file)
    assert (len(rows), unfinished) == (2, False)


def test_panels():
    def run(**metrics):
        return RunCurves("run", Path("metrics.jsonl"), [{"step": 1, **metrics}], False)

    runs = [run(loss=1, lr=1), run(margin=1, t2s_kd=1, t2s_accuracy=1, kdx=1, **{"held_out/objective/alm": 1})]
    assert panels(runs) == ["loss", "margin", "objective/alm", "t2s_kd"]
    assert panels(runs, ["held_out/lr", "lr"]) == ["lr"]
    with pytest.raises(PrefkdError, match="no run has the metric kd; they have"):
        panels(runs, ["kd"])


def test_a_constant_has_one_value_at_all_steps_and_on_held_out_pairs(tmp_path):
    rows = [
        {"step": 0, "held_out/saturated": 0.0, "held_out/accuracy": 0.5},
        {"step": 1, "saturated": 0.0, "accuracy": 1.0, "lr": 1e-9, "tokens": 39.00001, "finite": math.nan},
        {"step": 2, "saturated": 0.0, "accuracy": 1.0, "lr": 2e-9, "tokens": 39.00002, "finite": math.nan},
    ]
    run = RunCurves("a", tmp_path, rows, unfinished=False)
    assert run.constant.keys() == {"saturated", "tokens", "finite"}
    assert run.constant["tokens"] == pytest.approx(39)


def test_names_are_as_short_as_they_can_be(tmp_path):
    folders = [write_run(tmp_path / name).parent for name in ("a/x/run", "b/x/run", "c/y/other")]
    assert [run.name for run in read_runs(folders)] == ["a/x/run", "b/x/run", "c/y/other"]
    assert [run.name for run in read_runs(folders[1:])] == ["run", "other"]
    assert [run.name for run in read_runs(folders[1:2] * 2)] == ["run", "run"]


def test_smoothing():
    assert smooth([1, 2, 6], 3) == [1.5, 3, 4]
    assert smooth([1, math.nan, 3], 3)[1] == 2
    assert math.isnan(smooth([math.nan], 1)[0])
