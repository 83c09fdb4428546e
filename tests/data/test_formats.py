"""Every form in which pairs come is read into the same pair, and every bad row is told by its field."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkd.data.fields import METADATA, has_content, is_metadata
from prefkd.data.formats import detect_format, read_pair, unread
from prefkd.data.messages import pack_calls, unpack_calls
from prefkd.errors import DataError


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}
TALK = [user("Hi"), assistant("Hello!"), user("Why?")]
HUMAN = {"from": "human", "value": "Why?"}
HH = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Why?\n\nAssistant:"

ROWS = {
    "standard": ("standard", {"prompt": "Why?", "chosen": " Because.", "rejected": "No."}, [user("Why?")], " Because."),
    "standard with a system prompt": (
        "standard",
        {"system": "Be brief.", "prompt": "Why?", "chosen": "Because.", "rejected": "No."},
        [SYSTEM, user("Why?")],
        "Because.",
    ),
    "answers as messages": (
        "conversational",
        {"prompt": [SYSTEM, *TALK], "chosen": [assistant("Because.")], "rejected": [assistant("No.")]},
        [SYSTEM, *TALK],
        "Because.",
    ),
    "answers as one message": (
        "conversational",
        {"prompt": TALK, "chosen": assistant("Because."), "rejected": assistant("No.")},
        TALK,
        "Because.",
    ),
    "answers as strings": (
        "conversational",
        {"prompt": TALK, "chosen": "Because.", "rejected": "No."},
        TALK,
        "Because.",
    ),
    "whole conversations": (
        "conversational",
        {"chosen": [SYSTEM, *TALK, assistant("Because.")], "rejected": [SYSTEM, *TALK, assistant("No.")]},
        [SYSTEM, *TALK],
        "Because.",
    ),
    "whole conversations and their prompt": (
        "conversational",
        {"prompt": TALK, "chosen": [*TALK, assistant("Because.")], "rejected": [*TALK, assistant("No.")]},
        TALK,
        "Because.",
    ),
    "ultrafeedback": (
        "ultrafeedback",
        {
            "prompt": "Why?",
            "prompt_id": "8f2a",
            "chosen": [user("Why?"), assistant("Because.")],
            "rejected": [user("Why?"), assistant("No.")],
            "score_chosen": 9.0,
        },
        [user("Why?")],
        "Because.",
    ),
    "ultrafeedback, answers alone": (
        "ultrafeedback",
        {"prompt": "Why?", "chosen": [assistant("Because.")], "rejected": [assistant("No.")]},
        [user("Why?")],
        "Because.",
    ),
    "sharegpt": (
        "sharegpt",
        {
            "conversations": [{"from": "system", "value": "Be brief."}, HUMAN],
            "chosen": {"from": "gpt", "value": "Because."},
            "rejected": {"from": "gpt", "value": "No."},
        },
        [SYSTEM, user("Why?")],
        "Because.",
    ),
    "hh transcripts": ("hh", {"chosen": f"{HH} Because. ", "rejected": f"{HH} No."}, TALK, "Because."),
    "hh with one who speaks twice": (
        "hh",
        {"prompt": "\n\nHuman: Hi\n\nHuman: Why?\n\nAssistant:", "chosen": " Because.", "rejected": " No."},
        [user("Hi\n\nWhy?")],
        "Because.",
    ),
    "hh prompt and answers": ("hh", {"prompt": HH, "chosen": " Because.", "rejected": " No."}, TALK, "Because."),
}


@pytest.mark.parametrize(("row_format", "row", "prompt", "chosen"), ROWS.values(), ids=ROWS)
def test_a_row_is_recognised_and_read(row_format, row, prompt, chosen):
    assert detect_format(row) == row_format
    pair = read_pair(row, row_format)
    assert pair.prompt == prompt
    assert pair.chosen == chosen
    assert pair.rejected == "No."


GOOD = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
GOOD_TALK = {"prompt": TALK, "chosen": [assistant("Because.")], "rejected": [assistant("No.")]}
GOOD_SHAREGPT = ROWS["sharegpt"][1]

BAD = {
    "no prompt": ("standard", GOOD | {"prompt": None}, "field 'prompt' is missing"),
    "no chosen": ("standard", {"prompt": "Why?", "rejected": "No."}, "field 'chosen' is missing"),
    "blank prompt": ("standard", GOOD | {"prompt": " \n"}, "the prompt is empty: expected a message of the user"),
    "blank answer": ("standard", GOOD | {"rejected": " "}, "field 'rejected' is empty: expected an answer"),
    "number": ("standard", GOOD | {"chosen": 7}, "field 'chosen' is a number: expected text"),
    "list": ("standard", GOOD | {"chosen": ["Because."]}, "field 'chosen' is a list: expected text"),
    "same answers": (
        "standard",
        GOOD | {"chosen": "caf\u00e9", "rejected": "cafe\u0301 "},
        "fields 'chosen' and 'rejected' are the same text: there is nothing to prefer",
    ),
    "half a character": (
        "standard",
        GOOD | {"chosen": "a\ud83d"},
        "field 'chosen' is broken: half a character (surrogate) at 1",
    ),
    "prompt is text": (
        "conversational",
        GOOD_TALK | {"prompt": "Why?"},
        "field 'prompt' is text: expected a list of messages",
    ),
    "no messages": (
        "conversational",
        GOOD_TALK | {"chosen": []},
        "field 'chosen' is empty: expected a list of messages",
    ),
    "no message": (
        "conversational",
        GOOD_TALK | {"prompt": [user("Hi"), "Why?"]},
        "message 2 of field 'prompt' is text: expected 'role' and 'content'",
    ),
    "no role": (
        "conversational",
        GOOD_TALK | {"prompt": [{"content": "Why?"}]},
        "message 1 of field 'prompt' has no 'role'",
    ),
    "unknown role": (
        "conversational",
        GOOD_TALK | {"prompt": [{"role": "critic", "content": "42"}, user("Why?")]},
        "message 1 of field 'prompt' has the role 'critic': expected system, developer, user, assistant, tool",
    ),
    "content in parts": (
        "conversational",
        GOOD_TALK | {"prompt": [user([{"type": "text"}])]},
        "'content' in message 1 of field 'prompt' has a part without 'text': expected text only",
    ),
    "answer of the user": (
        "conversational",
        GOOD_TALK | {"chosen": [user("Because.")]},
        "field 'chosen' ends with a message of the user: expected one of the assistant",
    ),
    "prompt ends with an answer": (
        "conversational",
        GOOD_TALK | {"prompt": TALK[:2]},
        "the prompt ends with a message of the assistant: expected one of the user",
    ),
    "late system message": (
        "conversational",
        GOOD_TALK | {"prompt": [user("Hi"), SYSTEM, user("Why?")]},
        "the prompt has a system message after its start: expected it first",
    ),
    "no prompt at all": (
        "conversational",
        {"chosen": [assistant("Because.")], "rejected": [assistant("No.")]},
        "the prompt is empty: expected a message of the user",
    ),
    "different conversations": (
        "conversational",
        {"chosen": [user("Why?"), assistant("Because.")], "rejected": [user("What?"), assistant("No.")]},
        "fields 'chosen' and 'rejected' differ before their last answer: expected one shared prompt",
    ),
    "another prompt": (
        "conversational",
        {"prompt": TALK, "chosen": [user("A?"), assistant("B")], "rejected": [user("A?"), assistant("C")]},
        "fields 'chosen' and 'rejected' begin with a different conversation from field 'prompt'",
    ),
    "ultrafeedback with another prompt": (
        "ultrafeedback",
        {"prompt": "Why?", "chosen": [user("A?"), assistant("B")], "rejected": [user("A?"), assistant("C")]},
        "fields 'chosen' and 'rejected' answer a different message from the one in field 'prompt'",
    ),
    "no conversations": ("sharegpt", GOOD_SHAREGPT | {"conversations": None}, "field 'conversations' is missing"),
    "sharegpt role": (
        "sharegpt",
        GOOD_SHAREGPT | {"conversations": [HUMAN, {"from": "critic", "value": "42"}]},
        "message 2 of field 'conversations' has the role 'critic': expected system, developer, user, assistant, tool, "
        "human, gpt, function_call, observation",
    ),
    "no transcript": (
        "hh",
        GOOD,
        "field 'prompt' is not a transcript: expected it to begin with 'Human:'",
    ),
    "different transcripts": (
        "hh",
        {"chosen": f"{HH} Because.", "rejected": "\n\nHuman: Why?\n\nAssistant: No."},
        "fields 'chosen' and 'rejected' differ before their last answer: expected one shared prompt",
    ),
    "transcript without an answer": (
        "hh",
        {"chosen": f"{HH} Because.", "rejected": HH},
        "field 'rejected' is empty: expected an answer",
    ),
    "unknown end": (
        "answers",
        {"prompt": "Why?", "answer": "Because", "finish": "cut"},
        "field 'finish' is 'cut': expected 'stop', or 'length' for an answer that was cut",
    ),
}


@pytest.mark.parametrize(("row_format", "row", "problem"), BAD.values(), ids=BAD)
def test_a_bad_row_is_told_by_its_field(row_format, row, problem):
    with pytest.raises(DataError) as error:
        read_pair(row, row_format)
    assert str(error.value) == problem


@pytest.mark.parametrize(
    ("row", "problem"),
    [({}, "field 'chosen' is missing"), ({"chosen": "Because.", "rejected": "No."}, "field 'prompt' is missing")],
)
def test_a_row_of_no_known_form_is_told_by_what_it_lacks(row, problem):
    with pytest.raises(DataError, match=problem):
        detect_format(row)


def test_text_becomes_nfc():
    decomposed = {"system": "e\u0301", "prompt": "o\u0308?", "chosen": "a\u0308\u0323", "rejected": "No."}
    pair = read_pair(decomposed, "standard")
    assert [turn["content"] for turn in pair.prompt] == ["\u00e9", "\u00f6?"]
    assert pair.chosen == "\u1ea1\u0308"


# ------------------------------------------------------------------------- what a message holds besides its text

CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}
PARTS = {
    "images": ["a.png"],
    "audio": {"id": "a1"},
    "refusal": "I cannot.",
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("place", ["prompt", "chosen", "rejected"])
def test_a_part_that_a_model_would_read_is_never_dropped(part, place):
    row = {name: [dict(message) for message in value] for name, value in GOOD_TALK.items()}
    number = 2 if place == "prompt" else 1
    row[place][number - 1][part] = PARTS[part]
    with pytest.raises(DataError) as error:
        read_pair(row, detect_format(row))
    assert str(error.value) == f"'{part}' in message {number} of field '{place}' cannot be read"


TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
WEATHER = {"role": "tool", "content": "Rain", "tool_call_id": "c1", "name": "get_weather"}
CALLS = {
    "as an object": {"tool_calls": [CALL | {"id": "c1"}]},
    "arguments as text": {
        "tool_calls": [{"id": "c1", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}]
    },
    "calls as text": {"tool_calls": json.dumps([CALL | {"id": "c1"}])},
    "filled by Arrow": {
        "tool_calls": [{"id": "c1", "function": {"name": "get_weather", "arguments": {"city": "Oslo", "unit": None}}}]
    },
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL])])
def test_calls_and_tools_are_read(call, tools):
    calling = {"role": "assistant", "content": None} | call
    prompt = [user("Weather?"), calling, WEATHER]
    row = {"prompt": prompt, "chosen": [assistant("Rain.")], "rejected": [calling], "tools": tools}
    pair = read_pair(row, detect_format(row))
    called = {"role": "assistant", "content": "", "tool_calls": [CALL | {"id": "c1"}]}
    assert pair.prompt == [user("Weather?"), called, WEATHER]
    assert (pair.chosen, pair.rejected, pair.tools) == ("Rain.", called, [TOOL])
    packed = pack_calls(pair.prompt, {"chosen": pair.chosen, "rejected": pair.rejected}, pair.tools)
    bare = [{"role": turn["role"], "content": turn["content"]} for turn in pair.prompt]
    read = unpack_calls(bare, {"chosen": "Rain.", "rejected": ""}, packed)
    assert read == (pair.prompt, {"chosen": "Rain.", "rejected": called}, [TOOL])


def test_older_names_of_a_call_are_read():
    old = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    talk = [{"from": "human", "value": "Hi"}, {"from": "function_call", "value": '{"name": "f", "arguments": {}}'}]
    talk.append({"from": "observation", "value": "42"})
    row = {"conversations": talk, "chosen": {"from": "gpt", "value": "Yes."}, "rejected": {"from": "gpt", "value": "N"}}
    prompt = read_pair(row, detect_format(row)).prompt
    assert [turn["role"] for turn in prompt] == ["user", "assistant", "tool"]
    row = GOOD_TALK | {"prompt": [user("Hi"), old, {"role": "tool", "content": "42"}]}
    assert read_pair(row, "conversational").prompt[1] == prompt[1]


BAD_CALLS = {
    "no name": ({"role": "assistant", "content": "", "tool_calls": [{"id": "c1"}]}, "has a call without the name"),
    "arguments": (
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "x"}}]},
        "has a call whose arguments are text: expected an object",
    ),
    "of a user": (user("Hi") | {"tool_calls": [CALL]}, "expected them in messages of the assistant only"),
    "name": (user("Hi") | {"name": "Ann"}, "'name' in message 2 of field 'prompt' cannot be read: it belongs to"),
    "thought": (assistant("Hi") | {"thinking": ["a"]}, "the thought in message 2 of field 'prompt' is a list"),
}


@pytest.mark.parametrize(("message", "problem"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_calls_are_told(message, problem):
    with pytest.raises(DataError) as error:
        read_pair(GOOD_TALK | {"prompt": [user("Hi"), message, user("Why?")]}, "conversational")
    assert problem in str(error.value)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_a_thought_becomes_a_part_of_the_text(key):
    row = {"prompt": "Why?", "chosen": [user("Why?"), assistant("Rain.") | {key: "It rains.\n"}], "rejected": "No."}
    row["rejected"] = [user("Why?"), assistant("No.")]
    assert read_pair(row, detect_format(row)).chosen == "<think>\nIt rains.\n</think>\n\nRain."


@pytest.mark.parametrize("nothing", [None, "", [], {}, [None], {"name": None}, False, " ", float("nan")])
def test_parts_without_content_are_what_arrow_fills_in(nothing):
    filled = [turn | dict.fromkeys([*PARTS, "tool_calls", "name", "thinking"], nothing) for turn in TALK]
    assert read_pair(GOOD_TALK | {"prompt": filled}, "conversational").prompt == TALK


def test_parts_of_text_are_joined():
    parts = [{"type": "text", "text": "Wh", "image": None}, {"type": "text", "text": "y?"}]
    pair = read_pair(
        {"prompt": [user(parts)], "chosen": [assistant([{"text": "Yes."}])], "rejected": "No."}, "conversational"
    )
    assert pair[:3] == ([user("Why?")], "Yes.", "No.")


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        ({"type": "image"}, "has a part of type 'image': expected text only"),
        ({"type": "image_url", "image_url": {"url": "a"}}, "has a part of type 'image_url': expected text only"),
        ({"type": "text", "text": "a", "image": "b"}, "has a part with 'image': expected text only"),
        (7, "is a list with a number in it: expected text, or parts of type text"),
    ],
)
def test_other_parts_are_refused(part, problem):
    with pytest.raises(DataError) as error:
        read_pair(GOOD_TALK | {"prompt": [user([{"type": "text", "text": "Hi"}, part])]}, "conversational")
    assert str(error.value) == f"'content' in message 1 of field 'prompt' {problem}"


# --------------------------------------------------------------------------------- messages written as text

SPELLINGS = {
    "JSON": lambda value: json.dumps(value, indent=1),
    "Python": str,
    "NumPy": lambda value: "[" + "\n ".join(map(str, value)) + "]",
    "pandas": lambda value: f"array([{', '.join(map(str, value))}], dtype=object)",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("sharegpt", [False, True])
def test_messages_written_as_text_are_read(spelling, sharegpt):
    def conversation(answer):
        turns = [user('It\'s "why"?\n{ok}'), assistant(answer)]
        return [{"from": turn["role"], "value": turn["content"]} for turn in turns] if sharegpt else turns

    row = {name: SPELLINGS[spelling](conversation(text)) for name, text in (("chosen", "Good."), ("rejected", "Bad."))}
    for prompt in (None, "", 'It\'s "why"?\n{ok}'):
        whole = row | {"prompt": prompt}
        pair = read_pair(whole, detect_format(whole))
        assert pair[:3] == ([user('It\'s "why"?\n{ok}')], "Good.", "Bad.")


def test_one_message_and_a_prompt_written_as_text_are_read():
    row = {"prompt": json.dumps(TALK), "chosen": str(assistant("Because.")), "rejected": "No."}
    assert read_pair(row, detect_format(row))[:3] == (TALK, "Because.", "No.")


@pytest.mark.parametrize(
    "answer",
    [
        '[{"name": "Ann", "age": 4}]',
        "[1, 2, 3]",
        "[]",
        "{}",
        '{"role": "admin", "content": "x"}',
        '[{"role": "admin"}, {"role": "guest"}]',
        "[Verse 1]\nHello",
        "{ broken",
        "[" * 5000,
        "['a', 'b']",
    ],
)
def test_an_answer_that_is_no_conversation_stays_text(answer):
    row = GOOD | {"chosen": answer}
    assert read_pair(row, detect_format(row)).chosen == answer


def test_messages_that_are_broken_off_are_never_learned_as_text():
    row = GOOD | {"chosen": '[{"role": "user", "content": "Hi"}, {"role": "assis'}
    with pytest.raises(DataError, match="field 'chosen' looks like messages written as text, and is neither JSON nor"):
        detect_format(row)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)
)


@settings(max_examples=60, deadline=None)
@given(value=st.lists(st.dictionaries(st.sampled_from(["role", "content", "from", "value", "x"]), values, max_size=3)))
def test_a_list_of_messages_is_never_text(value):
    """Whatever stands in their keys: either they are read, or the row is bad."""
    row = GOOD | {"chosen": json.dumps(value)}
    whole = value and all({"role", "content"} <= set(turn) or {"from", "value"} <= set(turn) for turn in value)
    try:
        pair = read_pair(row, detect_format(row))
    except DataError:
        return
    assert not whole or pair.chosen != row["chosen"]


# ------------------------------------------------------------------------------------ fields besides the format's


@pytest.mark.parametrize(
    ("extra", "name"),
    [
        ({"history": [["Hi", "Hello"]]}, "history"),
        ({"input": "2 + 2"}, "input"),
        ({"context": [user("Hi"), assistant("Hello")]}, "context"),
        ({"functions": [CALL]}, "functions"),
        ({"images": [{"bytes": b"x", "path": None}]}, "images"),
        ({"initial_reason_steps": "First,"}, "initial_reason_steps"),
        ({"system_prompt": "Be brief."}, "system_prompt"),
        ({"messages": [user("Who?"), assistant("Because.")]}, "messages"),
    ],
)
def test_a_field_that_belongs_to_the_prompt_is_never_dropped(extra, name):
    with pytest.raises(DataError) as error:
        read_pair(GOOD | extra, "standard")
    assert str(error.value) == (
        f"field '{name}' cannot be read, and the prompt is another without it: put it into the prompt, or remove it"
    )


@pytest.mark.parametrize(
    "extra",
    [
        {"history": [], "input": "", "tools": None, "images": [None], "context": float("nan")},
        {"messages": [user("Why?"), assistant("Something else.")]},
        {"messages": json.dumps([user("Why?"), assistant("Because.")])},
        {"conversation": [{"input": "Why?", "output": "Something else."}]},
        {"question": " Why?", "instruction": "Why?"},
    ],
)
def test_a_field_that_only_repeats_the_prompt_changes_nothing(extra):
    assert read_pair(GOOD | extra, "standard") == read_pair(GOOD, "standard")
    assert unread(GOOD | extra, "standard") == []


def test_two_system_messages_that_differ_are_a_bad_row():
    row = GOOD_TALK | {"prompt": [SYSTEM, *TALK]}
    assert read_pair(row | {"system": "Be brief. "}, "conversational").prompt == [SYSTEM, *TALK]
    with pytest.raises(DataError, match="field 'system' is not the system message of the prompt"):
        read_pair(row | {"system": "Be long."}, "conversational")
    with pytest.raises(DataError, match="field 'system' is a list: expected text"):
        read_pair(GOOD | {"system": ["Be long."]}, "standard")


def test_unknown_fields_and_keys_are_told_and_metadata_is_not():
    turn = assistant("Because.") | {"mood": "good", "timestamp": "2024", "id": 3}
    row = {"prompt": TALK, "chosen": [turn], "rejected": [assistant("No.")], "critique": "Short.", "margin": 1.5}
    row |= {"score_chosen": 9.0, "chosen-model": "m", "prompt_id": "a", "Unnamed: 0": "7", "notes": ""}
    assert unread(row, "conversational") == ["critique", "chosen[].mood"]


def test_no_field_of_a_format_is_called_metadata():
    names = "prompt chosen rejected system conversations messages history input tools images content answer completions"
    assert not [name for name in names.split() if is_metadata(name)]
    assert len(set(METADATA)) == len(METADATA)
    assert has_content(0) and not has_content({"a": [None, ""]})


# ------------------------------------------------------------------------------------------ prompts that are hints


def test_an_empty_prompt_counts_as_none():
    for nothing in ("", " ", [], None):
        row = {"prompt": nothing, "chosen": [*TALK, assistant("Because.")], "rejected": [*TALK, assistant("No.")]}
        assert read_pair(row, detect_format(row)).prompt == TALK
        row = {"prompt": nothing, "chosen": f"{HH} Because.", "rejected": f"{HH} No."}
        assert read_pair(row, detect_format(row)).prompt == TALK


@pytest.mark.parametrize("prompt", ["Hi", "Why?", " Hi\n", [user("Why?")]])
def test_a_prompt_may_be_any_message_of_the_user_in_the_conversation(prompt):
    row = {
        "prompt": prompt,
        "chosen": [SYSTEM, *TALK, assistant("Because.")],
        "rejected": [SYSTEM, *TALK, assistant("No.")],
    }
    assert read_pair(row, detect_format(row)).prompt == [SYSTEM, *TALK]


@pytest.mark.parametrize(
    "prompt",
    ["Human: rewrite line 3", "\n\nHuman: Hi", "Assistant: a\n\nAssistant: b", "Why? \n\nHuman: x\n\nAssistant: y"],
)
def test_one_speaker_makes_no_transcript(prompt):
    row = GOOD | {"prompt": prompt}
    assert detect_format(row) == "standard"
    assert read_pair(row, "standard").prompt == [user(prompt)]
