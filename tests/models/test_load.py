"""Weights are read where they are needed."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from prefkd.errors import PrefkdError
from prefkd.files import fingerprint
from prefkd.models.contrast import weights_fingerprint
from prefkd.models.load import ModelConfig, TeacherConfig, load_causal_lm, read_side
from prefkd.models.server import ServerConfig
from tests.tiny import make_model


def test_weights_go_straight_to_the_device(tmp_path, monkeypatch):
    """Not to main memory first, where several processes would not have room for theirs at one time."""
    folder, asked = make_model(tmp_path / "model", "llama", "byte_level"), {}

    def read(path, **how):
        asked.update(how)
        raise OSError("no GPU here")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", read)
    device = torch.device("cuda", 3)
    with pytest.raises(PrefkdError, match="no GPU here"):
        load_causal_lm(ModelConfig(str(folder)), dtype=torch.bfloat16, device=device)
    assert asked["device_map"] == {"": device} and asked["dtype"] == torch.bfloat16


def test_no_weights_are_read_for_an_outline(tmp_path, monkeypatch):
    folder = make_model(tmp_path / "model", "llama", "byte_level")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("read"))
    lm = load_causal_lm(ModelConfig(str(folder)), dtype=torch.bfloat16, device=torch.device("meta"))
    assert {parameter.device.type for parameter in lm.parameters()} == {"meta"}


def test_the_weights_of_a_model_of_the_hub_are_known_by_their_commit(tmp_path, monkeypatch):
    hub(tmp_path, monkeypatch, v2=512, main=64)
    found = [weights_fingerprint(ModelConfig("me/mine", revision=revision)) for revision in ("v2", None)]
    assert found == [fingerprint("hub", "me/mine", commit.ljust(40, "0")) for commit in ("v2", "main")]


def test_what_is_said_of_a_model_of_the_hub_is_said_of_its_revision(tmp_path, monkeypatch):
    """Bounds that `main` has by now are those of another model."""
    hub(tmp_path, monkeypatch, v2=512, main=64)
    assert read_side(ModelConfig("me/mine", revision="v2")).positions == 512
    assert read_side(ModelConfig("me/mine")).positions == 64
    behind = TeacherConfig(server=ServerConfig("http://127.0.0.1:1", "mine"), tokenizer="me/mine", revision="v3")
    with pytest.raises(PrefkdError, match="cannot load the tokenizer of me/mine"):
        read_side(behind)


def hub(folder: Path, monkeypatch, **positions: int) -> None:
    """A cache of the Hub with revisions of me/mine that have so many positions."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    cache = folder / "models--me--mine"
    (cache / "refs").mkdir(parents=True)
    for revision, count in positions.items():
        commit = revision.ljust(40, "0")
        (cache / "refs" / revision).write_text(commit)
        make_model(cache / "snapshots" / commit, "llama", "byte_level", max_position_embeddings=count)
