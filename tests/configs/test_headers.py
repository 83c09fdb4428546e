"""Copies of one config in many folders: what each says of itself agrees with where it lies and what it is."""

import pytest

from prefkd import catalog
from prefkd.config import read_layers
from tests.configs.headers import FILES, downloads, header, runs
from tests.configs.pairs import PAIRS, RECIPES

NAMES = [path.relative_to(catalog.CONFIGS).with_suffix("").as_posix() for path in FILES]


@pytest.mark.parametrize("name", [*catalog.configs(), *catalog.pipelines()])
def test_it_writes_to_a_folder_of_its_own_name(name):
    path = catalog.find_base(name)
    written = read_layers(path)
    assert written["output_dir"].replace("${values.pair}", name.partition("/")[0]) == f"runs/{name}"


@pytest.mark.parametrize("name", NAMES)
def test_a_header_runs_every_config_of_its_file_first_as_it_is(name):
    """Then come variants. All run a config of the same folder with the recipe that it is for."""
    commands = runs(header(name))
    held = [path for path in catalog.configs().values() if (catalog.CONFIGS / f"{name}.yaml") in (path, path.parent)]
    for path in held:
        first = next(command for command in commands if command.path == path)
        assert (first.recipe, first.overrides) == (catalog.recipe_of(path), [])
    for command in commands:
        assert catalog.recipe_of(command.path) == command.recipe
        assert command.config.partition("/")[0] == name.partition("/")[0]


@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_downloads_the_models_that_it_names(pair):
    """In the folders that `prefkd download` gives them."""
    assert downloads(header(pair)) == list(PAIRS[pair])
    teacher, student = (f"models/{hub_id.rpartition('/')[2]}" for hub_id in PAIRS[pair])
    for recipe in RECIPES:
        values = read_layers(catalog.find_config(f"{pair}/{recipe}"))
        assert values.get("student", {"path": student})["path"] == student
        assert values.get("teacher", values.get("model", {"path": teacher}))["path"] == teacher


@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_says_what_it_takes_and_runs_on_several_gpus(pair):
    assert "# Expected memory:\n" in header(pair)
    for recipe in RECIPES:
        assert any(run.recipe == recipe and run.processes == 8 for run in runs(header(pair)))
