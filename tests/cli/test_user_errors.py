"""Ways to get a command, a path or a config wrong. Each ends with code 2 and the lines that errors.snap holds.

A new case is one line in CASES; `PREFKD_UPDATE_SNAPSHOTS=1 pytest tests/cli/test_user_errors.py` writes its text.
"""

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

SNAPSHOTS = Path(__file__).with_name("errors.snap")
VALIDATE = "validate ./toy.py --config ./toy.yaml"


@dataclass(frozen=True)
class Case:
    """A mistake: its name, the command, and what is added to the sound toy.yaml or stands in its place."""

    title: str
    command: str = VALIDATE
    added: str = ""
    config: str | None = None


CASES = [
    # The command line.
    Case("unknown verb", "rnu ./toy.py --config ./toy.yaml"),
    Case("unknown option", "run ./toy.py --config ./toy.yaml --nproc-per-nod 2"),
    Case("option without value", "run ./toy.py --config"),
    Case("option of the wrong type", "run ./toy.py --config ./toy.yaml --node-rank first"),
    Case("missing option", "run ./toy.py"),
    Case("missing argument", "cp demo/tis_dpo_distill"),
    Case("missing options", "new --student student"),
    Case("value that an option does not take", "inspect a b c --truncation middle"),
    Case("too many arguments", "ls recipes"),
    Case("wrong number of processes", "run ./toy.py --config ./toy.yaml --nproc-per-node many"),
    Case("no processes", "run ./toy.py --config ./toy.yaml --nproc-per-node 0"),
    # Names and paths.
    Case("unknown recipe", "run tis_dpo_distil --config ./toy.yaml"),
    Case("unknown recipe file", "run ./mine.py --config ./toy.yaml"),
    Case("unknown config", "run ./toy.py --config demos/tis_dpo_distill"),
    Case("unknown config file", "run ./toy.py --config ./tis_dpo_distill.yaml"),
    Case("folder for a config", "run ./toy.py --config ./student"),
    Case("unknown name to print", "cat demo/tis_dpo_distil"),
    Case("copy over a file", "cp tis_dpo_distill ./toy.py"),
    Case("copy with the wrong suffix", "cp tis_dpo_distill ./mine.yaml"),
    Case("copy below a file", "cp tis_dpo_distill ./toy.yaml/mine.py"),
    Case("config for a recipe", "run ./toy.yaml --config ./toy.yaml"),
    Case("a file that is not a recipe", "run ./empty.py --config ./toy.yaml"),
    Case("recipe with a mistake in its syntax", "run ./broken.py --config ./toy.yaml"),
    Case("recipe that needs what is not installed", "run ./needy.py --config ./toy.yaml"),
    # The YAML file.
    Case("malformed YAML", config="student: {path: student\ntraining: 3\n"),
    Case("tab in YAML", config="student:\n\tpath: student\n"),
    Case("text as YAML", config="just a text\n"),
    Case("number as YAML", config="3\n"),
    Case("list as YAML", config="- path: student\n"),
    Case("key twice", added="training: {steps: 3}\nverbose: true\ntraining: {steps: 4}\n"),
    Case("malformed interpolation", added="log_every: ${training.steps\n"),
    Case("interpolation of no key", added="log_every: ${training.step}\n"),
    Case("interpolation of the wrong type", added="log_every: ${student.path}\n"),
    Case("interpolation of a missing value", config="student:\n  path: ???\nlog_every: ${student.path}\n"),
    Case("escaped interpolation", added="betas: \\${log_every}\n"),
    Case("file that is not shipped", config="student: {path: '${shipped:demo/trian.jsonl}'}\n"),
    # Keys and values.
    Case("empty config", config=""),
    Case("unknown key", added="optimiser: {lr: 1e-5}\n"),
    Case("unknown key in a section", added="training: {batchsize: 4}\n"),
    Case("unknown key far from all", added="training: {colour: red}\n"),
    Case("key that is not text", added="3: 4\n"),
    Case("missing value in a section", config="student: {dtype: bfloat16}\n"),
    Case("value for a section", added="training: 3\n"),
    Case("nothing for a section", added="training:\n"),
    Case("text for a number", added="training: {steps: ten}\n"),
    Case("fraction for an integer", added="training: {steps: 1e3}\n"),
    Case("number for true or false", added="verbose: sometimes\n"),
    Case("value that is not a choice", config="student: {path: student, dtype: float16}\n"),
    Case("list of the wrong length", added="betas: [0.9]\n"),
    Case("list with a wrong item", added="betas: [0.9, high]\n"),
    Case("problem between two keys", added="training: {batch_size: 5}\n"),
    Case("folder that is not there", config="student: {path: models/student}\n"),
    Case(
        "all of it at once",
        config="student: {pth: student}\nact: dance\nbetas: 3\noptimizer: {lrr: 1}\n",
        added="training: {batch_size: 3, step: 1}\n",
    ),
    # Components.
    Case("component without its path", added="logger: {log_dir: logs}\n"),
    Case("component as a bare name", f"{VALIDATE} optimizer=AdamW"),
    Case("component of no module", f"{VALIDATE} optimizer=troch.optim.AdamW"),
    Case("component of no name", f"{VALIDATE} optimizer=torch.optim.AdamX"),
    Case("component that cannot be called", f"{VALIDATE} optimizer=torch.optim"),
    Case("component whose module fails", f"{VALIDATE} optimizer=failing.Optimizer"),
    Case("component whose module needs another", f"{VALIDATE} optimizer=needy.Optimizer"),
    Case("unknown argument", added="optimizer: {weight_decy: 0.1}\n"),
    Case("missing argument of a component", f"{VALIDATE} optimizer=torch.nn.Linear"),
    Case("argument that the recipe passes", added="optimizer: {params: []}\n"),
    Case("argument of the wrong type", added="optimizer: {lr: small}\n"),
    Case("text for a number in an argument", added="optimizer: {lr: '1e-5'}\n"),
    Case(
        "wrong argument of a nested component",
        added="logger: {_component_: builtins.dict, inner: {_component_: torch.nn.Linear, in_feature: 3}}\n",
    ),
    # Overrides.
    Case("override without a value", f"{VALIDATE} optimizer.lr"),
    Case("override of an unknown key", f"{VALIDATE} training.stps=3"),
    Case("override of the wrong type", f"{VALIDATE} training.steps=ten"),
    Case("override that is no YAML", f"{VALIDATE} 'betas=[0.9, 0.95'"),
    Case("override of no item in a list", f"{VALIDATE} betas.2=0.5"),
    Case("removal of an unknown key", f"{VALIDATE} ~optimizer.lrr"),
    Case("removal of a needed key", f"{VALIDATE} ~student.path"),
    # While it runs.
    Case("error from the recipe", "run ./toy.py --config ./toy.yaml act=user"),
    Case("out of memory", "run ./toy.py --config ./toy.yaml act=memory"),
    Case("out of GPU memory", "run ./toy.py --config ./toy.yaml act=gpu"),
    Case("disk full", "run ./toy.py --config ./toy.yaml act=full"),
    Case("folder that may not be written", "run ./toy.py --config ./toy.yaml act=forbidden"),
    # The Hub.
    Case("no repository id", "download https://huggingface.co/owner/name"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_user_error(case: Case, folder, prefkd):
    sound = Path("toy.yaml").read_text()
    written = (sound if case.config is None else case.config) + case.added
    Path("toy.yaml").write_text(written)
    Path("empty.py").write_text("")
    Path("broken.py").write_text("class Config:\n    steps = = 3\n")
    Path("needy.py").write_text("import not_installed_anywhere\n")
    Path("failing.py").write_text("raise RuntimeError('no such device')\n")

    ended = prefkd(*shlex.split(case.command))

    assert ended.code == 2
    assert all(line.startswith("error: ") for line in ended.err.splitlines())
    shown = f"{written if written != sound else ''}$ prefkd {case.command}\n{ended.err}"
    if os.environ.get("PREFKD_UPDATE_SNAPSHOTS"):
        _write(case.title, shown)
    assert shown == _read().get(case.title), "if the text is meant, write it with PREFKD_UPDATE_SNAPSHOTS=1"


def test_every_snapshot_has_a_case():
    assert set(_read()) == {case.title for case in CASES}


def _read() -> dict[str, str]:
    parts = re.split(r"^### (.+)\n", SNAPSHOTS.read_text(), flags=re.MULTILINE)[1:] if SNAPSHOTS.exists() else []
    return {title: text.removesuffix("\n") for title, text in zip(parts[::2], parts[1::2], strict=True)}


def _write(title: str, shown: str) -> None:
    snapshots = _read() | {title: shown}
    titles = [case.title for case in CASES if case.title in snapshots]
    SNAPSHOTS.write_text("".join(f"### {title}\n{snapshots[title]}\n" for title in titles))
