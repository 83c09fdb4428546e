"""ls, cp and cat."""

import subprocess
import sys
from pathlib import Path

import pytest

from prefkd import catalog

RECIPE = catalog.recipes()[0]


def test_ls_shows_every_recipe_with_its_summary_and_every_config(prefkd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    shown = prefkd("ls").out
    for recipe in catalog.recipes():
        assert f"{recipe.name} " in shown
        assert recipe.summary in shown
    lines = {line.split()[0]: line.split(None, 1)[1] for line in shown.splitlines() if "/ " in line}
    for config, path in catalog.configs().items():
        folder, name = config.rsplit("/", 1)
        recipe = catalog.recipe_of(path)
        own, _, others = lines[f"{folder}/"].strip().partition(f"for {recipe}: ")
        assert name in (own if recipe == name else others).split(", ")


def test_ls_fits_a_terminal(prefkd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    shown = prefkd("ls").out.splitlines()
    assert len(shown) <= 60
    assert max(map(len, shown)) <= 120


def test_cat_prints_the_file(prefkd):
    assert prefkd("cat", RECIPE.name).out == RECIPE.path.read_text(encoding="utf-8")


def test_cat_into_a_reader_that_stops(folder):
    shell = f"{sys.executable} -m prefkd cat {RECIPE.name} | head -n 1"
    ended = subprocess.run(shell, shell=True, capture_output=True, text=True)
    assert ended.stderr == ""
    assert len(ended.stdout.splitlines()) == 1


@pytest.mark.parametrize("dest", ["mine.py", "mine", "new/folder/mine", "student"])
def test_cp_adds_suffix_and_folders(dest, prefkd):
    ended = prefkd("cp", RECIPE.name, dest)
    written = Path("student", RECIPE.path.name) if dest == "student" else Path(dest).with_suffix(".py")
    assert ended.code == 0
    assert written.read_bytes() == RECIPE.path.read_bytes()
    assert f"wrote {written}\n" in ended.out
    assert f"prefkd run {written} --config " in ended.out


def test_cp_overwrites_only_by_force(prefkd):
    Path("mine.py").write_text("precious")
    assert prefkd("cp", RECIPE.name, "mine").code == 2
    assert Path("mine.py").read_text() == "precious"
    assert prefkd("cp", RECIPE.name, "mine", "--force").code == 0
    assert Path("mine.py").read_bytes() == RECIPE.path.read_bytes()


@pytest.mark.parametrize("name", catalog.configs())
def test_cp_of_a_config_names_its_recipe(name, prefkd):
    ended = prefkd("cp", name, "my own")
    assert Path("my own.yaml").read_bytes() == catalog.configs()[name].read_bytes()
    assert f"prefkd run {catalog.recipe_of(catalog.configs()[name])} --config 'my own.yaml'" in ended.out
