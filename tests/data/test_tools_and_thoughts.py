"""Tools, calls and thoughts: the tokens are those of the whole chat; what a template does not write is refused."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from prefkd.data.pairs import DataConfig, load_pairs
from prefkd.data.shared_answers import write_answers
from prefkd.data.sides import ModelSide
from prefkd.data.template_settings import template_problems, unread_arguments
from prefkd.data.templates import DAY, merge_system, with_short_ids
from prefkd.data.tokenizing import align_pairs
from prefkd.errors import DataError, PrefkdError
from tests.data.chat_templates import CHAT_TEMPLATES
from tests.data.tool_templates import CHANNELS, MARKERS, TOOL_TEMPLATES
from tests.tiny import make_tokenizer

CITY = {"type": "object", "properties": {"city": {"type": "string", "description": "Like <|im_end|> Köln"}}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells.", "parameters": CITY}}
CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Köln", "days": 2}},
}
ASKED = [{"role": "user", "content": "Will it rain in Köln?"}]
CALLED = [*ASKED, {"role": "assistant", "content": "", "tool_calls": [CALL]}]
TOLD = [*CALLED, {"role": "tool", "content": '{"rain": 0.9}', "tool_call_id": "abcdefghi", "name": "weather"}]
SYSTEM = [{"role": "system", "content": "Be brief."}]
THOUGHT = "<think>\nClouds.\n</think>\n\nYes."
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}

CHATS = {
    "tools": (ASKED, "Yes.", [TOOL]),
    "a call": (TOLD, "It will.", [TOOL]),
    "a system message": ([*SYSTEM, *TOLD], "It will.", [TOOL]),
    "two tools": (TOLD, "It will.", [TOOL, {"type": "function", "function": {"name": "time", "parameters": {}}}]),
    "a call without tools": (TOLD, "It will.", None),
    "a call as the answer": (ASKED, CALLING, [TOOL]),
    "a thought": (ASKED, THOUGHT, None),
    "an earlier thought": ([*ASKED, {"role": "assistant", "content": THOUGHT}, *ASKED], THOUGHT, None),
    "a thought after a tool": (TOLD, THOUGHT, [TOOL]),
}


def marked(tokenizer, template):
    tokenizer.add_special_tokens({"additional_special_tokens": MARKERS})
    tokenizer.chat_template = template
    return tokenizer


def side(template, name="model", settings="auto"):
    return ModelSide(marked(make_tokenizer("byte_level"), template), settings, name=name)


def check_whole_chat(model, messages, answer, tools):
    frames, [text], _ = write_answers(messages, [answer], {"side": model}, tools)
    [prompt] = model.encode_prompts([frames["side"]], [[text]])
    [response], _ = model.encode_responses([text], [frames["side"]])
    last = answer if isinstance(answer, dict) else {"role": "assistant", "content": answer}
    turns = [*(merge_system(messages) if model.template.merges_system else messages), last]
    written = {"tools": tools, "date_string": DAY}
    # Special-token text in a tool stays text here, and would be a special token there.
    harmless = json.loads(json.dumps(tools).replace("<|im_end|>", "END"))
    if tools and tools != harmless:
        special = {*model.tokenizer.convert_tokens_to_ids(MARKERS)}
        bare = model.tokenizer.apply_chat_template(turns, return_dict=False, **written | {"tools": harmless})
        ids = [*prompt, *response, *model.end_ids]
        assert [i for i in ids if i in special] == [i for i in bare if i in special][: sum(i in special for i in ids)]
        return check_whole_chat(model, messages, answer, harmless)
    whole = model.tokenizer.apply_chat_template(turns, return_dict=False, **written)
    ids = [*prompt, *response, *model.end_ids]
    assert ids == whole[: len(ids)]
    assert response


NOT_WRITTEN = {("mistral", "a call as the answer")}  # which begins with a special token


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("template", TOOL_TEMPLATES)
def test_the_tokens_are_those_of_the_whole_chat(template, chat):
    if (template, chat) not in NOT_WRITTEN:
        check_whole_chat(side(TOOL_TEMPLATES[template]), *CHATS[chat])


@pytest.mark.parametrize("name", ["tokenizer-qwen", "smollm2-135m-instruct", "tokenizer-mistral-v3"])
def test_real_tokenizers_too(name, real_models):
    for template, text in TOOL_TEMPLATES.items():
        model = ModelSide(marked(AutoTokenizer.from_pretrained(real_models / name), text))
        for chat, parts in CHATS.items():
            if (template, chat) not in NOT_WRITTEN:
                check_whole_chat(model, *parts)


def test_ids_of_calls_get_nine_characters_where_a_template_asks_for_them():
    every = "{% for c in m.tool_calls %}"
    refuse = "{% if c.id is not defined or c.id | length != 9 %}{{ raise_exception('nine') }}{% endif %}"
    model = side(TOOL_TEMPLATES["mistral"].replace(every, every + refuse))

    def called(*names):
        calls = [{**CALL, "id": name} if name else {**CALL, "id": ""} for name in names]
        return [*ASKED, {"role": "assistant", "content": "", "tool_calls": calls}]

    def told(name):
        return {"role": "tool", "content": "1"} | ({"tool_call_id": name} if name else {})

    for messages in ([*called("call_1"), told("call_1")], [*called(None), told(None)]):
        check_whole_chat(model, with_short_ids(messages), "Yes.", [TOOL])
        before = [model.frame(turns, tools=[TOOL]).before for turns in (messages, with_short_ids(messages))]
        assert before[0] == before[1]
    assert with_short_ids(TOLD) == TOLD
    _, asked, two, one = with_short_ids([*called("call_1", "call_2"), told("call_2"), told("call_1")])
    assert [call["id"] for call in asked["tool_calls"]] == [one["tool_call_id"], two["tool_call_id"]]
    _, asked, one, two = with_short_ids([*called(None, None), told(None), told(None)])
    assert [call["id"] for call in asked["tool_calls"]] == [one["tool_call_id"], two["tool_call_id"]]
    assert not side(TOOL_TEMPLATES["qwen2.5"]).template.shortens_ids


def test_reasoning_content_is_the_same_text():
    model = side(TOOL_TEMPLATES["qwen3"])
    _, [text], _ = write_answers(ASKED, [THOUGHT], {"side": model})
    turns = [*ASKED, {"role": "assistant", "content": "Yes.", "reasoning_content": "Clouds."}]
    assert model.tokenizer.apply_chat_template(turns, tokenize=False).endswith(f"{text}<|im_end|>\n")


REFUSED = {
    "no tools": ("chatml", ASKED, "Yes.", [TOOL], "takes no tools; remove field 'tools'"),
    "no calls": ("chatml", CALLED + ASKED, "Yes.", None, "leaves out calls of tools"),
    "no call in an answer": ("chatml", ASKED, CALLING, None, "leaves out calls of tools"),
    "no tool's words": ("user alone", [*ASKED, TOLD[-1]], "Yes.", None, "leaves out messages of the role tool"),
    "no developer": (
        "user alone",
        [{"role": "developer", "content": "Short."}, *ASKED],
        "Yes.",
        None,
        "role developer",
    ),
    "special tokens": ("mistral", ASKED, CALLING, [TOOL], r"writes calls with the special token \[TOOL_CALLS\]"),
    "channels": ("gpt-oss", ASKED, THOUGHT, None, r"thoughts behind the special token <\|message\|>.*thoughts to drop"),
}


@pytest.mark.parametrize(("template", "messages", "answer", "tools", "problem"), REFUSED.values(), ids=REFUSED)
def test_what_one_side_does_not_write_is_refused_with_its_name(template, messages, answer, tools, problem):
    text = (CHAT_TEMPLATES | TOOL_TEMPLATES | {"gpt-oss": CHANNELS}).get(template) or CHAT_TEMPLATES["chatml"].replace(
        "in messages", "in messages if m.role in ('user', 'assistant')"
    )
    sides = {"student": side(text, "the student"), "teacher": side(TOOL_TEMPLATES["qwen2.5"], "the teacher")}
    with pytest.raises(DataError, match=problem) as error:
        write_answers(messages, [answer], sides, tools)
    assert "the student" in str(error.value) and "\n" not in str(error.value)


def test_a_call_that_two_templates_write_otherwise_is_refused():
    sides = {name: side(TOOL_TEMPLATES[name], name) for name in ("qwen2.5", "llama3")}
    with pytest.raises(DataError, match=r"write the calls of this answer in different ways, .*tool_call.*parameters"):
        write_answers(ASKED, [CALLING], sides, [TOOL])
    both = {name: side(TOOL_TEMPLATES["llama3"], name) for name in "ab"}
    assert write_answers(ASKED, [CALLING], both, [TOOL])[1][0].startswith('{"name": "weather", "parameters"')


def test_a_developer_is_written_where_the_template_knows_the_role():
    model = side(TOOL_TEMPLATES["llama3"])
    check_whole_chat(model, [{"role": "developer", "content": "Short."}, *ASKED], "Yes.", None)


def test_a_thought_is_kept_or_dropped_on_both_sides():
    qwen, llama, deepseek = (TOOL_TEMPLATES["qwen3"], TOOL_TEMPLATES["llama3"], CHAT_TEMPLATES["deepseek"])
    kept = {"student": side(qwen), "teacher": side(llama)}
    assert write_answers(ASKED, [THOUGHT], kept)[1] == [THOUGHT]
    dropped = kept | {"teacher": side(llama, settings={"thoughts": "drop"})}
    assert write_answers(ASKED, [THOUGHT], dropped)[1] == ["Yes."]
    earlier = [*ASKED, {"role": "assistant", "content": THOUGHT}, *ASKED]
    assert "Clouds" not in write_answers(earlier, ["Yes."], dropped)[0]["teacher"].before
    with pytest.raises(DataError, match=r"template of the teacher takes the thought out .*template\.thoughts to drop"):
        write_answers(ASKED, [THOUGHT], {"student": side(qwen), "teacher": side(deepseek, "the teacher")})
    channels = {"student": side(CHANNELS, settings={"thoughts": "drop"})}
    check_whole_chat(channels["student"], ASKED, "Yes.", None)
    assert write_answers(ASKED, [THOUGHT], channels)[1] == ["Yes."]
    assert side(qwen).fingerprint != side(qwen, settings={"thoughts": "drop"}).fingerprint


def test_a_template_comes_from_a_file_with_arguments(tmp_path):
    path = tmp_path / "my.jinja"
    path.write_text(TOOL_TEMPLATES["qwen3"])
    settings = {"path": str(path), "arguments": {"enable_thinking": False}}
    model = side(None, settings=settings)
    assert model.uses_chat_template
    given = model.tokenizer.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True)
    assert given.endswith("<think>\n\n</think>\n\n") and model.frame(ASKED).before == given
    tokenizer = marked(make_tokenizer("byte_level"), TOOL_TEMPLATES["qwen3"])
    by_argument = tokenizer.apply_chat_template(
        ASKED, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert by_argument == given
    check_whole_chat(model, TOLD, "Yes.", [TOOL])
    again = ModelSide(model.tokenizer, settings)  # from a folder that was saved with it
    assert again.fingerprint == model.fingerprint


PROBLEMS = {
    "kind": ("chatt", ": 'chatt' is not one of auto, chat, plain, nor a section with kind, path, arguments, thoughts"),
    "key": ({"pth": "a"}, ".pth: unknown key; did you mean path?"),
    "thoughts": ({"thoughts": "hide"}, ".thoughts: 'hide' is not one of keep, drop"),
    "arguments": ({"arguments": [1]}, ".arguments: [1] is not a section of names and values"),
    "infinite": ({"arguments": {"a": float("inf")}}, ".arguments.a: inf is not a value of JSON"),
    "no JSON": ({"arguments": {"a": [Path("b")]}}, ".arguments.a: [PosixPath('b')] is not a value of JSON"),
    "no file": ({"path": "no.jinja"}, ".path: no.jinja cannot be read (No such file or directory)"),
    "no template": ({"path": "bad.jinja"}, ".path: bad.jinja is not a Jinja template"),
    "plain": ({"kind": "plain", "arguments": {"a": 1}}, ".kind: plain writes role headings and takes neither path nor"),
}


@pytest.mark.parametrize(("value", "problem"), PROBLEMS.values(), ids=PROBLEMS)
def test_wrong_settings_of_a_template_are_told(tmp_path, monkeypatch, value, problem):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jinja").write_text("{% if %}")
    [found] = template_problems(value)
    assert found.startswith(problem)
    with pytest.raises(PrefkdError, match=r"^template"):
        side(CHAT_TEMPLATES["chatml"], settings=value)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% macro say(text) %}{{ prefix }}{{ text }}{% endmacro %}", r"; did you mean prefix\?"),
        ("{% if prefix is not defined %}{% set prefix = '' %}{% endif %}", r"; did you mean prefix\?"),
        ("{% set prefix = prefix | default('') %}", r"; did you mean prefix\?"),
        ("{% set prefix = 'a' %}", r"; known: eos_token"),
        ("{% generation %}{{ prefix }}{% endgeneration %}", r"; did you mean prefix\?"),
    ],
)
def test_an_argument_that_the_template_does_not_read_is_told(template, problem):
    chatml = CHAT_TEMPLATES["chatml"] + "{{ eos_token[:0] }}"
    with pytest.raises(PrefkdError, match=rf"template\.arguments\.prefx: the chat template does not read it{problem}"):
        side(template + chatml, settings={"arguments": {"prefx": "a"}})
    if "known" not in problem:
        assert list(unread_arguments(template + chatml, ["prefix"])) == []


def test_tools_reach_the_tokens_of_both_sides(tmp_path):
    row = {"prompt": TOLD, "chosen": "It will.", "rejected": "No.", "tools": json.dumps([TOOL])}
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n")
    config = DataConfig(str(tmp_path / "p.jsonl"), held_out_fraction=0.0, max_length=900, max_prompt_length=800)
    student, teacher = side(TOOL_TEMPLATES["llama3"]), side(TOOL_TEMPLATES["qwen2.5"])
    [aligned] = align_pairs(load_pairs(config).train, student, teacher, config=config)
    for name, model in (("student", student), ("teacher", teacher)):
        whole = model.tokenizer.decode(aligned[f"{name}_prompt"])
        assert "weather" in whole and "0.9" in whole and '"Köln"' in whole
    config.on_bad_row = "error"
    with pytest.raises(DataError, match=r"row 1 of p\.jsonl: the chat template of model takes no tools"):
        align_pairs(load_pairs(config).train, side(CHAT_TEMPLATES["chatml"]), teacher, config=config)
