"""pipeline: what runs and why, what is kept, how it ends, and what is found before anything runs."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from prefkd import catalog
from prefkd.pipeline.records import Contents, read_record, record_end
from prefkd.pipeline.stages import read_pipeline
from tests.cli.conftest import Ended
from tests.processes import ForkedStage

CHAIN = """
output_dir: runs/chain
values:
  words: words.txt
stages:
  last:
    recipe: ./join.py
    config: ./join.yaml
    overrides:
      sources: ["${stages.left.output_dir}/joined.txt", "${stages.right.output_dir}/joined.txt"]
      text: "!"
  left:
    recipe: ./join.py
    config: ./join.yaml
    overrides: {sources: ["${values.words}"], text: left}
  right:
    recipe: ./join.py
    config: ./join.yaml
    overrides: {text: right}
"""


@pytest.fixture
def chain(folder, monkeypatch) -> Path:
    """The folder of the outputs of chain.yaml: left and right, from which last joins its text."""
    monkeypatch.setattr("prefkd.cli.pipeline.subprocess", SimpleNamespace(Popen=ForkedStage))
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shutil.copy(Path(__file__).with_name("stage_recipe.py"), "join.py")
    Path("join.yaml").write_text("text: nothing\n")
    Path("words.txt").write_text("from ")
    Path("chain.yaml").write_text(CHAIN)
    return Path("runs/chain")


def states(ended: Ended) -> dict[str, str]:
    """The state of each stage in the first table that was printed."""
    rows = (re.match(r"(left|right|last) +(.+?)(  |$)", line) for line in ended.out.splitlines())
    found: dict[str, str] = {}
    for row in filter(None, rows):
        found.setdefault(row[1], row[2])
    return found


def test_a_chain_runs_in_the_order_of_its_needs_and_a_second_time_does_nothing(chain, prefkd):
    first = prefkd("pipeline", "chain.yaml")
    assert (first.code, first.err) == (0, "")
    assert states(first) == dict.fromkeys(["left", "right", "last"], "runs: new")
    assert (chain / "last/joined.txt").read_text() == "from leftright!"
    assert [re.findall(r"stage (\w+) \(", line) for line in first.out.splitlines() if "─ stage" in line] == [
        ["left"],
        ["right"],
        ["last"],
    ]
    assert first.out.rstrip().endswith("written: runs/chain/last")

    second = prefkd("pipeline", "chain.yaml")
    assert states(second) == dict.fromkeys(["left", "right", "last"], "finished")
    assert "nothing to do" in second.out
    assert (chain / "last/metrics.jsonl").read_text() == "{}\n"

    # Lost files, edited inputs, settings and recipes: what is built on a changed stage runs again, the rest does not.
    (chain / "right/joined.txt").unlink()
    dry = ("pipeline", "chain.yaml", "--dry-run")
    assert states(prefkd(*dry)) == {
        "left": "finished",
        "right": "runs: lost: joined.txt",
        "last": "runs: right will change",
    }
    (chain / "right/joined.txt").write_text("RIGHT")
    Path("words.txt").write_text("FROM ")
    assert states(prefkd(*dry, "stages.right.overrides.text=R")) == {
        "left": "runs: changed: the content of sources.0 (words.txt)",
        "right": "runs: changed: text right -> R",
        "last": "runs: changed: the content of sources.1 (runs/chain/right/joined.txt)",
    }
    assert not list(chain.glob("*.before-*"))  # a dry run leaves everything as it is

    third = prefkd("pipeline", "chain.yaml")
    assert (chain / "last/joined.txt").read_text() == "FROM leftRIGHT!"
    assert (chain / "left.before-1/joined.txt").read_text() == "from left"
    assert "the old runs/chain/left will be renamed to runs/chain/left.before-1" in third.out
    assert states(prefkd(*dry)) == dict.fromkeys(["left", "right", "last"], "finished")

    Path("join.py").write_text(Path("join.py").read_text() + "\n")
    assert states(prefkd(*dry))["left"] == "runs: changed: the recipe"


def test_a_changed_checkpoint_or_source_of_a_mixture_runs_its_stage_again(folder, prefkd):
    for name in ("model.bin", "pairs.jsonl", "held.jsonl"):
        Path(name).write_text("first")
    Path("sft.yaml").write_text("model: {path: model.bin}\ndata: {sources: [{source: pairs.jsonl}]}")
    Path("table.yaml").write_text("checkpoints: {a: {path: model.bin}}\npreferences: {data: {b: {source: held.jsonl}}}")
    Path("two.yaml").write_text(
        "output_dir: runs\nstages:\n"
        "  left: {recipe: sft, config: ./sft.yaml}\n  right: {recipe: evaluate, config: ./table.yaml}\n"
    )
    contents = Contents(Path("cache.json"))
    for stage in read_pipeline(Path("two.yaml")).stages:
        record_end(stage.output_dir, stage.fingerprint(contents), 1.0)
    assert states(prefkd("pipeline", "two.yaml", "--dry-run")) == {"left": "finished", "right": "finished"}
    Path("pairs.jsonl").write_text("second")
    Path("held.jsonl").write_text("second")
    assert [
        record.fingerprint.changes(stage.fingerprint(contents))
        for stage in read_pipeline(Path("two.yaml")).stages
        if (record := read_record(stage.output_dir))
    ] == [
        ["the content of data.sources.0.source (pairs.jsonl)"],
        ["the content of preferences.data.b.source (held.jsonl)"],
    ]


def test_inputs_that_are_gone_do_not_matter_to_what_is_finished(chain, prefkd):
    assert prefkd("pipeline", "chain.yaml").code == 0
    Path("words.txt").unlink()
    assert "nothing to do" in prefkd("pipeline", "chain.yaml").out


def test_from_and_only(chain, prefkd):
    too_early = prefkd("pipeline", "chain.yaml", "--only", "last")
    assert too_early.code == 2
    assert too_early.err.splitlines() == [
        "error: stage left is not finished, and last needs it; leave --only out",
        "error: stage right is not finished, and last needs it; leave --only out",
        f"error: stage last: sources: no file {chain}/left/joined.txt; write it",
        f"error: stage last: sources: no file {chain}/right/joined.txt; write it",
    ]
    assert states(prefkd("pipeline", "chain.yaml", "--only", "left", "--dry-run")) == {
        "left": "runs: new",
        "right": "left out: only left",
        "last": "left out: only left",
    }
    assert prefkd("pipeline", "chain.yaml").code == 0
    changed = ("pipeline", "chain.yaml", "--dry-run", "stages.left.overrides.text=L")
    assert states(prefkd(*changed, "--from", "last")) == {
        "left": "taken as it is",
        "right": "taken as it is",
        "last": "runs: asked for",
    }
    assert states(prefkd(*changed, "--from", "right")) == {
        "left": "runs: changed: text left -> L",
        "right": "runs: asked for",
        "last": "runs: left and right will change",
    }
    assert prefkd("pipeline", "chain.yaml", "--only", "right").code == 0
    assert (chain / "right.before-1").is_dir()
    # It wrote the same once more, so that what is built on it is as good as before.
    assert states(prefkd("pipeline", "chain.yaml", "--dry-run"))["last"] == "finished"


def test_overrides_of_values_and_folders(chain, prefkd):
    Path("more.txt").write_text("more ")
    assert prefkd("pipeline", "chain.yaml", "values.words=more.txt", "output_dir=elsewhere").code == 0
    assert Path("elsewhere/last/joined.txt").read_text() == "more leftright!"
    assert not chain.exists()


@pytest.mark.parametrize("own", ["elsewhere", "./elsewhere/", "../elsewhere"])
def test_a_stage_with_a_folder_of_its_own(own, chain, prefkd):
    ended = prefkd("pipeline", "chain.yaml", f"stages.left.output_dir={own}", "--dry-run")
    assert states(ended) == dict.fromkeys(["left", "right", "last"], "runs: new")


@pytest.mark.parametrize(
    ("value", "text"),
    [("'1e-5'", "1e-5"), ('"a: b # c\\n\\"d\\""', 'a: b # c\n"d"'), ("'null'", "null"), ("''", ""), ("ü 你", "ü 你")],
)
def test_a_stage_gets_its_overrides_as_they_are_written(value, text, chain):
    Path("chain.yaml").write_text(CHAIN.replace("text: right", f"text: {value}"))
    right = next(stage for stage in read_pipeline(Path("chain.yaml")).stages if stage.name == "right")
    assert right.settings["text"] == text


@pytest.mark.parametrize(("act", "cause"), [("user", "failed"), ("bug", "failed"), ("killed", "SIGKILL")])
def test_a_failing_stage_ends_the_chain_and_the_same_command_goes_on(act, cause, chain, prefkd):
    command = ("pipeline", "chain.yaml", f"stages.right.overrides.act={act}")
    failed = prefkd(*command)
    assert failed.code == 2
    assert len(failed.err.splitlines()) == 1
    assert failed.err.startswith("error: stage right ")
    assert cause in failed.err
    assert f"`prefkd {' '.join(command)}` resumes it" in failed.err
    assert not (chain / "last").exists()

    Path("mended").touch()
    assert states(prefkd(*command)) == {"left": "finished", "right": "runs: unfinished", "last": "runs: new"}
    assert (chain / "right.before-1/metrics.jsonl").exists()  # this recipe starts anew, the half folder is kept
    assert (chain / "last/joined.txt").read_text() == "from leftright!"


def test_what_from_took_as_it_is_stays_so_after_a_failure(chain, prefkd):
    assert prefkd("pipeline", "chain.yaml").code == 0
    command = ("pipeline", "chain.yaml", "stages.left.overrides.text=L", "stages.last.overrides.act=user")
    failed = prefkd(*command, "--from", "last")
    assert f"`prefkd {' '.join(command)} --from last` resumes it" in failed.err


def test_a_recipe_that_resumes_goes_on_in_its_folder_unless_it_is_another_run(chain, prefkd):
    command = ("pipeline", "chain.yaml", "stages.left.overrides.act=killed", "stages.left.overrides.resumes=true")
    assert prefkd(*command).code == 2
    another = prefkd(*command, "stages.left.overrides.text=L", "--dry-run")
    assert states(another)["left"] == "runs: changed: text left -> L"
    assert "the old runs/chain/left will be renamed" in another.out

    Path("mended").touch()
    assert states(prefkd(*command))["left"] == "runs: unfinished, resumes"
    assert (chain / "left/metrics.jsonl").read_text() == "{}\n{}\n"
    assert not (chain / "left.before-1").exists()


def test_a_folder_that_no_pipeline_wrote_is_kept(chain, prefkd):
    (chain / "left").mkdir(parents=True)
    (chain / "left/metrics.jsonl").write_text("precious")
    (chain / "left.before-1").mkdir()
    assert prefkd("pipeline", "chain.yaml").code == 0
    assert (chain / "left.before-2/metrics.jsonl").read_text() == "precious"


def start(*arguments: str) -> subprocess.Popen[str]:
    """`prefkd pipeline chain.yaml` in a process group of its own, as a terminal starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "prefkd", "pipeline", "chain.yaml", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Where the tests run in the background, they inherit that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def running_stage(process: subprocess.Popen[str]) -> int:
    """The process of the stage that says that it runs."""
    assert process.stdout is not None
    return int(next(filter(None, (re.match(r"process (\d+) of", line) for line in process.stdout)))[1])


def test_interrupt(chain):
    process = start("stages.left.overrides.act=sleep")
    running_stage(process)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("error: interrupted in stage left; `prefkd pipeline chain.yaml stages")


def test_the_end_of_the_pipeline_is_the_end_of_its_stage(chain):
    process = start("stages.left.overrides.act=sleep")
    stage = running_stage(process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "stage left was ended by SIGTERM" in err
    with pytest.raises(ProcessLookupError):
        os.kill(stage, 0)


def test_a_stage_that_outlives_its_pipeline_keeps_others_out(chain, prefkd):
    process = start("stages.left.overrides.act=sleep")
    stage = running_stage(process)
    process.kill()
    process.wait()
    try:
        refused = prefkd("pipeline", "chain.yaml")
        assert refused.code == 2
        assert refused.err == (
            f"error: runs/chain is in use: a stage of it still runs (process {stage}); wait until it ends, or end it\n"
        )
        assert prefkd("pipeline", "chain.yaml", "--dry-run").code == 0
    finally:
        os.kill(stage, signal.SIGKILL)
    process.communicate(timeout=60)  # the end of its output: the stage is gone
    assert prefkd("pipeline", "chain.yaml").code == 0


def test_torchrun_options_reach_the_stages(chain):
    process = start("--nproc-per-node", "2", "--only", "right")
    out, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (0, "")
    assert sorted(re.findall(r"of rank (.): right", out)) == ["0", "1"]


@dataclass(frozen=True)
class Mistake:
    """One change of the sound chain.yaml or one argument, and a part of what is said about it."""

    said: str
    arguments: str = ""
    old: str = ""
    new: str = ""


MISTAKES = {
    "no stages": Mistake("chain.yaml: stages: missing; give a section for each", old=CHAIN, new="stage: {}\n"),
    "duplicate stage": Mistake("the key left stands here for the second time", old="  right:", new="  left:"),
    "stage name": Mistake("stages.the-right: not a name; use letters", old="  right:", new="  the-right:"),
    "unknown key of the file": Mistake("valeus: unknown key; did you mean values?", old="values:", new="valeus:"),
    "unknown key of a stage": Mistake(
        "stages.last.overide: unknown key; did you mean overrides?", old="overrides:", new="overide:"
    ),
    "missing config": Mistake("stages.last.config: missing; give a string", old="    config: ./join.yaml\n", new=""),
    "unknown stage": Mistake("there is no stage lfet; did you mean left?", old="stages.left.", new="stages.lfet."),
    "unknown attribute": Mistake("there is no key stages.left.output", old="left.output_dir", new="left.output"),
    "unknown value": Mistake("there is no key values.word", old="values.words", new="values.word"),
    "unknown output": Mistake(
        "stage last: sources.0: stage left writes no joint.txt; did you mean joined.txt?", old="joined", new="joint"
    ),
    "circle": Mistake(
        "stages: last -> left -> last need each other",
        old="${values.words}",
        new="${stages.last.output_dir}/joined.txt",
    ),
    "dots in a key": Mistake(
        "overrides.a.b: a key has no dots here; write a: {b: ...}", old="text: right", new="a.b: 1"
    ),
    "folder in overrides": Mistake(
        "stage right: output_dir belongs next to recipe and config", old="text: right", new="output_dir: x"
    ),
    "unknown override of a value": Mistake("values.word: unknown key; did you mean words?", "values.word=x"),
    "unknown override of a stage": Mistake("stages.lft: unknown key; did you mean left?", "stages.lft.recipe=x"),
    "unknown recipe": Mistake("stage left: no recipe file ./jion.py", "stages.left.recipe=./jion.py"),
    "unknown config": Mistake("stage left: no config is named demo/jion", "stages.left.config=demo/jion"),
    "unknown setting": Mistake("stage left: txt: unknown key; did you mean text?", "stages.left.overrides.txt=a"),
    "wrong type": Mistake("stage left: resumes: 'often' is not true or false", "stages.left.overrides.resumes=often"),
    "missing file": Mistake("stage left: sources: no file wrods.txt; write it", "values.words=wrods.txt"),
    "same folder": Mistake(
        "stages.right.output_dir: lies in the folder of stage left", "stages.left.output_dir=runs/chain/right"
    ),
    "folder in itself": Mistake(
        "stages.left.output_dir: '${stages.left.output_dir}' cannot be resolved",
        "stages.left.output_dir=${stages.left.output_dir}",
    ),
    "unknown stage of an option": Mistake("--from: there is no stage lst; did you mean last?", "--from lst"),
    "two options": Mistake("--from and --only exclude each other", "--from last --only last"),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_found_before_anything_runs(mistake, chain, prefkd):
    Path("chain.yaml").write_text(CHAIN.replace(mistake.old, mistake.new, 1) if mistake.old else CHAIN)
    ended = prefkd("pipeline", "chain.yaml", *mistake.arguments.split())
    assert ended.code == 2
    assert mistake.said in ended.err
    assert all(line.startswith("error: ") for line in ended.err.splitlines())
    assert len(ended.err.splitlines()) <= 2  # one for each place where it matters
    assert not chain.exists()


def test_all_mistakes_at_once(chain, prefkd):
    changes = ("values.words=x", "stages.right.overrides.act=dance", "stages.last.overrides.txt=a")
    assert prefkd("pipeline", "chain.yaml", *changes).err.splitlines() == [
        "error: stage last: txt: unknown key; did you mean text?",
        "error: stage right: act: 'dance' is not one of finish, user, bug, killed, sleep",
        "error: stage left: sources: no file x; write it",
    ]


def test_shipped_pipelines_are_listed_printed_and_copied(prefkd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    listed = prefkd("ls").out
    for name, path in catalog.pipelines().items():
        assert f"{name} " in listed
        assert prefkd("cat", name).out.startswith(catalog.header_of(path))
        assert "prefkd pipeline mine.yaml" in prefkd("cp", name, "mine.yaml", "--force").out


@pytest.mark.parametrize("name", catalog.pipelines())
def test_every_shipped_pipeline_is_sound(name, prefkd):
    """But for models that are fetched first, of which a line says `no folder`."""
    ended = prefkd("pipeline", name, "--dry-run")
    assert [line for line in ended.err.splitlines() if "no folder models/" not in line] == []
    assert ended.code == (2 if ended.err else 0)


def test_a_record_is_readable(chain, prefkd):
    assert prefkd("pipeline", "chain.yaml", "--only", "right").code == 0
    record = json.loads((chain / "right/stage.json").read_text())
    assert record["fingerprint"]["settings"]["text"] == "right"
    assert record["files"] == {"joined.txt": 5, "metrics.jsonl": 3}
