"""The student's own start is read once: a resumed or repeated run reads nothing, a killed one what is left."""

import pytest

from prefkd.data.scores import write_shard
from prefkd.training import references
from tests.recipes import single_model, two_models
from tests.recipes.single_model import assert_same_run


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return single_model.make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def read(monkeypatch, tmp_path) -> list[int]:
    """The rows of each shard that is read, with a cache of the test's own."""
    seen: list[int] = []

    def counted(folder, shard, rows, scores):
        seen.extend(scores)
        write_shard(folder, shard, rows, scores)

    monkeypatch.setattr(references, "write_shard", counted)
    monkeypatch.setattr(references, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(references, "PAIRS_PER_SHARD", 4)
    return seen


def test_a_repeated_run_reads_nothing(world, read, tmp_path):
    first = single_model.run("dpo", world, tmp_path / "first")
    assert len(read) == 12 + 5
    again = single_model.run("dpo", world, tmp_path / "again")
    single_model.run("dpo", world, tmp_path / "other", "loss.beta=0.5", "optimizer.lr=0.01", "training.batch_size=6")
    assert len(read) == 12 + 5
    assert_same_run((tmp_path / "first", first), (tmp_path / "again", again), 0)


@pytest.fixture(scope="module")
def cache_of_a_run(world, tmp_path_factory):
    """The cache that a run of two steps has filled."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(references, "HF_DATASETS_CACHE", cache)
        single_model.run("dpo", world, tmp_path_factory.mktemp("runs") / "first", "training.max_steps=2")
    return cache


@pytest.mark.parametrize(
    "change",
    ["data.max_length=60 data.max_prompt_length=20", "data.reverse=true", "training.precision=bfloat16",
     "model.template=plain", "training.max_steps=1", "training.microbatch_size=2", "model.path={world}/other"],
)  # fmt: skip
def test_what_it_depends_on_is_read_again(world, read, cache_of_a_run, tmp_path, monkeypatch, change):
    monkeypatch.setattr(references, "HF_DATASETS_CACHE", cache_of_a_run)
    if not (world / "other").exists():
        two_models.make_model(world / "other", "llama", "byte_level", seed=5)
    single_model.run("dpo", world, tmp_path / "changed", "training.max_steps=2", *change.format(world=world).split())
    assert read


def test_a_killed_reading_continues_where_it_was(world, read, tmp_path, monkeypatch):
    counted = references.write_shard

    def killed(folder, shard, *rest):
        if (shard.split, shard.number) == ("train", 2):
            raise KeyboardInterrupt
        counted(folder, shard, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(references, "write_shard", killed)
        single_model.run("dpo", world, tmp_path / "out", code=130)
    assert len(read) == 8
    metrics = single_model.run("dpo", world, tmp_path / "out")
    assert len(read) == 12 + 5
    monkeypatch.setattr(references, "HF_DATASETS_CACHE", tmp_path / "another")
    whole = single_model.run("dpo", world, tmp_path / "whole")
    assert_same_run((tmp_path / "out", metrics), (tmp_path / "whole", whole), 0)


def test_a_damaged_shard_is_read_again(world, read, tmp_path):
    single_model.run("dpo", world, tmp_path / "first", "training.max_steps=1")
    before = len(read)
    shard = next((tmp_path / "cache").rglob("held_out/shard-00000.parquet"))
    shard.write_bytes(shard.read_bytes()[:-100])
    single_model.run("dpo", world, tmp_path / "again", "training.max_steps=1")
    assert len(read) == before + 4


def test_scores_of_a_teacher_are_replaced_and_instructions_stay(read, tmp_path):
    world = two_models.make_world(tmp_path)
    settings = ("reference=student", "training.max_steps=2", "training.microbatch_size=1")
    live = two_models.run("tis_dpo_distill", world, tmp_path / "live", *settings)
    scores = two_models.score(world, tmp_path / "score", "microbatch_size=1")
    cached = ("~teacher.path", f"teacher.scores={scores}", "weights.contrast=scores")
    stored = two_models.run("tis_dpo_distill", world, tmp_path / "stored", *settings, *cached)
    two_models.assert_same_metrics(live, stored, 1e-6)
