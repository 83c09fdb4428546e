"""An installed wheel, and an editable install, work outside the checkout."""

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from prefkd import catalog

ROOT = Path(__file__).resolve().parents[1]
RECIPE = next(recipe for recipe in catalog.recipes() if recipe.configs)


def fresh_environment(home: Path, *paths: str) -> Path:
    """The Python of an environment that sees its own packages and those in some folders."""
    run(sys.executable, "-m", "venv", "--without-pip", home)
    (packages_of(home) / "borrowed.pth").write_text("\n".join(paths))
    return home / "bin" / "python"


def packages_of(home: Path) -> Path:
    return next((home / "lib").glob("python*/site-packages"))


def run(*command: object, cwd: Path | None = None) -> str:
    ended = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    pytest.importorskip("hatchling", reason="needs the extra dev")
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> list[Path | str]:
    """The command of an installed wheel, which borrows the dependencies of this environment."""
    home = tmp_path_factory.mktemp("installed")
    python = fresh_environment(home)
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    assert {path.name for path in packages_of(home).iterdir() if path.is_dir() and path.suffix != ".dist-info"} == {
        "prefkd"
    }
    (packages_of(home) / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return [python.with_name("prefkd")]


@pytest.fixture(scope="module")
def editable(tmp_path_factory) -> list[Path | str]:
    """The command of an environment to which the checkout's folder was added, which is what `pip install -e` does."""
    python = fresh_environment(tmp_path_factory.mktemp("editable"), str(ROOT), sysconfig.get_path("purelib"))
    return [python, "-m", "prefkd"]


@pytest.mark.parametrize("kind", ["installed", "editable"])
def test_ls_and_cp(kind, request, tmp_path):
    prefkd = request.getfixturevalue(kind)
    listed = run(*prefkd, "ls", cwd=tmp_path)
    folder, name = RECIPE.configs[0].rsplit("/", 1)
    assert RECIPE.name in listed and f"{folder}/" in listed and name in listed

    run(*prefkd, "cp", RECIPE.name, "mine.py", cwd=tmp_path)
    assert (tmp_path / "mine.py").read_bytes() == RECIPE.path.read_bytes()


def test_validate_finds_all_that_is_shipped(installed, tmp_path):
    run(*installed, "cp", RECIPE.name, "mine.py", cwd=tmp_path)
    run(*installed, "cp", RECIPE.configs[0], "mine.yaml", cwd=tmp_path)
    command = [*installed, "validate", "./mine.py", "--config", "./mine.yaml"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    # Models and data are fetched first. All else is sound, files that are shipped included.
    assert [line for line in ended.stderr.splitlines() if not re.search("no folder|does not exist", line)] == []
    assert ended.returncode in (0, 2)
