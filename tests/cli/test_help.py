"""The help is there at once and shows examples."""

import subprocess
import sys
from importlib.metadata import version

import pytest

from prefkd.cli.main import COMMANDS

HEAVY = {"torch", "transformers", "datasets", "torchtune", "huggingface_hub"}


@pytest.mark.parametrize("arguments", [["--help"], ["ls"], ["run", "--help"], ["cat", "tis_dpo_distill"]])
def test_nothing_heavy_is_imported(arguments):
    """What takes seconds to import, so that the answer comes in a fraction of one."""
    command = [sys.executable, "-X", "importtime", "-m", "prefkd", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    assert "tyro" in imported and not imported & HEAVY


@pytest.mark.parametrize("command", COMMANDS)
def test_each_verb_shows_examples(command, prefkd):
    ended = prefkd(command, "--help")
    assert ended.code == 0
    assert f"\n    prefkd {command}" in ended.out


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_overview_names_all_verbs(arguments, prefkd):
    ended = prefkd(*arguments)
    assert ended.code == 0
    assert all(f"\n  {command} " in ended.out for command in COMMANDS)


def test_the_version_is_that_of_the_package(prefkd):
    assert prefkd("--version").out.strip() == version("prefkd")
