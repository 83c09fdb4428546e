"""A folder with a small recipe, and the command line run in it."""

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from prefkd.cli.main import main


@dataclass
class Ended:
    """How a command ended."""

    code: int | str | None
    out: str
    err: str


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder: the recipe toy.py, its config toy.yaml and the folder of a model, student."""
    modules, path = set(sys.modules), list(sys.path)
    monkeypatch.chdir(tmp_path)
    for name in ("HF_TOKEN", "PREFKD_DEBUG", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    shutil.copy(Path(__file__).with_name("toy_recipe.py"), "toy.py")
    Path("toy.yaml").write_text("student:\n  path: student\n")
    Path("student").mkdir()
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("prefkd_recipe_"):
            del sys.modules[name]


@pytest.fixture
def prefkd(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Runs `prefkd` with some arguments in this process."""

    def run(*arguments: str) -> Ended:
        try:
            code = main(arguments)
        except SystemExit as end:
            code = end.code
        return Ended(code, *capsys.readouterr())

    return run
