"""Every command, config and link on a page of the documentation is right.

A block in sh holds commands, a block in yaml a config, a part of one, or a pipeline. What is neither stands in a block
of another kind: text, json, python.
"""

import errno
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from prefkd import catalog
from prefkd.cli.main import _parsed
from prefkd.config import examine_config
from prefkd.errors import ConfigError
from prefkd.pipeline.stages import read_pipeline
from tests.test_house import FLOORS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = ("tis_dpo_distill", "dskd_distill", "dpo", "sft", "dpo_distill", "score", "evaluate", "sample", "rank")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]


def blocks(page: Path, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command on a page, without comments."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words: list[str] = []
            for word in [*shlex.split(line, comments=True), "&&"]:
                if word != "&&":
                    words.append(word)
                elif words:
                    yield words
                    words = []


def cases(found) -> list:
    return [pytest.param(page, item, id=f"{page.stem}-{n}") for page in PAGES for n, item in enumerate(found(page))]


def mistakes(error: ConfigError, *, fragment: bool = False) -> list[str]:
    """Without what is told of models, data and folders that are not here.

    Args:
        fragment: Of a part of a config, laid over a demo that it need not go with: unknown keys and wrong types alone.
    """
    told = [str(problem) for problem in error.problems if problem.about is None]
    return [line for line in told if not fragment or re.search("unknown key|: .* is not ", line)]


def check_config(recipe: str, path: Path, overrides: list[str], *, fragment: bool = False) -> None:
    config_class = catalog.load_recipe(catalog.find_recipe(recipe)).Config
    try:
        _, problems = examine_config(config_class, path, overrides)
        assert not mistakes(ConfigError(problems), fragment=fragment)
    except ConfigError as error:
        assert not mistakes(error, fragment=fragment)


def check_prefkd(words: list[str]) -> None:
    call = _parsed(words)
    if words[0] not in ("run", "validate", "plan"):
        return
    named = call.args[0]  # pyright: ignore[reportAttributeAccessIssue]
    config = dict(call.keywords).get("config")  # pyright: ignore[reportAttributeAccessIssue]
    own = config is not None and Path(config).suffix == ".yaml" and not Path(config).exists()
    recipe = Path(named).stem if Path(named).suffix == ".py" else named
    if recipe not in RECIPES and (own or Path(named).suffix == ".py"):
        return  # a recipe and a config of the reader's own
    if own:  # then the settings are those of the recipe
        path = catalog.find_config(f"demo/{recipe}")
    else:
        found, path = catalog.find_run(recipe, config)
        recipe = found.stem
    overrides = [word for word in words[1:] if re.match(r"~[\w.]+$|\w[\w.]*=", word)]
    check_config(recipe, path, overrides)


@pytest.mark.parametrize(("page", "words"), cases(commands))
def test_a_command_can_be_given(page, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_reader")
    if words[0] == "prefkd":
        check_prefkd(words[1:])
    elif words[0] in ("python", "python3") and words[1].endswith(".py") and not words[1].startswith("llama.cpp"):
        assert (ROOT / words[1]).is_file(), words
    elif words[:2] == ["pip", "install"]:
        for extra in re.findall(r"prefkd\[([\w,-]+)\]|\.\[([\w,-]+)\]", " ".join(words)):
            assert set("".join(extra).split(",")) <= EXTRAS.keys(), words


@pytest.mark.parametrize(("page", "block"), cases(lambda page: blocks(page, "yaml")))
def test_a_config_is_sound(page, block, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    written = yaml.safe_load(block)
    if "..." in block:
        return  # where something is left out
    path = tmp_path / "config.yaml"
    if "stages" in written:
        path.write_text(block, encoding="utf-8")
        try:
            read_pipeline(path)
        except ConfigError as error:
            assert not mistakes(error)
        return
    takes = {
        recipe: {part.name for part in fields(catalog.load_recipe(catalog.find_recipe(recipe)).Config)}
        for recipe in RECIPES
    }
    named = written.pop("recipe", None)
    recipe = named or next((name for name in RECIPES if written.keys() <= takes[name]), None)
    assert recipe in RECIPES, f"no recipe takes {', '.join(written)}; a block that is not a config is of kind text"
    path.write_text(yaml.safe_dump({"base": f"demo/{recipe}", **written}), encoding="utf-8")
    check_config(recipe, path, [], fragment=named is None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:|mailto:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (page.parent / file).resolve() if file else page
        assert linked.exists(), target
        if page.parent.name == "docs":
            assert linked.parent.name == "docs", f"{target} is not part of the site"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, (
                target
            )


def test_each_line_that_troubleshooting_explains_is_written_somewhere():
    files = [*(ROOT / "prefkd").rglob("*.py"), *(ROOT / "recipes").glob("*.py")]
    written = "".join(file.read_text(encoding="utf-8") for file in files).replace("{kind}", "config")
    written = re.sub(r'"\s*\n\s*f?"', "", written)  # a text in several pieces
    written += "".join(os.strerror(number).lower() for number in (errno.ENOSPC, errno.EACCES))
    rows = re.findall(r"^\| (.*?) \|", (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
    lines = [row for row in rows if row != "the line says"]
    pieces = {piece.strip() for line in lines for piece in re.split(r"[;:,] |`[^`]*`|\b(?:[A-Z]{3,}|N)\b|\.\.\.", line)}
    assert len(lines) > 50
    assert not [piece for piece in pieces if piece not in written]


def test_the_site_is_built(tmp_path):
    if importlib.util.find_spec("zensical") is None:
        pytest.skip("needs zensical")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (tmp_path / "site" / "tutorial" / "index.html").is_file()


def test_the_picture_of_the_rooms_is_up_to_date():
    spec = importlib.util.spec_from_file_location("make_pictures", ROOT / "docs" / "make_pictures.py")
    assert spec is not None and spec.loader is not None
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    assert [set(floor) for floor in pictures.FLOORS] == [
        set(floor) - {"__main__"} for floor in FLOORS if floor != ("__main__",)
    ]
    assert (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8") == pictures.draw()
