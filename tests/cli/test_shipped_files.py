"""ls, cp and cat."""

import subprocess
import sys
from pathlib import Path

import pytest

from prefkd import catalog
from prefkd.config import read_layers, read_yaml

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
        assert name in (own.rstrip("; ") if recipe == name else others.partition(";")[0]).split(", ")


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


@pytest.mark.parametrize("name", ["demo/dpo", "demo/ablations/uld", "mistral_7b_to_qwen2.5_1.5b/tis_dpo_distill"])
def test_cp_of_a_config_names_its_recipe_and_needs_no_other_file(name, prefkd):
    ended = prefkd("cp", name, "my own")
    path = catalog.configs()[name]
    copy = Path("my own.yaml")
    assert copy.read_text() == prefkd("cat", name).out
    assert copy.read_text().startswith(catalog.header_of(path))
    assert read_yaml(copy) == {"recipe": catalog.recipe_of(path)} | read_layers(path)
    assert not {"base", "configs", "values"} & read_yaml(copy).keys()
    assert f"prefkd run {catalog.recipe_of(path)} --config 'my own.yaml'" in ended.out


def test_a_long_hand_config_is_copied_as_it_stands(prefkd):
    prefkd("cp", "demo/dpo", "mine")
    assert Path("mine.yaml").read_bytes() == catalog.configs()["demo/dpo"].read_bytes()


def test_cp_of_a_pipeline_keeps_its_values(prefkd):
    ended = prefkd("cp", "mistral_7b_to_qwen2.5_1.5b/ctpd", "mine")
    assert "run it: prefkd pipeline mine.yaml" in ended.out
    assert (
        prefkd("pipeline", "mine.yaml", "--dry-run").err
        == prefkd("pipeline", "mistral_7b_to_qwen2.5_1.5b/ctpd", "--dry-run").err
    )
