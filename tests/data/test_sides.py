"""What a model reads before an answer, where the answer ends, and that text stays text."""

import copy
from datetime import datetime

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from prefkd.data.encoder import GUARD
from prefkd.data.shared_answers import shared_response, write_answers
from prefkd.data.sides import ModelSide
from prefkd.data.templates import NOW, merge_system
from prefkd.errors import DataError, PrefkdError
from tests.data.chat_templates import CHAT_TEMPLATES
from tests.tiny import make_tokenizer

HELLO = [{"role": "user", "content": "Hello"}]
SYSTEM = {"role": "system", "content": "Be brief."}
TALK = [*HELLO, {"role": "assistant", "content": "Hi! "}, {"role": "user", "content": "Why?"}]

# How families of chat models write: turns between markers, trimmed or not; no system messages; an empty thought.
TRIMMING = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRIMMING_LEFT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content.lstrip() }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
STRICT = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WITHOUT_SYSTEM = TRIMMING.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
# As Mistral v3: with an answer behind it, the user's message has not the last word.
SYSTEM_IN_THE_LAST_WORD = (
    "{% if messages[0].role == 'system' %}{% set system, turns = messages[0].content, messages[1:] %}"
    "{% else %}{% set system, turns = '', messages %}{% endif %}"
    "{% for m in turns %}<|{{ m.role }}|>{% if loop.last and m.role == 'user' and system %}{{ system }}\n\n{% endif %}"
    "{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# As Llama 3.2: it tells the day.
DATED = "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}" + (
    "<|system|>{{ date_string }}<|end|>" + TRIMMING
)
THOUGHTFUL = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' and loop.last %}(no thought)\n{% endif %}"
    "{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
THINKING_FIRST = THOUGHTFUL.replace("(no thought)\n", "").replace(
    "<|assistant|>{% endif %}", "<|assistant|>(thought{% endif %}"
)
WITHOUT_END = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def side(template, kind="byte_level"):
    tokenizer = make_tokenizer(kind)
    tokenizer.chat_template = template
    return ModelSide(tokenizer, name="tiny")


def text(model, messages):
    return model.frame(messages).before.replace(GUARD, "")


def test_a_chat_template_writes_up_to_the_answer():
    frame = side(TRIMMING).frame(TALK)
    assert frame.before == "<|user|>Hello<|end|>\n<|assistant|>Hi!<|end|>\n<|user|>Why?<|end|>\n<|assistant|>"
    assert frame.after == "<|end|>\n"


def test_the_first_special_token_after_an_answer_ends_it():
    tokenizer = make_tokenizer("byte_level")
    tokenizer.eos_token = "</s>"
    tokenizer.chat_template = TRIMMING
    assert ModelSide(tokenizer).eos_id == tokenizer.convert_tokens_to_ids("<|end|>")
    assert ModelSide(tokenizer, "plain").eos_id == tokenizer.eos_token_id
    tokenizer.chat_template = WITHOUT_END
    assert ModelSide(tokenizer).eos_id == tokenizer.eos_token_id


def test_without_any_end_a_model_is_refused():
    tokenizer = make_tokenizer("byte_level")
    tokenizer.eos_token = None
    with pytest.raises(
        PrefkdError, match="tiny: neither its tokenizer nor its template has a token that ends an answer"
    ):
        ModelSide(tokenizer, "plain", name="tiny")


def test_a_chat_template_that_is_not_there_is_refused():
    with pytest.raises(PrefkdError, match="tiny: its tokenizer has no chat template; use template: plain"):
        ModelSide(make_tokenizer("metaspace"), "chat", name="tiny")


@pytest.mark.parametrize(
    ("template", "written"), [(TRIMMING, "Yes. No."), (TRIMMING_LEFT, "Yes. No.\n "), (STRICT, " Yes. No.\n ")]
)
def test_a_response_is_what_the_template_makes_of_it(template, written):
    model = side(template)
    assert model.response(TALK, " Yes. No.\n ", model.frame(TALK)) == written


def test_two_templates_come_to_one_response():
    sides = [side(template) for template in (TRIMMING_LEFT, STRICT, TRIMMING)]
    framed = [(model, model.frame(TALK)) for model in sides]
    assert shared_response(TALK, "\n Yes. ", framed) == "Yes."
    assert shared_response(TALK, "\n Yes. ", framed[1:2]) == "\n Yes. "


def test_templates_that_never_agree_are_an_error():
    sides = [side(STRICT.replace("{{ m.content }}", f"{{{{ m.content + '{end}' }}}}")) for end in "ab"]
    framed = [(model, model.frame(HELLO)) for model in sides]
    # Each writes something after the probe too, so that the response stays the same: no loss, no endless loop.
    assert shared_response(HELLO, "Yes.", framed) == "Yes."
    growing = side(STRICT.replace("{{ m.content }}", "{{ m.content[:-1] if 'brown' not in m.content else m.content }}"))
    with pytest.raises(DataError, match="write this answer in different ways"):
        shared_response(HELLO, "Yes, yes, yes.", [(growing, growing.frame(HELLO))])


def test_text_that_a_template_puts_before_every_answer_belongs_to_the_prompt():
    model = side(THOUGHTFUL)
    assert model.frame(HELLO).before == "<|user|>Hello<|end|><|assistant|>(no thought)\n"
    assert model.response(HELLO, "thought", model.frame(HELLO)) == "thought"


def test_a_template_that_asks_otherwise_than_it_writes_is_refused():
    with pytest.raises(
        PrefkdError, match=r"the chat template of tiny ends a prompt with '.*\(thought', but writes.*plain"
    ):
        side(THINKING_FIRST)


def test_an_answer_that_the_template_rewrites_is_an_error():
    model = side(THOUGHTFUL.replace("(no thought)\n", "{{ '' if m.content == 'news' else '(no thought)' }}"))
    with pytest.raises(DataError, match="the chat template of tiny writes something of its own for this answer"):
        model.response(HELLO, "news", model.frame(HELLO))


@pytest.mark.parametrize("template", [STRICT, WITHOUT_SYSTEM, SYSTEM_IN_THE_LAST_WORD])
def test_a_system_message_is_merged_where_the_template_takes_none(template):
    assert "<|user|>Be brief.\n\nHello<|end|>" in text(side(template), [SYSTEM, *TALK])


def test_a_system_message_stays_where_the_template_takes_it():
    assert text(side(TRIMMING), [SYSTEM, *HELLO]).startswith("<|system|>Be brief.<|end|>")


# Mistral Small and gpt-oss ask the clock themselves, at the top of the template or in a macro.
CLOCKS = [
    DATED,
    "  {% if strftime_now is defined %}\n  {{ strftime_now('%A, %-d %B %y') }}\n{% endif %}\n" + TRIMMING,
    "\n{%- macro day() %}{{- 'Today: ' + strftime_now('%Y-%m-%d') + '\n' }}{% endmacro %}{{- day() }}" + TRIMMING,
    "{%- set today = strftime_now('%Y-%m-%d') %}\n\n{{ today[:4] | int - 1 }} 100%\n" + TRIMMING,
    "\n\n" + TRIMMING.replace("<|user|>", "{{ strftime_now('%d.%m. %H:%M:%S %Z%%') }}<|user|>"),
]


@pytest.mark.parametrize("template", CLOCKS)
def test_a_template_that_tells_the_day_writes_the_same_every_day(template, monkeypatch):
    class Clock(datetime):
        today = NOW

        @classmethod
        def now(cls, tz=None):
            return cls.today

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    tokenizer = make_tokenizer("byte_level")
    whole = tokenizer.apply_chat_template(
        HELLO, chat_template=template, tokenize=False, add_generation_prompt=True
    )  # transformers itself, on that day
    found = []
    for day in (NOW, datetime(2031, 2, 3, 4, 5, 6)):
        Clock.today = day
        model = side(template)
        found.append(model.encode_prompts([model.frame(HELLO)]))
        assert text(model, HELLO) == whole
    assert found[0] == found[1]


def test_a_generation_prompt_that_begins_a_thought_is_refused_with_a_remedy():
    template = CHAT_TEMPLATES["deepseek"] + "{% if add_generation_prompt %}<think>\n{% endif %}"
    with pytest.raises(PrefkdError, match=r"of tiny begins a thought .* take <think> out of the generation prompt"):
        side(template)


# GPT-2's rule for blanks: the last one before a word stands alone.
OPEN_END = (
    "{% for m in messages %}<|{{ m.role }}|>\n\n{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n\n{% endif %}"
)


def test_answers_that_cut_the_end_of_their_prompt_in_different_ways_are_refused():
    model = side(OPEN_END)
    frame = model.frame(HELLO)
    letter, blank = (model.encode_prompts([frame], [[answer]])[0] for answer in ("Hi", " Hi"))
    assert letter != blank
    assert model.encode_prompts([frame], [["Hi", "Yes"]]) == [letter]
    with pytest.raises(DataError, match="tokenizer of tiny cuts the end of the prompt in one way before one answer"):
        model.encode_prompts([frame], [["Hi", " Hi"]])


def test_an_answer_that_merges_with_its_prompt_has_no_say_in_the_end_of_it():
    tokenizer = make_tokenizer("byte_level")
    tokenizer.add_tokens(["\n\n\n"])
    tokenizer.chat_template = OPEN_END
    model = ModelSide(tokenizer)
    frame = model.frame(HELLO)
    alone, right, found = (model.encode_prompts([frame], [texts])[0] for texts in (["\nHi"], ["Hi"], ["\nHi", "Hi"]))
    assert alone != right == found


def test_merging_finds_the_first_user_message():
    greeting = {"role": "assistant", "content": "Hello, I am Angela."}
    merged = merge_system([SYSTEM, greeting, *HELLO])
    assert merged == [greeting, {"role": "user", "content": "Be brief.\n\nHello"}]
    assert merge_system(TALK) == TALK


def test_a_conversation_that_the_template_refuses_is_an_error():
    with pytest.raises(DataError, match="the chat template of tiny refuses the conversation: roles must alternate"):
        side(STRICT).frame([*HELLO, *HELLO])


def test_the_plain_template_adds_nothing_to_an_answer():
    model = side(None)
    frame = model.frame([SYSTEM, *TALK])
    assert frame.before == "System:\nBe brief.\n\nUser:\nHello\n\nAssistant:\nHi! \n\nUser:\nWhy?\n\nAssistant:\n"
    assert model.response(TALK, " Yes. ", model.frame(TALK)) == " Yes. "


def test_a_bos_begins_every_prompt_once():
    plain = side(None, "metaspace")
    [ids] = plain.encode_prompts([plain.frame(HELLO)])
    assert ids[0] == plain.bos_id
    assert ids.count(plain.bos_id) == 1
    chat = side("{{ bos_token }}" + TRIMMING, "metaspace")
    [ids] = chat.encode_prompts([chat.frame(HELLO)])
    assert ids[0] == chat.bos_id
    assert ids.count(chat.bos_id) == 1
    without = side(None)
    assert without.bos_id is None
    assert without.encode_prompts([]) == []


SPECIAL = "In HTML </s> ends it, <|end|> does not; <|user|>me too<|end|>"


@pytest.mark.parametrize("template", [TRIMMING, None])
def test_special_token_text_of_a_user_stays_text(template):
    model = side(template)
    special = {model.tokenizer.convert_tokens_to_ids(name) for name in ("</s>", "<|end|>", "<|user|>", "<|assistant|>")}
    frames = [model.frame([{"role": "user", "content": content}]) for content in ("Hello", SPECIAL)]
    plain, literal = model.encode_prompts(frames)
    assert [token for token in literal if token in special] == [token for token in plain if token in special]
    assert model.tokenizer.decode(literal) == text(model, [{"role": "user", "content": SPECIAL}])


def test_only_special_token_text_is_tokenised_apart():
    model = side(TRIMMING)
    [whole] = model.encode_prompts([model.frame(TALK)])
    assert whole == model.tokenizer.apply_chat_template(TALK, add_generation_prompt=True, return_dict=False)


def test_the_guard_itself_in_a_message_does_no_harm():
    model = side(TRIMMING)
    [ids] = model.encode_prompts([model.frame([{"role": "user", "content": f"a{GUARD}<|end|>"}])])
    assert model.tokenizer.decode(ids) == "<|user|>a\ufffd<|end|><|end|>\n<|assistant|>"


def test_special_token_text_of_a_response_stays_text(real_sides):
    words = "a </s> b <|im_end|> c <eos> <end_of_turn> <|endoftext|> [INST] <s>"
    for model in real_sides.values():
        special = {token for token, added in model.tokenizer.added_tokens_decoder.items() if added.special}
        for batch in ([words], [words, "other", words]):
            ids, offsets = model.encode_responses(batch)
            assert not special & set(ids[-1])
            assert max(end for _, end in offsets[-1]) == len(words)


def test_real_chat_prompts_hold_special_text_as_text(real_sides):
    model = real_sides["smollm2-135m-instruct"]
    messages = [{"role": "user", "content": "What does <|im_end|> mean?<|im_start|>"}]
    [ids] = model.encode_prompts([model.frame(messages)])
    assert ids.count(model.tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2  # system and user turn
    assert ids.count(model.tokenizer.convert_tokens_to_ids("<|im_start|>")) == 3
    assert model.tokenizer.decode(ids) == text(model, messages)


GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("name", "template", "eos"),
    [
        ("smollm2-135m-instruct", None, "<|im_end|>"),
        ("gemma-3-270m", GEMMA, "<end_of_turn>"),
        ("tokenizer-mistral-v3", MISTRAL, "</s>"),
        ("tokenizer-qwen", CHATML, "<|im_end|>"),
    ],
)
def test_prompt_response_and_eos_are_the_tokens_of_the_whole_chat(real_models, name, template, eos):
    tokenizer = AutoTokenizer.from_pretrained(real_models / name)
    tokenizer.chat_template = template or tokenizer.chat_template
    model = ModelSide(tokenizer)
    assert tokenizer.convert_ids_to_tokens(model.eos_id) == eos
    answer = "Because it is so.\n\n\tprint('👍')"
    frame = model.frame(TALK)
    [prompt] = model.encode_prompts([frame])
    [response], _ = model.encode_responses([model.response(TALK, answer, frame)])
    whole = [*TALK, {"role": "assistant", "content": answer}]
    ids = tokenizer.apply_chat_template(whole, return_dict=False)
    assert [*prompt, *response, model.eos_id] == ids[: len(prompt) + len(response) + 1]


def test_real_bos_and_eos(real_sides):
    names = {
        name: (
            model.bos_id and model.tokenizer.convert_ids_to_tokens(model.bos_id),
            model.tokenizer.convert_ids_to_tokens(model.eos_id),
            model.uses_chat_template,
        )
        for name, model in real_sides.items()
    }
    assert names == {
        "smollm2-135m-instruct": ("<|im_start|>", "<|im_end|>", True),
        "gemma-3-270m": ("<bos>", "<eos>", False),
        "tokenizer-mistral-v3": ("<s>", "</s>", False),
        "tokenizer-qwen": (None, "<|endoftext|>", False),
    }


def test_a_fingerprint_names_what_the_tokens_depend_on():
    same = [side(TRIMMING).fingerprint for _ in range(2)]
    assert same[0] == same[1]
    model = side(TRIMMING)
    model.encode_responses(["Hello"])
    model.tokenizer(["a", "b c"], padding=True, truncation=True, max_length=3)
    assert model.fingerprint == same[0]
    other_vocabulary = ModelSide(copy.deepcopy(model.tokenizer))
    other_vocabulary.tokenizer.add_tokens(["new"])
    others = [side(STRICT), side(None), ModelSide(make_tokenizer("byte_level", 450)), other_vocabulary]
    assert len({same[0], *(other.fingerprint for other in others)}) == 5


# ---------------------------------------------------------------------------------------------- what the field found

HEADED = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}" + (
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
CONTROL = ["<|im_start|>", "<|im_end|>", "<|assistant|>", "<|user|>"]


def mistral(real_models, template, special=()):
    tokenizer = AutoTokenizer.from_pretrained(real_models / "tokenizer-mistral-v3")
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.chat_template = template
    return ModelSide(tokenizer, name="mistral")


def tokens(model, messages, answer):
    """The tokens of a prompt and of an answer behind it."""
    frames = [model.frame(messages)]
    [prompt], [response] = model.encode_prompts(frames), model.encode_responses([answer], frames)[0]
    return [model.tokenizer.convert_ids_to_tokens(ids) for ids in (prompt, response)]


STRIPPING = [AddedToken(token, rstrip=True, special=True, normalized=False) for token in CONTROL]


@pytest.mark.parametrize(
    ("template", "special"),
    [(CHATML, CONTROL), (CHATML, STRIPPING), (HEADED, []), (HEADED, CONTROL), (HEADED, STRIPPING), (None, [])],
    ids=["chatml", "stripping chatml", "text", "headed", "stripping headed", "plain template"],
)
def test_an_answer_gets_no_blank_that_it_does_not_have(real_models, template, special):
    model = mistral(real_models, template, special)
    messages = [{"role": "user", "content": "Hello there"}]
    prompt, answer = tokens(model, messages, "Hi! How are you?")
    assert answer == ["Hi", "!", "▁How", "▁are", "▁you", "?"]
    assert prompt[-1] in ("<0x0A>", "<|assistant|>", "▁assistant", "istant")
    assert not model.begins_with_blank
    assert model.encode_responses(["Hi! How are you?"])[1][0][0].tolist() == [0, 2]


def test_a_leading_blank_of_an_answer_stays(real_models):
    model = mistral(real_models, MISTRAL)
    assert model.begins_with_blank
    assert [tokens(model, HELLO, text)[1] for text in ("x", " x")] == [["▁x"], ["▁▁", "x"]]
    assert tokens(model, HELLO, "  indented")[1] == ["▁▁", "▁ind", "ented"]
    assert [spans.tolist() for spans in model.encode_responses(["x", " x"])[1]] == [[[0, 1]], [[0, 1], [1, 2]]]
    assert tokens(model, HELLO, "你")[1] == ["▁", "你"]
    assert model.encode_responses(["你"])[1][0].tolist() == [[0, 0], [0, 1]]


def test_a_blank_before_answers_is_theirs_in_byte_level_vocabularies_too():
    model = side(
        "{% for m in messages %}<|{{ m.role }}|> {{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    prompt, answer = tokens(model, HELLO, "Boil the eggs")
    assert (prompt[-1], answer[0][0]) == ("<|assistant|>", "Ġ")
    assert model.begins_with_blank


def test_special_token_text_gets_no_blanks(real_models):
    model = mistral(real_models, MISTRAL)
    for text, right in (
        ("foo</s>bar", ["▁foo", "</", "s", ">", "bar"]),
        ("print('</s>')", ["▁print", "('", "</", "s", ">", "')"]),
        ("a </s> b", ["▁a", "▁</", "s", ">", "▁b"]),
    ):
        prompt, answer = tokens(model, [{"role": "user", "content": text}], text)
        assert prompt == ["<s>", "[INST]", *right, "[/INST]"]
        assert answer == right


def test_a_bos_begins_a_prompt_where_the_chat_or_the_tokenizer_has_it(real_models):
    tokenizer = make_tokenizer("metaspace")
    tokenizer.chat_template = TRIMMING
    model = ModelSide(tokenizer)
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    assert model.bos_id is None
    assert tokenizer.bos_token_id not in model.encode_prompts([model.frame(HELLO)])[0]
    plain = ModelSide(AutoTokenizer.from_pretrained(real_models / "smollm2-135m-instruct"), "plain")
    assert plain.bos_id is None
    with_system = "{% if messages[0].role == 'system' %}{{ bos_token }}{% endif %}" + TRIMMING
    tokenizer.chat_template = with_system
    model = ModelSide(tokenizer)
    found = model.encode_prompts([model.frame(turns) for turns in (HELLO, [SYSTEM, *HELLO])])
    assert [ids.count(model.bos_id) for ids in found] == [0, 1]


QWEN_3 = CHAT_TEMPLATES["qwen3"]


def test_a_thought_is_part_of_the_answer():
    model = side(QWEN_3)
    thought, mention = "<think>\nI reason.\n</think>\n\nBecause.", "It ends\n</think>\n\nhere."
    frames, texts, thoughts = write_answers(HELLO, [thought, "So."], {"side": model})
    assert thoughts
    assert frames["side"].before.endswith("<|im_start|>assistant\n")
    assert texts == [thought, "<think>\n\n</think>\n\nSo."]
    assert write_answers(HELLO, [mention], {"side": model})[1] == [f"<think>\n{mention}"]
    frames, texts, thoughts = write_answers(HELLO, ["So.", "No."], {"side": model})
    assert not thoughts
    assert frames["side"].before.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert texts == ["So.", "No."]


@pytest.mark.parametrize(
    ("template", "answer"), [("qwen3", "a</think>b</think>c"), ("deepseek", "<think>\nI reason.\n</think>\n\nBecause.")]
)
def test_a_thought_that_a_template_takes_out_is_an_error(template, answer):
    with pytest.raises(DataError, match=r"of tiny takes the thought out of this answer .* remove <think> .* plain"):
        write_answers(HELLO, [answer], {"side": side(CHAT_TEMPLATES[template])})


def test_an_end_may_be_several_tokens_or_text(caplog):
    model = side(
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n\n<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    assert model.tokenizer.decode(model.end_ids) == "\n\n<|end|>"
    assert (model.end_ids[-1], model.stop_text) == (model.eos_id, None)
    with pytest.raises(DataError, match=r"joins the last characters of an answer with '\\n\\n<\|end\|>'"):
        model.encode_responses(["Yes.\n"])
    assert not caplog.messages
    text = side(
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}###\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    assert (text.tokenizer.decode(text.end_ids).strip(), text.stop_text) == ("###", "###")
    assert text.eos_id == text.tokenizer.eos_token_id
    assert caplog.messages == ["tiny: its chat template ends answers with the text '###'; stop generation there"]
    caplog.clear()
    model = side(WITHOUT_END)
    assert model.end_ids == [model.tokenizer.eos_token_id]
    assert caplog.messages == ["tiny: its chat template ends answers with nothing; they get its EOS"]


def test_a_template_that_reads_special_token_text_is_refused():
    model = side(
        TRIMMING.replace("{{ m.content | trim }}", "{{ m.content.split('<|end|>')[0] | length }}{{ m.content }}")
    )
    with pytest.raises(DataError, match="reads special tokens in a message as its own"):
        model.frame([{"role": "user", "content": "Hello <|end|>"}])
