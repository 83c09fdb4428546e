"""The models of the full-size pairs, shrunk: the same classes, switches and proportions, widths of a few dozen.

Tokenizers are of the same kind as the real ones and know the same special tokens, in templates of the same shape;
their vocabularies are trained on the spot. What is not shrunk is what surprises: heads that share keys, heads wider
than the model, rows of the head that belong to no token, the older keys of a config.json.
"""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.configs.real_models import REAL
from tests.tiny import TEXTS

HEAD_WIDTH = 8
WINDOW = 24  # shorter than the tests' texts, as 2,047 is shorter than texts can be
LONGEST = 4096  # of the real models' settings, what is longer than this changes nothing for texts of a test

# Both split words off and digits one by one, as the tokenizers of Qwen and Llama 3 do in more detail.
WORDS = r"'(?:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

MISTRAL_TEMPLATE = """\
{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}{%- set turns = messages[1:] %}
{%- else %}{%- set system = none %}{%- set turns = messages %}{%- endif %}
{{- bos_token }}
{%- for turn in turns %}
{%- if turn['role'] == 'user' %}
{{- '[INST] ' + (system + '\n\n' if system and loop.last else '') + turn['content'] + '[/INST]' }}
{%- else %}{{- ' ' + turn['content'] | trim + eos_token }}{%- endif %}
{%- endfor %}"""

PHI_TEMPLATE = """\
{%- for turn in messages %}{{- '<|' + turn['role'] + '|>\n' + turn['content'] + '<|end|>\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\n' }}{%- else %}{{- eos_token }}{%- endif %}"""

QWEN_2_5_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' %}
{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{%- endif %}
{%- for turn in messages %}{{- '<|im_start|>' + turn.role + '\n' + turn.content + '<|im_end|>\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""

QWEN_3_TEMPLATE = """\
{%- for turn in messages %}
{%- if turn.role == 'assistant' and loop.last %}
{{- '<|im_start|>assistant\n<think>\n\n</think>\n\n' + turn.content.lstrip('\n') + '<|im_end|>\n' }}
{%- else %}{{- '<|im_start|>' + turn.role + '\n' + turn.content + '<|im_end|>\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""

LLAMA_TEMPLATE = """\
{{- bos_token }}
{%- if date_string is not defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}
{%- if messages[0].role == 'system' %}{%- set system = messages[0].content | trim %}{%- set turns = messages[1:] %}
{%- else %}{%- set system = '' %}{%- set turns = messages %}{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n' + system + '<|eot_id|>' }}
{%- for turn in turns %}
{{- '<|start_header_id|>' + turn['role'] + '<|end_header_id|>\n\n' + turn['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"""

QWEN_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA_TOKENS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>"]
PHI_TOKENS = ["<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]

# Model type (for Qwen, that and the template) -> class that tokenizer_config.json names, template, special tokens
KINDS: dict[str, dict[str, Any]] = {
    "mistral": {
        "tokenizer_class": "LlamaTokenizer",
        "chat_template": MISTRAL_TEMPLATE,
        "names": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    },
    "phi3": {
        "tokenizer_class": "LlamaTokenizer",
        "chat_template": PHI_TEMPLATE,
        "names": {
            "bos_token": "<s>",
            "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
            "unk_token": "<unk>",
        },
    },
    "qwen2": {
        "tokenizer_class": "Qwen2Tokenizer",
        "chat_template": QWEN_2_5_TEMPLATE,
        "names": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    },
    "qwen3": {
        "tokenizer_class": "Qwen2Tokenizer",
        "chat_template": QWEN_3_TEMPLATE,
        "names": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    },
    "llama": {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": LLAMA_TEMPLATE,
        "names": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    },
}


def make_shrunk(hub_id: str, folder: Path) -> Path:
    """Write the shrunk model of a Hub id, random weights, and its tokenizer as `prefkd download` would have done."""
    kind = REAL[hub_id][1]["model_type"]
    tokenizer = _make_tokenizer(kind)
    config = shrunk_config(hub_id, tokenizer)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    random_model = AutoConfig.from_pretrained(folder)
    # Larger than usual, so that attention and context matter in a model without training.
    random_model.initializer_range = 0.3
    torch.manual_seed(len(hub_id))
    AutoModelForCausalLM.from_config(random_model, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = KINDS[kind]["tokenizer_class"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def shrunk_config(hub_id: str, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The config.json of a shrunk model."""
    tokens, real = REAL[hub_id]
    sharing = real["num_attention_heads"] // real["num_key_value_heads"]
    key_heads = max(1, 4 // sharing)
    heads = sharing * key_heads
    real_head_width = real.get("head_dim", real["hidden_size"] // real["num_attention_heads"])
    width_of_heads = real["num_attention_heads"] * real_head_width
    config = real | {
        "hidden_size": heads * HEAD_WIDTH * real["hidden_size"] // width_of_heads,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "vocab_size": len(tokenizer) + real["vocab_size"] - tokens,
        "torch_dtype": "bfloat16",
        "bos_token_id": tokenizer.convert_tokens_to_ids(tokenizer.bos_token or "<|endoftext|>"),
        "eos_token_id": tokenizer.eos_token_id,
    }
    if "head_dim" in real:
        config["head_dim"] = HEAD_WIDTH
    if "pad_token_id" in real:
        config["pad_token_id"] = tokenizer.pad_token_id
    if real.get("sliding_window"):
        config["sliding_window"] = WINDOW if real["sliding_window"] <= LONGEST else real["sliding_window"]
    scaling = real.get("rope_scaling") or {}
    if scaling.get("type") == "longrope":
        half = HEAD_WIDTH // 2
        config["rope_scaling"] = {"type": "longrope"} | {
            name: torch.linspace(*scaling[name], half).tolist() for name in ("short_factor", "long_factor")
        }
    return config


def _make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    special = {"llama": [*LLAMA_TOKENS, "<|eot_id|>"], "phi3": PHI_TOKENS}.get(kind, QWEN_TOKENS)
    if kind in ("mistral", "phi3"):
        tokenizer = _sentencepiece_like(kind, ["[INST]", "[/INST]"] if kind == "mistral" else [])
    else:
        tokenizer = _byte_level(nfc=kind != "llama")
    if kind != "mistral":  # the real ones have these behind all others
        # Phi takes the line break behind such a token for a part of it.
        tokenizer.add_special_tokens([AddedToken(text, special=True, rstrip=kind == "phi3") for text in special])
    if kind == "qwen3":
        tokenizer.add_tokens([AddedToken("<think>"), AddedToken("</think>")])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **KINDS[kind]["names"])
    fast.chat_template = KINDS[kind]["chat_template"]
    return fast


def _sentencepiece_like(kind: str, further: list[str]) -> Tokenizer:
    """BPE over blanks written as ▁, bytes for what is in no token; every text begins with a blank."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    if kind == "mistral":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *further]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[*special, *bytes_])
    tokenizer.train_from_iterator([word for text in TEXTS for word in text.replace(" ", " ▁").split(" ")], trainer)
    return tokenizer


def _byte_level(*, nfc: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer
