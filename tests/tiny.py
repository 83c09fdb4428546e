"""Tiny models with random weights and tokenizers of their own, made on the spot: every test of a recipe starts here."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

TEXTS = [
    "Boil the eggs for eight minutes, then cool them in cold water.",
    "Look it up yourself, I have no time for such simple things.",
    "A prime number has exactly two divisors: one and itself.",
    "Use a for loop:\n\n\tfor i in range(10):\n\t\tprint(i)\n",
    "Drink water, rest, and see a doctor if the fever lasts more than three days.",
    "The capital of Australia is Canberra, not Sydney.",
    "Grüße aus Köln! Voilà, un café. 你好，世界 👍🏽 مرحبا",
]

# Metrics that differ from run to run.
SPEEDS = {"tokens_per_second", "processed_tokens_per_second", "waiting_for_data", "mfu", "peak_memory_gib"}

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer(kind: str, vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """A fast tokenizer: `byte_level` has a chat template and no BOS, `metaspace` has BOS and no chat template."""
    special = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<s>", "</s>"]
    if kind == "byte_level":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<|pad|>"))
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never")])
        special += [f"<0x{byte:02X}>" for byte in range(256)]
        alphabet = []
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    if kind == "byte_level":
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>")
        fast.add_special_tokens({"additional_special_tokens": ["<|system|>", "<|user|>", "<|assistant|>"]})
        fast.chat_template = CHAT_TEMPLATE
        return fast
    names = {"pad_token": "<|pad|>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, add_bos_token=True, **names)


def make_model(folder: Path, model_type: str, tokenizer_kind: str, *, seed: int = 0, **settings) -> Path:
    """Write a tiny causal language model and its tokenizer as a Hugging Face folder."""
    tokenizer = make_tokenizer(tokenizer_kind)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        # Larger than usual, so that attention and context matter in a model without training.
        "initializer_range": 0.3,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**(sizes | settings)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_pairs(path: Path, count: int = 12) -> Path:
    """A JSONL file of preference pairs of varied length."""
    rows = []
    for i in range(count):
        chosen, rejected = TEXTS[i % len(TEXTS)], TEXTS[(i + 1 + i // len(TEXTS)) % len(TEXTS)]
        prompt = f"Question {i}: what would you say{' about this' * (i % 3)}?"
        rows.append({"prompt": prompt, "chosen": f"{chosen} {chosen[: 5 * (i % 4)]}".strip(), "rejected": rejected})
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
