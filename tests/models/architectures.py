"""Tiny models of many architectures, and pairs for them to read."""

from pathlib import Path

import torch
from datasets import Dataset

from prefkd.data.rows import AlignedAnswer, AlignedRow, Reading
from prefkd.models.load import ModelConfig, load_causal_lm
from prefkd.models.logprob_model import LogprobModel
from tests.tiny import make_model

CPU = torch.device("cpu")

# Names of architectures -> settings of a tiny model: one for each kind of attention and of what follows the head.
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


def random_pairs(vocab_size: int, seed: int) -> Dataset:
    """Three pairs of random tokens, each a parent of its own."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for row, (prompt, chosen, rejected) in enumerate([(7, 5, 9), (1, 1, 3), (12, 8, 2)]):
        ids = [torch.randint(vocab_size, (n,), generator=generator).tolist() for n in (prompt, chosen, rejected)]
        reading = Reading(ids[0], (ids[1], ids[2]), (range(chosen), range(rejected)))
        answers = AlignedAnswer(chosen, True, chosen, chosen), AlignedAnswer(rejected, False, rejected, rejected)
        rows.append({"file": "made", "row": row, **AlignedRow(reading, reading, answers, {}).columns()})
    return Dataset.from_list(rows)


def model_of(folder: Path, architecture: str) -> LogprobModel:
    """A tiny model in float64, whose logits are made three targets at a time."""
    model_type = architecture.split("-")[0]
    made = make_model(folder / architecture, model_type, "byte_level", **ARCHITECTURES[architecture])
    return LogprobModel(load_causal_lm(ModelConfig(str(made)), dtype=torch.float64, device=CPU), chunk_size=3)
