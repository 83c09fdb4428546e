"""Copies of one config in many folders: what each says of itself agrees with where it lies and what it is."""

import re

import pytest
import yaml

from prefkd import catalog
from tests.configs.headers import downloads, header, runs
from tests.configs.pairs import PAIRS, RECIPES

FULL_SIZE = [f"{pair}/{recipe}" for pair in PAIRS for recipe in (*RECIPES, "ctpd")]


def settings(name: str) -> dict:
    return yaml.safe_load(catalog.find_shipped(name).read_text(encoding="utf-8"))


def without_names(name: str) -> dict:
    """The settings of a config but for what differs from pair to pair: folders, models, and the teacher's storage."""
    folder = name.partition("/")[0]
    text = catalog.find_shipped(name).read_text(encoding="utf-8").replace(folder, "PAIR")
    for place, hub_id in zip(("TEACHER", "STUDENT"), PAIRS[folder], strict=True):
        text = text.replace(f"models/{hub_id.rpartition('/')[2]}", f"models/{place}")
    found = yaml.safe_load(text)
    found.get("teacher", {}).pop("quantization", None)
    return found


@pytest.mark.parametrize("name", [*catalog.configs(), *catalog.pipelines()])
def test_it_writes_to_a_folder_of_its_own_name(name):
    assert settings(name)["output_dir"] == f"runs/{name}"


@pytest.mark.parametrize("name", catalog.configs())
def test_its_first_run_is_its_own(name):
    """Then come variants. All run a config of the same folder with a recipe that it is for."""
    commands = [command for command in runs(header(name)) if command.config == name]
    assert commands[0] == (catalog.recipe_of(catalog.find_config(name)), name, [], commands[0].processes)
    for command in runs(header(name)):
        assert catalog.recipe_of(catalog.find_config(command.config)) == command.recipe
        assert command.config.partition("/")[0] == name.partition("/")[0]


@pytest.mark.parametrize("name", FULL_SIZE)
def test_it_downloads_the_models_that_it_names(name):
    """In the folders that `prefkd download` gives them."""
    text, ids = catalog.find_shipped(name).read_text(encoding="utf-8"), PAIRS[name.partition("/")[0]]
    named = set(re.findall(r"\bmodels/([\w.-]+)", text))
    assert [hub_id.rpartition("/")[2] for hub_id in downloads(header(name))] == [
        model for model in (hub_id.rpartition("/")[2] for hub_id in ids) if model in named
    ]
    assert set(downloads(header(name))) <= set(ids)
    teacher, student = (f"models/{hub_id.rpartition('/')[2]}" for hub_id in ids)
    values = settings(name)
    assert values.get("student", {"path": student})["path"] == student
    assert values.get("teacher", values.get("model", {"path": teacher}))["path"] == teacher


@pytest.mark.parametrize("name", FULL_SIZE)
def test_it_says_what_it_takes_and_runs_on_several_gpus(name):
    text = header(name)
    assert "Expected memory: " in text
    assert " --nproc-per-node 8\n" in text


@pytest.mark.parametrize("recipe", [*RECIPES, "ctpd"])
def test_pairs_differ_in_models_only(recipe):
    first, *others = (without_names(f"{pair}/{recipe}") for pair in PAIRS)
    for pair, other in zip(list(PAIRS)[1:], others, strict=True):
        if recipe == "dskd_distill" and PAIRS[pair][0] == "Qwen/Qwen3-8B":  # one vocabulary: no projectors
            assert other.pop("objective")[:2] == first["objective"][:2]
            assert other == {key: value for key, value in first.items() if key not in ("objective", "projectors")}
        else:
            assert other == first
