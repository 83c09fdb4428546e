"""One row for prompt, chosen and rejected answer gives what two rows give, for every kind of attention."""

from dataclasses import replace

import pytest
import torch
from datasets import Dataset

from prefkd.data.batches import collate_pairs
from prefkd.data.rows import AlignedAnswer, AlignedRow, Reading
from prefkd.data.steps import Microbatch
from prefkd.errors import PrefkdError
from prefkd.models.load import ModelConfig, load_causal_lm
from prefkd.models.logprob_model import EXACT, ROUNDED, LogprobModel
from prefkd.models.quantize import quantize
from tests.tiny import make_model

CPU = torch.device("cpu")

ARCHITECTURES = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": False},
    "qwen3": {},
    "phi3": {"sliding_window": 6, "num_key_value_heads": 4},
    "mistral": {"sliding_window": 5},
    "gemma3_text": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "gemma3_text-capped": {"final_logit_softcapping": 2.0, "layer_types": ["full_attention", "full_attention"]},
    "gemma2": {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 1.0, "sliding_window": 20},
    "granite": {"logits_scaling": 8.0},
    "cohere": {"logit_scale": 0.0625},
    "hyperclovax": {"logits_scaling": 0.25},
    "minicpm3": {
        "dim_model_base": 8,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "num_key_value_heads": 4,
    },
    "qwen2-sliding": {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1},
}


def _pairs(vocab_size: int, seed: int) -> Dataset:
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for row, (prompt, chosen, rejected) in enumerate([(7, 5, 9), (1, 1, 3), (12, 8, 2)]):
        ids = [torch.randint(vocab_size, (n,), generator=generator).tolist() for n in (prompt, chosen, rejected)]
        reading = Reading(ids[0], (ids[1], ids[2]), (range(chosen), range(rejected)))
        answers = AlignedAnswer(chosen, True, chosen, chosen), AlignedAnswer(rejected, False, rejected, rejected)
        rows.append({"file": "made", "row": row, **AlignedRow(reading, reading, answers, {}).columns()})
    return Dataset.from_list(rows)


def _model(tmp_path, architecture: str) -> LogprobModel:
    model_type = architecture.split("-")[0]
    folder = make_model(tmp_path / architecture, model_type, "byte_level", **ARCHITECTURES[architecture])
    return LogprobModel(load_causal_lm(ModelConfig(str(folder)), dtype=torch.float64, device=CPU), chunk_size=3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shared_prompt_is_separate_rows(tmp_path, architecture):
    model = _model(tmp_path, architecture)
    aligned = _pairs(model.lm.config.vocab_size, seed=1)
    results = []
    for share in (True, False):
        batch = collate_pairs(aligned, Microbatch([0, 1, 2]), share_prompt=(share, share))
        logprobs = model(batch.student)
        weights = torch.linspace(-1, 1, len(logprobs), dtype=logprobs.dtype)
        gradients = torch.autograd.grad((weights * logprobs).sum(), list(model.parameters()))
        results.append((logprobs, *gradients))
    for shared, separate in zip(*results, strict=True):
        # The models compute norms and angles in float32 even here.
        torch.testing.assert_close(shared, separate, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_check_agrees_with_the_models_own_logits(tmp_path, architecture):
    model = _model(tmp_path, architecture)
    for share in (True, False):
        batch = collate_pairs(_pairs(100, seed=2), Microbatch([0]), share_prompt=(share, share))
        model.check(batch.student, "student")


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
    batch = collate_pairs(_pairs(100, seed=2), Microbatch([0]), share_prompt=(False, False))
    with pytest.raises(PrefkdError, match="changes its logits after the head"):
        model.check(batch.student, "student")


@pytest.mark.parametrize("types", TYPES)
def test_check_refuses_a_model_that_ignores_the_mask(tmp_path, monkeypatch, types):
    model = _typed(make_model(tmp_path / "llama", "llama", "byte_level"), types)
    monkeypatch.setattr(LogprobModel, "_attention_mask", lambda self, tokens: torch.ones_like(tokens.input_ids))
    batch = collate_pairs(_pairs(100, seed=2), Microbatch([0]), share_prompt=(True, True))
    with pytest.raises(PrefkdError, match="set share_prompt: false"):
        model.check(batch.student, "student")


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
@pytest.mark.parametrize("types", ["autocast", "bfloat16"])
def test_check_takes_rounding_for_what_it_is(tmp_path, types, quantization):
    """Logits so large that bfloat16 is far off, and a model that is right all the same."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16, "initializer_range": 1.0}
    model = _typed(make_model(tmp_path / "llama", "llama", "byte_level", **sizes), types)
    model.lm.lm_head.weight *= 16
    if quantization != "none":
        quantize(model.lm, quantization)
    batch = collate_pairs(_pairs(100, seed=2), Microbatch([2]), share_prompt=(True, True))
    before = model(batch.student)
    assert model._difference(batch.student) > ROUNDED
    model.check(batch.student, "student")
    assert model.precision == TYPES[types][1] and torch.equal(model(batch.student), before)
    with model._in_float32():
        assert model._difference(batch.student) < EXACT


def test_what_one_token_in_a_hundred_says_does_not_decide(tmp_path, monkeypatch):
    model = _model(tmp_path, "llama")
    tokens = collate_pairs(_pairs(100, seed=2), Microbatch([0]), share_prompt=(True, True)).student
    own = model._own_logprobs(tokens)
    tokens = replace(tokens, predictors=tokens.predictors.repeat(15), targets=tokens.targets.repeat(15))
    off = own.repeat(15)
    off[7] += 3.0
    monkeypatch.setattr(LogprobModel, "_own_logprobs", lambda self, tokens: off)
    model.check(tokens, "student")
    monkeypatch.setattr(LogprobModel, "_own_logprobs", lambda self, tokens: off + 0.01)
    with pytest.raises(PrefkdError, match=r"by 0\.01 nats"):
        model.check(tokens, "student")


def test_padding_changes_nothing(tmp_path):
    model = _model(tmp_path, "gemma3_text")
    aligned = _pairs(100, seed=3)
    whole = collate_pairs(aligned, Microbatch([0, 1, 2]), share_prompt=(True, True))
    together = whole.parent_sums(model(whole.student), whole.student)
    for pair in range(3):
        alone = collate_pairs(aligned, Microbatch([pair]), share_prompt=(True, True))
        sums = alone.parent_sums(model(alone.student), alone.student)
        torch.testing.assert_close(sums[:, 0], together[:, pair, : sums.shape[-1]], rtol=1e-6, atol=1e-6)
        assert not together[:, pair, sums.shape[-1] :].any()
