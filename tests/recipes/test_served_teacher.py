"""Recipes with a teacher behind a server: the numbers are those of the model in memory, and no key is ever written."""

import json
import random
from pathlib import Path

import pytest
import torch

from prefkd.catalog import RECIPES, load_recipe
from prefkd.cli.main import main
from prefkd.config import load_config
from prefkd.data.scores import is_finished
from prefkd.errors import PrefkdError
from prefkd.models import server as server_module
from prefkd.ranks import Ranks
from tests.models.text_server import text_server
from tests.recipes import two_models
from tests.recipes.evaluations import run_evaluation
from tests.recipes.test_score import read
from tests.recipes.two_models import make_world, score
from tests.tiny import make_model

SECRET = "sk-never-to-be-seen"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = make_world(tmp_path_factory.mktemp("world"))
    make_model(folder / "plus", "llama", "byte_level", seed=7)
    return folder


@pytest.fixture(scope="module")
def running(world):
    with text_server({"big": world / "teacher", "plus": world / "plus"}) as server:
        yield server


@pytest.fixture
def server(running, monkeypatch):
    running.script, running.always = [], ""
    monkeypatch.setattr(server_module, "WAITS", (0.05, 0.1))
    monkeypatch.setenv("BIG_KEY", SECRET)
    return running


def behind(server, world: Path, key: str = "teacher", model: str = "big", **settings) -> str:
    named = {"url": server.url, "model": model, "key_env": "BIG_KEY", "patience": 0.3} | settings
    return f"{key}={{path: null, tokenizer: {world}/teacher, server: {json.dumps(named)}}}"


def assert_no_secret(folder: Path, *texts: str) -> None:
    """Look through everything that was written or printed."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    assert not [file for file in files if SECRET.encode() in file.read_bytes()]
    assert not [text for text in texts if SECRET in text]


def assert_same_scores(one: Path, other: Path, tolerance: float = 1e-4) -> None:
    rows, others = read(one), read(other)
    assert rows.keys() == others.keys()
    for place, row in rows.items():
        for name in row.keys() - {"file", "row", "content"}:
            assert others[place][name] == pytest.approx(row[name], abs=tolerance), name


def test_score(world, server, tmp_path, capsys):
    contrast = ["contrast.kind=models"]
    local = [
        f"contrast.{name}={{path: {world}/{folder}, dtype: float32}}"
        for name, folder in (("positive", "plus"), ("negative", "teacher"))
    ]
    there = [
        behind(server, world, f"contrast.{name}", model) for name, model in (("positive", "plus"), ("negative", "big"))
    ]
    here = score(world, tmp_path / "here", *contrast, *local)
    out = score(world, tmp_path / "there", *contrast, behind(server, world), *there)
    assert_same_scores(here, out)
    parts = json.loads((out / "fingerprint.json").read_text())
    assert parts["teacher.model"] == "big on a server" and parts["contrast.positive.model"] == "plus on a server"
    assert len(parts["teacher.probe"].split()) > 5
    printed = capsys.readouterr()
    assert "big at http://127.0.0.1:" in printed.out
    assert_no_secret(tmp_path, printed.out, printed.err)


def test_a_pass_that_ends_at_ten_moments_gives_the_same_scores(world, server, tmp_path, capsys):
    one_by_one = ("pairs_per_shard=1", "contrast.kind=none", behind(server, world, concurrency=2))
    whole = score(world, tmp_path / "whole", *one_by_one)
    recipe, moments = load_recipe(RECIPES / "score.py"), random.Random(15)
    ours = [*one_by_one, f"output_dir={tmp_path}/cut"]
    config = load_config(recipe.Config, tmp_path / "whole.yaml", ours)
    run = recipe.setup(config, Ranks(0, 1, torch.device("cpu")))
    for _ in range(10):
        run.shards = [shard for shard in run.planned if not is_finished(run.folder, shard)]
        server.script = [""] * moments.randrange(7) + ["401"] * 9  # the key expires
        with pytest.raises(PrefkdError, match="refuses the key in BIG_KEY"):
            recipe.score(config, run)
    server.script = []
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "cut").rglob("*.parquet")}
    assert 0 < len(before) < 17
    cut = score(world, tmp_path / "cut", *one_by_one)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    for file in whole.rglob("*.parquet"):
        assert file.read_bytes() == (cut / file.relative_to(whole)).read_bytes()
    printed = capsys.readouterr()
    assert_no_secret(tmp_path, printed.out, printed.err)


def test_another_model_under_the_same_name_does_not_resume(world, server, tmp_path, capsys):
    out = score(world, tmp_path / "out", behind(server, world))
    next(out.rglob("*.parquet")).unlink()
    server.always = "other"
    score(world, tmp_path / "out", behind(server, world), code=2)
    assert "teacher.probe: differs from what was scored; restore it" in capsys.readouterr().err
    score(world, tmp_path / "out", code=2)
    assert "teacher.model: differs from what was scored" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "more"),
    [
        ("dpo_distill", ()),
        ("tis_dpo_distill", ("weights={contrast: prompt_pair}",)),
        ("dskd_distill", ("objective=[{_component_: prefkd.training.terms.alm}]",)),
    ],
)
def test_live(world, server, tmp_path, capsys, recipe, more):
    steps = ("training.max_steps=2", *more)
    here = two_models.run(recipe, world, tmp_path / "here", *steps)
    there = two_models.run(recipe, world, tmp_path / "there", *steps, behind(server, world))
    two_models.assert_same_metrics(here, there, 1e-3)
    card = (tmp_path / "there" / "student" / "README.md").read_text()
    assert "`big` on a vllm server" in card and server.url not in card
    printed = capsys.readouterr()
    assert_no_secret(tmp_path, printed.out, printed.err)


def test_hidden_states_are_refused_before_anything_is_loaded(world, server, tmp_path, capsys):
    terms = "objective=[{_component_: prefkd.training.terms.dual_space, weight: 1.0}]"
    two_models.run("dskd_distill", world, tmp_path / "out", terms, behind(server, world), code=2)
    assert "teacher.server: has neither hidden states nor logits" in capsys.readouterr().err


def test_evaluate(world, server, tmp_path, capsys):
    settings = f"""
        checkpoints:
          here: {{path: {world}/teacher, dtype: float32}}
          there:
            tokenizer: {world}/teacher
            server: {{url: "{server.url}", model: big, key_env: BIG_KEY, patience: 0.3}}
        preferences: {{data: {{test: {{source: {world}/held_out.jsonl}}}}}}
        """
    run_evaluation(settings, tmp_path / "out")
    here, there = (
        [json.loads(line) for line in (tmp_path / "out/preferences/test" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("here", "there")
    )
    assert len(here) == 5
    for one, other in zip(here, there, strict=True):
        assert one.pop("chosen_logprob") == pytest.approx(other.pop("chosen_logprob"), abs=1e-3)
        assert one.pop("rejected_logprob") == pytest.approx(other.pop("rejected_logprob"), abs=1e-3)
        assert one == other
    printed = capsys.readouterr()
    assert_no_secret(tmp_path, printed.out, printed.err)


def test_plan_and_validate_need_no_server(world, server, tmp_path, capsys):
    config = tmp_path / "plan.yaml"
    config.write_text(
        f"""
        output_dir: {tmp_path}/out
        student: {{path: {world}/student}}
        teacher: {{tokenizer: {world}/teacher, server: {{url: "http://127.0.0.1:9", model: big}}}}
        data: {{source: {world}/pairs.jsonl, held_out_source: {world}/held_out.jsonl}}
        """
    )
    for recipe in ("score", "tis_dpo_distill"):
        assert main(["validate", recipe, "--config", str(config)]) == 0
        assert main(["plan", recipe, "--config", str(config)]) == 0
    assert "Traceback" not in capsys.readouterr().err
