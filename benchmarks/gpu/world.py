"""What the measurement trains: models of full size with random weights, tokenizers and pairs made on the spot."""

import json
import random
import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

QWEN_1_5B: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": True,
}
MISTRAL_7B: dict[str, Any] = {
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 32768,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-05,
    "sliding_window": None,
    "tie_word_embeddings": False,
}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
}


def make_model(folder: Path, architecture: dict[str, Any], *, device: torch.device, seed: int) -> Path:
    """Write a model with random weights in bfloat16 and a tokenizer of its own."""
    folder.mkdir(parents=True)
    tokenizer = _tokenizer(seed)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    settings = architecture | ids | {"max_position_embeddings": 32768, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(settings))
    torch.manual_seed(seed)
    with device:
        lm = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16)
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_pairs(path: Path, count: int, *, characters: tuple[int, int], seed: int = 0) -> Path:
    """Pairs of random words, with prompts and answers of so many characters at least and at most."""
    draw = random.Random(seed)

    def text() -> str:
        length = draw.randint(*characters)
        return " ".join("".join(draw.choices(string.ascii_lowercase, k=5)) for _ in range(length // 6 + 1))

    rows = [{"prompt": text(), "chosen": text(), "rejected": text()} for _ in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Byte pairs of random text: two seeds split the same text in different ways."""
    draw = random.Random(seed)
    words = ["".join(draw.choices(string.ascii_lowercase, k=3)) for _ in range(400)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<end>", "<user>", "<assistant>", "<system>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        words, trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet)
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")
    fast.add_special_tokens({"additional_special_tokens": special[2:]})
    fast.chat_template = (
        "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<end>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return fast
