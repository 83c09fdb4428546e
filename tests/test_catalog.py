"""What is shipped is found, and every shipped config is sound."""

import subprocess
import sys
from pathlib import Path

import pytest

from prefkd import catalog
from prefkd.catalog import load_recipe
from prefkd.config import load_config
from prefkd.errors import ConfigError, PrefkdError

ROOT = Path(__file__).resolve().parents[1]


def test_every_recipe_has_a_summary_of_one_sentence():
    assert catalog.recipes()
    for recipe in catalog.recipes():
        assert recipe.summary.endswith(".")
        assert len(recipe.summary) <= 120


def test_every_config_belongs_to_a_recipe():
    listed = [config for recipe in catalog.recipes() for config in recipe.configs]
    assert sorted(listed) == sorted(catalog.configs())


@pytest.mark.parametrize("name", catalog.configs())
def test_every_shipped_config_is_sound(name):
    """But for models, scores and data, which are fetched or written first."""
    recipe = load_recipe(catalog.find_recipe(catalog.recipe_of(catalog.find_config(name))))
    try:
        load_config(recipe.Config, catalog.find_config(name))
    except ConfigError as error:
        assert [problem for problem in error.problems if problem.about not in ("model", "scores", "data")] == []


def test_names_come_before_paths_and_paths_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = catalog.recipes()[0]
    Path(recipe.name).mkdir()
    Path("mine.py").write_text("")
    assert catalog.find_recipe(recipe.name) == recipe.path
    assert catalog.find_recipe("./mine.py") == Path("mine.py")


def test_shipped_file():
    some = next(path for path in sorted(catalog.CONFIGS.rglob("*")) if path.is_file())
    name = some.relative_to(catalog.CONFIGS).as_posix()
    assert catalog.shipped_file(name) == str(some)
    with pytest.raises(PrefkdError, match=f"did you mean {name}"):
        catalog.shipped_file(name + "x")


def test_bare_checkout_outside_its_folder(tmp_path):
    command = [sys.executable, "-c", "from prefkd import catalog; print(catalog.RECIPES, catalog.CONFIGS)"]
    ended = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert ended.stdout.split() == [str(ROOT / "recipes"), str(ROOT / "configs")]


def test_a_config_alone_says_its_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe, config = catalog.find_run("demo/dskd_distill", None)
    assert (recipe.stem, config) == ("dskd_distill", catalog.configs()["demo/dskd_distill"])
    Path("mine.yaml").write_text("base: demo/sft")
    assert catalog.find_run("mine.yaml", None) == (catalog.RECIPES / "sft.py", Path("mine.yaml"))
    Path("mine.yaml").write_text("output_dir: x")
    with pytest.raises(PrefkdError, match="does not say its recipe"):
        catalog.find_run("mine.yaml", None)
    with pytest.raises(PrefkdError, match="sft needs a config; add --config, for instance --config demo/sft"):
        catalog.find_run("sft", None)
    with pytest.raises(PrefkdError, match="no config is named demo/sfk; did you mean demo/sft"):
        catalog.find_run("demo/sfk", None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("recipe: [sft]", r"^mine.yaml: recipe: \['sft'\] is not the name of a recipe"),
        ("recipe: 3", "^mine.yaml: recipe: 3 is not the name of a recipe"),
        ("recipe: sft\n\tmodel: x", "^mine.yaml, line 2: found a tab"),
        ("recipe: !!int x", "^mine.yaml: a number or a date in it cannot be read"),
        ("recipe: \udcff", "^mine.yaml: not a YAML text in UTF-8"),
    ],
)
def test_why_a_config_alone_does_not_say_its_recipe(tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(PrefkdError, match=said):
        catalog.find_run("mine.yaml", None)


def test_one_config_of_a_file_is_found_by_its_recipe_or_its_name(tmp_path):
    numbered = tmp_path / "numbered.yaml"
    numbered.write_text("configs: {1: {recipe: sft}}")
    assert catalog.find_config(str(numbered), "sft") == numbered / "1"

    pair = catalog.CONFIGS / "mistral_7b_to_qwen2.5_1.5b.yaml"
    assert catalog.find_config("mistral_7b_to_qwen2.5_1.5b", "sft") == pair / "sft"
    assert catalog.find_config("mistral_7b_to_qwen2.5_1.5b/dpo") == pair / "dpo"
    assert catalog.find_config(str(pair), "sft") == pair / "sft"
    assert catalog.find_config(f"{pair}/sft") == pair / "sft"
    assert catalog.recipe_of(pair / "dpo") == "dpo"
    assert catalog.is_pipeline(pair / "ctpd") and not catalog.is_pipeline(pair / "dpo")
    with pytest.raises(PrefkdError, match="holds no config sfd; did you mean sft"):
        catalog.find_config(f"{pair}/sfd")
    with pytest.raises(PrefkdError, match=r"mistral_7b_to_qwen2.5_1.5b holds several configs; name one: \S+/sft, "):
        catalog.find_config("mistral_7b_to_qwen2.5_1.5b", "evaluate")


def test_few_files_hold_all_configs():
    assert len(list(catalog.CONFIGS.rglob("*.yaml"))) <= 30
