"""Odd command lines and broken files, for each command: an error in lines of its own, exit code 2, never a trace."""

import shutil
from contextlib import chdir
from pathlib import Path

import pytest

from tests.tiny import make_model, write_pairs


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Path:
    """Broken files of all kinds next to a sound model and sound pairs. No command of these tests writes any."""
    folder = tmp_path_factory.mktemp("broken")
    model = make_model(tmp_path_factory.mktemp("model") / "model", "llama", "byte_level")
    with chdir(folder):
        for name in ("sound", "half", "no_tokenizer", "broken_tokenizer", "words"):
            shutil.copytree(model, name)
        weights = Path("half/model.safetensors")
        weights.write_bytes(weights.read_bytes()[:500])
        for file in Path("no_tokenizer").glob("token*"):
            file.unlink()
        Path("broken_tokenizer/tokenizer.json").write_text('{"version": ')
        Path("words/config.json").write_text("not JSON")
        write_pairs(Path("pairs.jsonl"))
        config = "output_dir: out\nmodel: {path: sound}\ndata: {source: pairs.jsonl}\n"
        Path("sft.yaml").write_text(config)
        Path("binary.yaml").write_bytes(bytes(range(256)))
        Path("tabs.yaml").write_text("output_dir: out\n\tmodel: {path: sound}\n")
        Path("twice.yaml").write_text(config + "output_dir: more\n")
        Path("anchor.yaml").write_text("output_dir: *nowhere\n")
        Path("loop.yaml").write_text("a: &a\n  b: *a\n")
        Path("list.yaml").write_text("- output_dir\n")
        Path("empty.yaml").write_text("")
        Path("tag.yaml").write_text("output_dir: !!python/object:os.system {}\n")
        Path("documents.yaml").write_text(config + "---\n" + config)
        Path("key.yaml").write_text(config + "? [a, b]\n: 1\n")
        Path("date.yaml").write_text(config.replace("out\n", "2026-11-27\n"))
        Path("deep.yaml").write_text("a: " + "[" * 3000 + "]" * 3000 + "\n")
        Path("folder.yaml").mkdir()
        Path("binary.py").write_bytes(b"\x00\xff\xfe")
        Path("raises.py").write_text("raise RuntimeError('no such device')\n")
        Path("exits.py").write_text("import sys\nsys.exit(3)\n")
        Path("plain.py").write_text("class Config:\n    pass\n\ndef main(config):\n    pass\n")
        for name, text in {
            "broken": '{"step": 0, "held_out/loss": 1.0}\n{"step": 1, "lo',
            "words": "not JSON\n",
            "list": "[1, 2]\n",
            "no_step": '{"loss": 1.0}\n',
            "texts": '{"step": 1, "loss": "low"}\n{"step": "two", "loss": 1.0}\n',
            "empty": "",
        }.items():
            Path("runs", name).mkdir(parents=True)
            Path("runs", name, "metrics.jsonl").write_text(text)
        Path("runs/binary").mkdir()
        Path("runs/binary/metrics.jsonl").write_bytes(b"\xff\xfe\x00")
        Path("stages.yaml").write_text("output_dir: chain\nstages: {a: 3}\n")
        Path("no_stages.yaml").write_text("stages: []\n")
    return folder


@pytest.fixture
def world(folder, broken, monkeypatch) -> Path:
    """The current folder, with the broken files."""
    monkeypatch.chdir(broken)
    return broken


RUN = ("validate", "run", "plan")
CONFIGS = (
    *("missing.yaml", "binary.yaml", "tabs.yaml", "twice.yaml", "anchor.yaml", "loop.yaml", "list.yaml", "empty.yaml"),
    *("tag.yaml", "documents.yaml", "key.yaml", "deep.yaml", "folder.yaml", "pairs.jsonl", "sound", "\x00", "", "~"),
)
COMMANDS = [
    *((command, "sft", "--config", config) for command in RUN for config in CONFIGS),
    *((command, "sft", "--config", "sft.yaml", "model.path=half") for command in ("run",)),
    *((command, "sft", "--config", "sft.yaml", "model.path=no_tokenizer") for command in ("run", "validate")),
    *((command, "sft", "--config", "sft.yaml", "model.path=broken_tokenizer") for command in ("run", "validate")),
    *((command, "sft", "--config", "sft.yaml", "model.path=words") for command in RUN),
    *((command, "sft", "--config", "sft.yaml", "model.path=") for command in RUN),
    *((command, "sft", "--config", "sft.yaml", "optimizer=") for command in RUN),
    *((command, "sft", "--config", "sft.yaml", "lora=yes") for command in RUN),
    *((command, "sft", "--config", "sft.yaml", "training=3") for command in RUN),
    *((command, "sft", "--config", "sft.yaml", "=3") for command in RUN),
    *((command, "sft", "--config", "sft.yaml", "ü=3") for command in RUN),
    *((command, "sft", "--config", "sft.yaml", "training.max_steps=${oc.env:NOWHERE}") for command in RUN),
    *((command, "sft", "--config", "sft.yaml", "output_dir=${output_dir}") for command in RUN),
    *((command, "sft", "--config", "sft.yaml", "~model") for command in RUN),
    *(("run", recipe, "--config", "sft.yaml") for recipe in ("binary.py", "exits.py", "plain.py", "sft.yaml", "sound")),
    ("run", "sft"),
    ("run",),
    ("run", "sft", "--config"),
    ("run", "sft", "--config", "sft.yaml", "--nproc-per-node", "many"),
    ("run", "sft", "--config", "sft.yaml", "--nproc-per-node", "0"),
    ("übung",),
    ("",),
    ("--version-of-what",),
    ("cat", "nowhere"),
    ("cat",),
    ("cat", "sound"),
    ("cp", "sft", "nowhere/deep/\x00.py"),
    ("cp", "nowhere", "mine.py"),
    ("ls", "more"),
    *(("plot", f"runs/{name}") for name in ("broken_", "words", "list", "no_step", "texts", "empty", "binary")),
    ("plot", "pairs.jsonl"),
    ("plot", "sound"),
    ("plot",),
    *(("pipeline", name) for name in CONFIGS),
    ("pipeline", "stages.yaml"),
    ("pipeline", "no_stages.yaml"),
    ("pipeline", "sft.yaml"),
    ("inspect", "sound", "no_tokenizer", "pairs.jsonl"),
    ("inspect", "sound", "broken_tokenizer", "pairs.jsonl"),
    ("inspect", "sound", "sound", "binary.yaml"),
    ("inspect", "words", "words", "nowhere.jsonl"),
    ("inspect", "sound"),
    ("download", ""),
    ("download", "demo", "--output-dir", "pairs.jsonl"),
    ("plan", "evaluate", "--config", "sft.yaml"),
    ("plan", "sft", "--config", "sft.yaml", "--gpu", "toaster"),
    ("plan", "sft", "--config", "sft.yaml", "--nproc-per-node", "0"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command).replace("\x00", "NUL") or "nothing")
def test_odd_invocations(command, world, prefkd):
    ended = prefkd(*command)
    assert ended.code == 2
    lines = ended.err.splitlines()
    assert any(line.startswith("error: ") for line in lines)
    assert not any("Traceback" in line for line in lines)


def test_a_recipe_that_fails_while_it_is_imported_names_itself(world, prefkd):
    """The error is the user's own code, whose trace PREFKD_DEBUG=1 shows."""
    ended = prefkd("run", "raises.py", "--config", "sft.yaml")
    assert ended.code == 2
    assert ended.err == "error: raises.py cannot be imported: RuntimeError: no such device\n"
