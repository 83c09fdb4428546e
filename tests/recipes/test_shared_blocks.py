"""Where two recipes share a block, it is the same word for word: copies of a training loop must not drift apart."""

import ast
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

import prefkd
from prefkd.catalog import RECIPES

RULER = "# ----"
NAMES = ["Config", "Models", "Run", "load_data", "load_models", "setup", "evaluate", "train", "save", "main"]
SOURCES = {path.stem: path.read_text(encoding="utf-8") for path in RECIPES.glob("*.py")}
TRAINING = [name for name, source in SOURCES.items() if "def train(" in source]

# What the model that learns is called: a student where there is a teacher.
MODEL = {"run.student.": "run.model.", "the student": "the model"}

# Lines that a recipe may have of its own inside the training step.
OWN_LINES = {
    "sft": {
        "tokens_of_step = weighted_sum(run.train_pairs, rows, target_tokens) or 1.0  # 0 where no pair has a weight",
        "# A mean over the tokens of the whole step; FSDP2 averages gradients over ranks, hence the world size.",
        "((losses * batch.counted).sum() / tokens_of_step * ranks.world_size).backward()",
    }
}
STAND_FOR = {
    "sft": {
        "# A mean over the pairs of the whole step; FSDP2 averages gradients over ranks, hence the world size.",
        "((losses * batch.counted).sum() / len(rows) * ranks.world_size).backward()",
    }
}


def one_name(text: str) -> str:
    for student, model in MODEL.items():
        text = text.replace(student, model)
    return text


def training_step(recipe: str) -> list[str]:
    """The lines between the two rulers."""
    rulers = [number for number, line in enumerate(SOURCES[recipe].splitlines()) if RULER in line]
    assert len(rulers) == 2, recipe
    lines = SOURCES[recipe].splitlines()[rulers[0] + 1 : rulers[1]]
    return [one_name(line) for line in lines]


def function(recipe: str, name: str) -> str:
    for node in ast.parse(SOURCES[recipe]).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
            return one_name(ast.get_source_segment(SOURCES[recipe], node) or "")
    raise AssertionError(f"{recipe} has no {name}")


def without(lines: Iterable[str], own: set[str]) -> list[str]:
    assert own <= {line.strip() for line in lines}
    return [line for line in lines if line.strip() not in own]


@pytest.mark.parametrize("recipe", TRAINING)
def test_the_parts_have_their_names_and_order(recipe):
    names = [node.name for node in ast.parse(SOURCES[recipe]).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    assert [name for name in names if name in NAMES] == NAMES


@pytest.mark.parametrize("recipe", SOURCES)
def test_recipes_and_their_functions_are_short(recipe):
    assert len(SOURCES[recipe].splitlines()) <= 320
    for node in ast.walk(ast.parse(SOURCES[recipe])):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None and node.end_lineno - node.lineno < 45, node.name


def test_settings_are_not_guessed_from_their_names():
    """A recipe of the user's own may call its fields as it likes."""
    guess = re.compile(r"(hasattr|getattr)\(config, ")
    package = Path(prefkd.__file__).parent
    transformers = {package / "demo.py", package / "models" / "load.py", package / "models" / "head.py"}
    for path in {*RECIPES.glob("*.py"), *package.rglob("*.py")} - transformers:  # whose configs these read
        assert not guess.search(path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("recipe", TRAINING)
def test_the_training_step_is_one_block(recipe):
    block = training_step(recipe)
    assert len(block) <= 45
    pattern = without(training_step("dpo"), STAND_FOR.get(recipe, set()))
    assert without(block, OWN_LINES.get(recipe, set())) == pattern


@pytest.mark.parametrize("recipe", sorted(set(TRAINING) - {"sft"}))
def test_the_training_loop_of_pairs_is_one(recipe):
    assert function(recipe, "train") == function("dpo", "train")


@pytest.mark.parametrize("name", ["save"])
def test_sft_and_dpo_are_alike_in(name):
    assert function("sft", name) == function("dpo", name)


@pytest.mark.parametrize("recipe", sorted(set(TRAINING) - {"sft", "dpo"}))
def test_distillations_evaluate_and_save_alike(recipe):
    for name in ("evaluate", "save"):
        assert function(recipe, name) == function("tis_dpo_distill", name)
