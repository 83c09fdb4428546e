"""The help is there at once and shows examples."""

import subprocess
import sys
import time

import pytest

from prefkd.cli.main import VERBS

HEAVY = {"torch", "transformers", "datasets", "torchtune", "huggingface_hub"}


@pytest.mark.parametrize("arguments", [["--help"], ["ls"], ["run", "--help"], ["cat", "tis_dpo_distill"]])
def test_no_heavy_import_and_a_quick_answer(arguments):
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        command = [sys.executable, "-X", "importtime", "-m", "prefkd", *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
    imported = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    assert not imported & HEAVY
    assert min(seconds) < 1


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_shows_examples(verb, prefkd):
    ended = prefkd(verb, "--help")
    assert ended.code == 0
    assert f"\n    prefkd {verb}" in ended.out


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_overview_names_all_verbs(arguments, prefkd):
    ended = prefkd(*arguments)
    assert ended.code == 0
    assert all(f"\n  {verb} " in ended.out for verb in VERBS)
