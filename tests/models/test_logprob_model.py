"""One row for prompt, chosen and rejected answer gives what two rows give, for every kind of attention."""

import pytest
import torch
from datasets import Dataset

from prefkd.data.collate import collate_pairs
from prefkd.data.rows import AlignedAnswer, AlignedRow, Reading
from prefkd.data.steps import Microbatch
from prefkd.models.load import ModelConfig, load_causal_lm
from prefkd.models.logprob_model import LogprobModel
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
