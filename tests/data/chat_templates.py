"""How families of chat models write a conversation, reduced to what decides about tokens, and some conversations."""

_TURNS = (
    "{% if messages[0].role == 'system' %}{% set system, turns = messages[0].content, messages[1:] %}"
    "{% else %}{% set system, turns = '', messages %}{% endif %}"
)
_NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"


def _prompt(text: str) -> str:
    return f"{{% if add_generation_prompt %}}{text}{{% endif %}}"


_HEADED = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + _prompt(
    "<|im_start|>assistant\n"
)

CHAT_TEMPLATES = {
    "chatml": _HEADED,
    "llama2": _TURNS
    + "{% for m in turns %}{% if m.role == 'user' %}{{ bos_token }}[INST] {% if loop.first and system %}<<SYS>>\n"
    "{{ system }}\n<</SYS>>\n\n{% endif %}{{ m.content | trim }} [/INST]"
    "{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}",
    "llama3": "{% for m in messages %}{{ bos_token if loop.first }}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}" + _prompt("<|start_header_id|>assistant<|end_header_id|>\n\n"),
    "mistral_v1": _NO_SYSTEM
    + "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %} [INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
    "mistral_v2": _TURNS + "{{ bos_token }}{% for m in turns %}{% if m.role == 'user' %}[INST] "
    "{% if loop.index >= turns | length - 1 and system %}{{ system }}\n\n{% endif %}{{ m.content }}[/INST]"
    "{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}",
    "mistral_v3": _TURNS + "{{ bos_token }}{% for m in turns %}{% if m.role == 'user' %}[INST] "
    "{% if loop.last and system %}{{ system }}\n\n{% endif %}{{ m.content }}[/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
    "mistral_small": "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
    "{% elif m.role == 'system' %}[SYSTEM_PROMPT]{{ m.content }}[/SYSTEM_PROMPT]"
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
    "gemma": "{{ bos_token }}" + _NO_SYSTEM + "{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    + _prompt("<start_of_turn>model\n"),
    "phi3": "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
    "qwen2.5": "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}" + _HEADED,
    # Thoughts before the last question are left out, and an answer without one gets an empty one.
    "qwen3": "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index %}{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% set parts = m.content.split('</think>') %}{% if loop.index > ns.last %}<think>\n"
    "{{ parts[0].split('<think>')[-1].strip('\n') if parts | length > 1 }}\n</think>\n\n{% endif %}"
    "{{ parts[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    + _prompt("<|im_start|>assistant\n"),
    "zephyr": "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    + _prompt("<|assistant|>\n"),
    "deepseek": _TURNS
    + "{{ bos_token }}{{ system }}{% for m in turns %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}"
    "{% else %}<｜Assistant｜>{{ m.content.split('</think>')[-1] }}<｜end▁of▁sentence｜>{% endif %}{% endfor %}"
    + _prompt("<｜Assistant｜>"),
    "gpt-oss": _TURNS + "<|start|>system<|message|>You are ChatGPT.<|end|>"
    "{% if system %}<|start|>developer<|message|># Instructions\n\n{{ system }}\n\n<|end|>{% endif %}"
    "{% for m in turns %}{% if m.role == 'user' %}<|start|>user<|message|>{{ m.content }}<|end|>{% else %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}{{ '<|return|>' if loop.last else '<|end|>' }}"
    "{% endif %}{% endfor %}" + _prompt("<|start|>assistant"),
    # An end of two tokens, a BOS that comes with a system message, no end at all.
    "two_ends": "{{ bos_token if messages[0].role == 'system' }}"
    "{% for m in messages %}<|{{ m.role }}|> {{ m.content }}\n\n<|end|>\n{% endfor %}" + _prompt("<|assistant|>"),
    "endless": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}" + _prompt("assistant:"),
}

MARKERS = [
    *("<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "<start_of_turn>"),
    *("<end_of_turn>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|user|>", "<|system|>"),
    *("<|assistant|>", "<|end|>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
    *("<|start|>", "<|message|>", "<|channel|>", "<|return|>"),
]

_LONG = "A prime number has exactly two divisors: one and itself. " * 12
_CODE = "def f(x):\n\tif x:\n        return {'a': [1, 2]}  # ok\n\n\nprint(f(3.14))"

# Turns of user and assistant in turn, the last one is the answer; a system message before them, or none.
CONVERSATIONS: dict[str, tuple[str | None, list[str]]] = {
    "plain": (None, ["Hello there", "Hi! How are you?"]),
    "system": ("Be brief.", ["Hello", "Hi."]),
    "turns": (None, ["Hello", "Hi! ", "Why?", "Because it is so."]),
    "system and turns": ("You know\neverything. ", ["One", "1", "Two", "2", "Three?", "3"]),
    "leading blank": (None, [" x", " x"]),
    "leading blanks": (None, ["What?", "  indented\n  twice"]),
    "trailing blanks": (None, ["What?  ", "That. \n"]),
    "leading newlines": (None, ["\nWhat?", "\n\nThat."]),
    "blanks between": ("  a  ", ["a   b\t\tc", "d  \n  e"]),
    "code": (None, [_CODE, _CODE]),
    "emoji": (None, ["👍🏽?", "👨\u200d👩\u200d👧 and 🙃"]),
    "cjk": ("简短。", ["你好，世界", "東京タワー。我不知道"]),
    "nfd": (None, ["Cafe\u0301?", "u\u0308ber e\u0323\u0302"]),
    "leading mark": (None, ["e", "\u0301a"]),
    "arabic": (None, ["مرحبا", "كيف حالك؟"]),
    "one letter": (None, ["a", "b"]),
    "empty turns": (None, ["Go on", "", "", "Fine."]),
    "punctuation": (None, ["?!", "'s ... <|im <b>1</b> [x] </ s>"]),
    "thought": (None, ["Why?", "<think>\nI reason.\n</think>\n\nBecause."]),
    "earlier thought": (None, ["Why?", "<think>\nHm.\n</think>\n\nSo.", "Sure?", "Yes, sure."]),
    "long": (_LONG, [_LONG, _LONG, _LONG, _LONG]),
}
