"""The wheel and an editable install work outside the checkout."""

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from prefkd import catalog

ROOT = Path(__file__).resolve().parents[1]
RECIPE = next(recipe for recipe in catalog.recipes() if recipe.configs)


@pytest.fixture(scope="module", params=["wheel", "editable"])
def scripts(request, tmp_path_factory) -> Path:
    """The scripts folder of a fresh environment with prefkd installed, which borrows the dependencies of this one."""
    home = tmp_path_factory.mktemp(request.param)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    _run(sys.executable, "-m", "venv", "--without-pip", home / "env")
    python = home / "env" / "bin" / "python"
    if request.param == "wheel":
        _run(*pip, "wheel", *offline, "--wheel-dir", home, ROOT)
        _run(*pip, "--python", python, "install", *offline, *home.glob("*.whl"))
    else:
        _run(*pip, "--python", python, "install", *offline, "-e", ROOT)
    packages = next((home / "env" / "lib").glob("python*/site-packages"))
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.parent


def test_only_prefkd_lands_in_site_packages(scripts):
    packages = next((scripts.parent / "lib").glob("python*/site-packages"))
    landed = {path.name for path in packages.iterdir() if not path.name.endswith((".dist-info", ".pth", ".py"))}
    assert landed <= {"prefkd", "__pycache__"}


def test_ls_cp_and_validate(scripts, tmp_path):
    prefkd = scripts / "prefkd"
    listed = _run(prefkd, "ls", cwd=tmp_path)
    assert RECIPE.name in listed and RECIPE.configs[0] in listed

    _run(prefkd, "cp", RECIPE.name, "mine.py", cwd=tmp_path)
    _run(prefkd, "cp", RECIPE.configs[0], "mine.yaml", cwd=tmp_path)
    assert (tmp_path / "mine.py").read_bytes() == RECIPE.path.read_bytes()

    ended = subprocess.run(
        [prefkd, "validate", "./mine.py", "--config", "./mine.yaml"], cwd=tmp_path, capture_output=True, text=True
    )
    # The models are fetched first; all else must be found sound, the shipped data included.
    assert [line for line in ended.stderr.splitlines() if not re.match(r"error: .*\bno folder\b", line)] == []
    assert ended.returncode in (0, 2)


def _run(*command: object, cwd: Path | None = None) -> str:
    ended = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
