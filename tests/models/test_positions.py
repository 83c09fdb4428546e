"""A row has no more tokens than its models have positions; what it is read with does not change how it is read."""

from pathlib import Path

import pytest

from prefkd.data.pairs import DataConfig, load_pairs
from prefkd.data.tokenizing import align_pairs
from prefkd.errors import PrefkdError
from prefkd.models.load import ModelConfig, position_count, read_side
from tests.models.test_shard import LONGROPE
from tests.recipes import two_models
from tests.tiny import make_model, write_pairs


def make(folder: Path, model_type: str = "llama", **settings) -> ModelConfig:
    return ModelConfig(str(make_model(folder, model_type, "byte_level", **settings)))


def test_how_many_there_are(tmp_path):
    longrope = {"rope_parameters": LONGROPE | {"rope_theta": 1e4}, "original_max_position_embeddings": 256}
    assert position_count(make(tmp_path / "llama", max_position_embeddings=300)) == 300
    assert position_count(make(tmp_path / "phi3", "phi3", num_key_value_heads=4, **longrope)) == 256
    yarn = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4, "original_max_position_embeddings": 256}
    assert position_count(make(tmp_path / "yarn", rope_parameters=yarn)) == 512


@pytest.mark.parametrize(("max_length", "fits"), [(40, True), (300, False)])
@pytest.mark.parametrize("short", ["student", "teacher"])
def test_a_row_beyond_the_last_position(tmp_path, max_length, fits, short):
    sides = {
        name: read_side(make(tmp_path / name, max_position_embeddings=40 if name == short else 512))
        for name in ("student", "teacher")
    }
    pairs = load_pairs(DataConfig(str(write_pairs(tmp_path / "pairs.jsonl")), held_out_fraction=0.0)).train
    config = DataConfig("pairs.jsonl", max_length=max_length, max_prompt_length=20)
    contrast = ("{prompt} Be kind.", "{prompt} Be rude.")
    if fits:
        assert len(align_pairs(pairs, **sides, config=config, contrast=contrast))
        return
    with pytest.raises(PrefkdError, match=r"^row \d+ of .* tokens, and .* has 40 positions; set data\.max_length=40$"):
        align_pairs(pairs, **sides, config=config, contrast=contrast)


def test_a_recipe_says_so_before_it_loads_a_model(tmp_path, capsys, monkeypatch):
    world = two_models.make_world(tmp_path)
    make_model(world / "teacher", "llama", "byte_level", seed=2, max_position_embeddings=40)
    monkeypatch.setattr("prefkd.models.load.load_causal_lm", None)
    two_models.run("tis_dpo_distill", world, tmp_path / "out", code=2)
    assert "has 40 positions; set data.max_length=40" in capsys.readouterr().err
