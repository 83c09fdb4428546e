"""Every form in which pairs come is read into the same pair, and every bad row is told by its field."""

import pytest

from prefkd.data.formats import detect_format, read_pair
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
        GOOD_TALK | {"prompt": [{"role": "tool", "content": "42"}, user("Why?")]},
        "message 1 of field 'prompt' has the role 'tool': expected system, user, assistant",
    ),
    "content in parts": (
        "conversational",
        GOOD_TALK | {"prompt": [user([{"type": "text"}])]},
        "'content' in message 1 of field 'prompt' is a list: expected text",
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
        "fields 'chosen' and 'rejected' begin with another conversation than field 'prompt'",
    ),
    "ultrafeedback with another prompt": (
        "ultrafeedback",
        {"prompt": "Why?", "chosen": [user("A?"), assistant("B")], "rejected": [user("A?"), assistant("C")]},
        "fields 'chosen' and 'rejected' answer another message than the one in field 'prompt'",
    ),
    "no conversations": ("sharegpt", GOOD_SHAREGPT | {"conversations": None}, "field 'conversations' is missing"),
    "sharegpt role": (
        "sharegpt",
        GOOD_SHAREGPT | {"conversations": [HUMAN, {"from": "observation", "value": "42"}]},
        "message 2 of field 'conversations' has the role 'observation': expected system, user, assistant, human, gpt",
    ),
    "no transcript": (
        "hh",
        GOOD,
        "field 'prompt' is no transcript: expected it to begin with 'Human:'",
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
