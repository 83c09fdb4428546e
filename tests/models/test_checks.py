"""A model is compared with its own logits on the first pair; nothing that is wrong passes, and no rounding fails."""

from dataclasses import replace

import pytest
import torch

from prefkd.data.collate import collate_pairs
from prefkd.data.steps import Microbatch
from prefkd.errors import PrefkdError
from prefkd.models import checks
from prefkd.models.checks import EXACT, ROUNDED, check_model, difference, own_logprobs, wholly_in_float32
from prefkd.models.load import ModelConfig, load_causal_lm
from prefkd.models.logprob_model import LogprobModel
from prefkd.models.quantize import quantize
from tests.models.architectures import ARCHITECTURES, CPU, model_of, random_pairs
from tests.tiny import make_model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_check_agrees_with_the_models_own_logits(tmp_path, architecture):
    model = model_of(tmp_path, architecture)
    for share in (True, False):
        batch = collate_pairs(random_pairs(100, seed=2), Microbatch([0]), share_prompt=(share, share))
        check_model(model, batch.student, "student")


# Types of weights and of what is computed: a student, a teacher in float32, one in bfloat16.
TYPES = {
    "float32": (torch.float32, torch.float32),
    "autocast": (torch.float32, torch.bfloat16),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
}


def _typed(folder, types: str) -> LogprobModel:
    weights, precision = TYPES[types]
    lm = load_causal_lm(ModelConfig(str(folder)), dtype=weights, device=CPU)
    return LogprobModel(lm, precision=precision).freeze()


@pytest.mark.parametrize("types", TYPES)
def test_check_refuses_a_model_that_rescales_its_logits(tmp_path, types):
    folder = make_model(tmp_path / "granite", "granite", "byte_level", logits_scaling=8.0, initializer_range=1.0)
    model = _typed(folder, types)
    model.scale = 1.0  # as if its config said nothing of it
    batch = collate_pairs(random_pairs(100, seed=2), Microbatch([0]), share_prompt=(False, False))
    with pytest.raises(PrefkdError, match="changes its logits after the head"):
        check_model(model, batch.student, "student")


@pytest.mark.parametrize("types", TYPES)
def test_check_refuses_a_model_that_ignores_the_mask(tmp_path, monkeypatch, types):
    model = _typed(make_model(tmp_path / "llama", "llama", "byte_level"), types)
    monkeypatch.setattr(LogprobModel, "_attention_mask", lambda self, tokens: torch.ones_like(tokens.input_ids))
    batch = collate_pairs(random_pairs(100, seed=2), Microbatch([0]), share_prompt=(True, True))
    with pytest.raises(PrefkdError, match="set share_prompt: false"):
        check_model(model, batch.student, "student")


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
@pytest.mark.parametrize("types", ["autocast", "bfloat16"])
def test_check_takes_rounding_for_what_it_is(tmp_path, types, quantization):
    """Logits so large that bfloat16 is far off, and a model that is right all the same."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16, "initializer_range": 1.0}
    model = _typed(make_model(tmp_path / "llama", "llama", "byte_level", **sizes), types)
    model.lm.lm_head.weight *= 16
    if quantization != "none":
        quantize(model.lm, quantization)
    batch = collate_pairs(random_pairs(100, seed=2), Microbatch([2]), share_prompt=(True, True))
    before = model(batch.student)
    assert difference(model, batch.student) > ROUNDED
    check_model(model, batch.student, "student")
    assert model.precision == TYPES[types][1] and torch.equal(model(batch.student), before)
    with wholly_in_float32(model):
        assert difference(model, batch.student) < EXACT


def test_what_one_token_in_a_hundred_says_does_not_decide(tmp_path, monkeypatch):
    model = model_of(tmp_path, "llama")
    tokens = collate_pairs(random_pairs(100, seed=2), Microbatch([0]), share_prompt=(True, True)).student
    own = own_logprobs(model, tokens)
    tokens = replace(tokens, predictors=tokens.predictors.repeat(15), targets=tokens.targets.repeat(15))
    off = own.repeat(15)
    off[7] += 3.0
    monkeypatch.setattr(checks, "own_logprobs", lambda model, tokens: off)
    check_model(model, tokens, "student")
    monkeypatch.setattr(checks, "own_logprobs", lambda model, tokens: off + 0.01)
    with pytest.raises(PrefkdError, match=r"by 0\.01 nats"):
        check_model(model, tokens, "student")
