"""What decides how the models of the full-size pairs compute and read: the numbers of their config.json on the Hub.

They belong to https://huggingface.co/<id>/blob/main/config.json. Those of Qwen2.5 and Llama 3.2 were compared with
copies of these files; those of Mistral, Phi and Qwen3 were not: look there before relying on one for more than a shrunk
model. `tokens` is the number of tokens in tokenizer.json with the added ones. Where that is less than `vocab_size`, the
last rows of embeddings and head belong to no token. Keys are written as those files have them, the older names among
them.
"""

from typing import Any

ROPE_1M = {"rope_theta": 1000000.0}
PHI = {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    # Code of its own; transformers has the same architecture.
    "auto_map": {
        "AutoConfig": "configuration_phi3.Phi3Config",
        "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
    },
    "hidden_size": 3072,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
    "original_max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 32000,
    "pad_token_id": 32000,
}
QWEN_2_5 = {
    **ROPE_1M,
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "rms_norm_eps": 1e-06,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}
QWEN_3 = {
    **ROPE_1M,
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "sliding_window": None,
    "use_sliding_window": False,
    "rms_norm_eps": 1e-06,
    "attention_bias": False,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}

# Hub id -> (tokens of its tokenizer, its config.json)
REAL: dict[str, tuple[int, dict[str, Any]]] = {
    "mistralai/Mistral-7B-Instruct-v0.3": (
        32768,
        {
            **ROPE_1M,
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "hidden_size": 4096,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 32768,
            "max_position_embeddings": 32768,
            "sliding_window": None,
            "rms_norm_eps": 1e-05,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "Qwen/Qwen2.5-1.5B-Instruct": (
        151665,
        {
            **QWEN_2_5,
            "hidden_size": 1536,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "sliding_window": 32768,
            "max_window_layers": 21,
            "tie_word_embeddings": True,
        },
    ),
    "Qwen/Qwen2.5-7B-Instruct": (
        151665,
        {
            **QWEN_2_5,
            "hidden_size": 3584,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "sliding_window": 131072,
            "max_window_layers": 28,
            "tie_word_embeddings": False,
        },
    ),
    "microsoft/Phi-3-mini-4k-instruct": (
        32011,
        {**PHI, "max_position_embeddings": 4096, "rope_scaling": None, "sliding_window": 2047},
    ),
    "microsoft/Phi-3.5-mini-instruct": (
        32011,
        {
            **PHI,
            "max_position_embeddings": 131072,
            # 48 factors each, half of a head's width, which rise; here between which numbers, rounded.
            "rope_scaling": {"type": "longrope", "short_factor": [1.0, 3.0], "long_factor": [1.1, 65.0]},
            "sliding_window": 262144,
        },
    ),
    "meta-llama/Llama-3.2-1B-Instruct": (
        128256,
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 2048,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "vocab_size": 128256,
            "max_position_embeddings": 131072,
            "rope_theta": 500000.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
            },
            "rms_norm_eps": 1e-05,
            "tie_word_embeddings": True,
            "bos_token_id": 128000,
            "eos_token_id": [128001, 128008, 128009],
        },
    ),
    "Qwen/Qwen3-8B": (
        151669,
        {**QWEN_3, "hidden_size": 4096, "num_attention_heads": 32, "tie_word_embeddings": False},
    ),
    "Qwen/Qwen3-0.6B": (
        151669,
        {**QWEN_3, "hidden_size": 1024, "num_attention_heads": 16, "tie_word_embeddings": True},
    ),
}
