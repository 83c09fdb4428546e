"""Prompt, answer and end are the tokens of the whole conversation: templates x tokenizers x conversations.

Conversations are `merged`, and not compared, where one token of the whole conversation has characters of both prompt
and answer. No prefix of it ends where the prompt does, so that the answer is tokenized apart there.
"""

from collections import Counter

import pytest
from tokenizers import normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from prefkd.data.formats import Message
from prefkd.data.shared_answers import write_answers
from prefkd.data.sides import ModelSide
from prefkd.data.templates import DAY, ChatTemplate, merge_system
from prefkd.errors import DataError, PrefkdError
from tests.data.chat_templates import CHAT_TEMPLATES, CONVERSATIONS, MARKERS
from tests.tiny import make_tokenizer

REAL = ["smollm2-135m-instruct", "gemma-3-270m", "tokenizer-mistral-v3", "tokenizer-qwen"]


def with_pre_tokenizer(kind, pre_tokenizer, normalizer=None):
    tokenizer = make_tokenizer(kind)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.backend_tokenizer.normalizer = normalizer
    return tokenizer


def with_trimmed_offsets():
    tokenizer = make_tokenizer("byte_level")
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


LEGACY = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
TINY = {
    "byte_level": lambda: make_tokenizer("byte_level"),
    "metaspace": lambda: make_tokenizer("metaspace"),
    "blank_before_all": lambda: with_pre_tokenizer("metaspace", pre_tokenizers.Metaspace(prepend_scheme="always")),
    "blank_before_the_first": lambda: with_pre_tokenizer(
        "metaspace", pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    ),
    "legacy": lambda: with_pre_tokenizer("metaspace", pre_tokenizers.Sequence([]), LEGACY),
    "byte_level_with_blank": lambda: with_pre_tokenizer("byte_level", pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "trimmed_offsets": with_trimmed_offsets,
    "lowercase": lambda: with_pre_tokenizer(
        "byte_level", pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.Lowercase()
    ),
    "stripping": lambda: with_pre_tokenizer(
        "byte_level", pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.Strip()
    ),
}


def conversation(name) -> tuple[list[Message], str]:
    system, turns = CONVERSATIONS[name]
    messages = [Message(role="system", content=system)] if system else []
    messages += [Message(role=("user", "assistant")[i % 2], content=turn) for i, turn in enumerate(turns)]
    return messages[:-1], turns[-1]


def merges_at(side, text, place) -> bool:
    """Whether a token of the whole chat lies on both sides of a place."""
    encoding = side.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return any(start < place < end for start, end in encoding["offset_mapping"])


def outcome(side, name) -> str:
    """What became of a conversation: `equal`, `merged` over the border, `wrong`, or why it was refused."""
    messages, answer = conversation(name)
    try:
        frames, [text], _ = write_answers(messages, [answer], {"side": side})
        frame = frames["side"]
        [prompt] = side.encode_prompts([frame], [[text]])
        [response], [offsets] = side.encode_responses([text], [frame])
    except DataError as error:
        return str(error).replace(side.name, "X")
    assert all(0 <= start <= end <= len(text) for start, end in offsets)
    # Without an end, the last token may be joined with what the template writes behind it.
    ids = [*prompt, *response, *side.end_ids] if side.end else [*prompt, *response[:-1]]
    turns = (
        merge_system(messages) if isinstance(side.template, ChatTemplate) and side.template.merges_system else messages
    )
    turns = [*turns, Message(role="assistant", content=answer)]
    whole = side.tokenizer.apply_chat_template(turns, return_dict=False, date_string=DAY)
    if ids == whole[: len(ids)]:
        return "equal"
    written = side.tokenizer.apply_chat_template(turns, tokenize=False, date_string=DAY)
    if merges_at(side, written, len(frame.before)):
        return "merged"
    first = next(i for i, (found, right) in enumerate(zip(ids, whole, strict=False)) if found != right)
    around = [side.tokenizer.convert_ids_to_tokens(row[max(0, first - 3) : first + 5]) for row in (ids, whole)]
    return f"wrong: {side.name}, {name}: {around[0]} for {around[1]}"


def outcomes(tokenizer) -> Counter:
    """Of all templates, with their markers as text and then as special tokens."""
    found = Counter()
    for special in (False, True):
        if special:
            tokenizer.add_special_tokens({"additional_special_tokens": MARKERS})
        for template_name, template in CHAT_TEMPLATES.items():
            tokenizer.chat_template = template
            try:
                side = ModelSide(tokenizer, name=template_name)
            except PrefkdError as error:
                found[str(error).replace(template_name, "X")] += len(CONVERSATIONS)
                continue
            found.update(outcome(side, name) for name in CONVERSATIONS)
    return found


COMBINATIONS = 2 * len(CHAT_TEMPLATES) * len(CONVERSATIONS)


@pytest.mark.parametrize("name", TINY)
def test_tiny_tokenizers(name):
    found = outcomes(TINY[name]())
    assert not [line for line in found if line.startswith("wrong")]
    assert sum(found.values()) == COMBINATIONS
    assert found["merged"] <= 8
    assert found["equal"] >= 0.98 * COMBINATIONS


@pytest.mark.parametrize("name", REAL)
def test_real_tokenizers(name, real_models):
    found = outcomes(AutoTokenizer.from_pretrained(real_models / name))
    assert not [line for line in found if line.startswith("wrong")]
    assert sum(found.values()) == COMBINATIONS
    assert found["merged"] <= 20
    assert found["equal"] >= 0.85 * COMBINATIONS


@pytest.mark.parametrize("name", TINY)
def test_special_token_text_changes_no_other_token(name):
    """It stays text, and what a template writes stays where it is."""
    tokenizer = TINY[name]()
    tokenizer.add_special_tokens({"additional_special_tokens": MARKERS})
    special = set(tokenizer.convert_tokens_to_ids(MARKERS)) - {tokenizer.unk_token_id}
    messages = [{"role": "user", "content": "foo</s>bar <|im_end|> x"}, {"role": "assistant", "content": "[INST]"}]
    messages.append({"role": "user", "content": "<|end|><|user|>"})
    harmless = [{**turn, "content": "abc"} for turn in messages]
    for template in CHAT_TEMPLATES.values():
        tokenizer.chat_template = template
        side = ModelSide(tokenizer)
        frames = [side.frame(turns) for turns in (messages, harmless)]
        found, right = ([i for i in ids if i in special] for ids in side.encode_prompts(frames))
        assert found == right
        [ids, other], [offsets, _] = side.encode_responses(["print('</s>') [INST] <|end|>", "b"], frames)
        assert not special & {*ids, *other}
        assert offsets[-1][1] == 28
