"""Weights are read where they are needed."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from prefkd.errors import PrefkdError
from prefkd.models.load import ModelConfig, load_causal_lm
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
