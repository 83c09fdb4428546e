"""The forms in which preference data comes, each read by one pure function: a row -> prompt, chosen, rejected.

    standard        {"prompt": "...", "chosen": "...", "rejected": "..."}
    conversational  {"prompt": [messages], "chosen": [answer], "rejected": [answer]}, or without a prompt two whole
                    conversations that share everything but the last answer; a message is {"role", "content"}
    hh              Anthropic HH: "chosen" and "rejected" are transcripts, "\\n\\nHuman: ...\\n\\nAssistant: ...", that
                    share all but the last answer; or the prompt is a transcript and the answers stand alone
    ultrafeedback   {"prompt": "...", "chosen": [user, assistant], "rejected": [user, assistant]}
    sharegpt        {"conversations": [{"from", "value"}], "chosen": {"from", "value"}, "rejected": {"from", "value"}}

A field "system" with text becomes the system message of any of them. What cannot be read is a `DataError` that names
the field and what belongs there.
"""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypedDict

from prefkd.errors import DataError

Format = Literal["standard", "conversational", "hh", "ultrafeedback", "sharegpt"]


class Message(TypedDict):
    """One turn of a conversation. The role is `system`, `user` or `assistant`."""

    role: str
    content: str


class Pair(NamedTuple):
    """Two answers to one prompt. The prompt is a conversation that ends with a message of the user."""

    prompt: list[Message]
    chosen: str
    rejected: str


# The names that data sets give to the three roles.
ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
SHAREGPT_ROLES = ROLES | {"human": "user", "gpt": "assistant"}
SPEAKERS = {"Human": "user", "Assistant": "assistant"}

_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


def detect_format(row: Mapping[str, Any]) -> Format:
    """Which of the forms a row has.

    Raises:
        DataError: It has none of them.
    """
    chosen, prompt = _field(row, "chosen"), row.get("prompt")
    _field(row, "rejected")
    if row.get("conversations") is not None:
        return "sharegpt"
    if isinstance(chosen, list | dict):
        return "ultrafeedback" if isinstance(prompt, str) else "conversational"
    if isinstance(prompt, list):
        return "conversational"
    first_text = chosen if prompt is None else prompt
    if isinstance(first_text, str) and _SPEAKER.match(first_text):
        return "hh"
    _field(row, "prompt")
    return "standard"


def read_pair(row: Mapping[str, Any], row_format: Format) -> Pair:
    """Read a row, check it, and bring its text into Unicode NFC, so that every tokenizer sees the same characters.

    Args:
        row: Field name -> value.
        row_format: The form that the row has.

    Raises:
        DataError: A field is missing, empty or of the wrong type, or the pair carries no preference.
    """
    pair = _READERS[row_format](row)
    prompt = [Message(role=turn["role"], content=_normal(turn["content"], "prompt")) for turn in pair.prompt]
    system = row.get("system")
    if isinstance(system, str) and system.strip() and (not prompt or prompt[0]["role"] != "system"):
        prompt.insert(0, Message(role="system", content=_normal(system, "system")))
    pair = Pair(prompt, _normal(pair.chosen, "chosen"), _normal(pair.rejected, "rejected"))
    check_prompt(pair.prompt)
    check_answers(pair.chosen, pair.rejected)
    return pair


def check_prompt(prompt: list[Message]) -> None:
    """Raise a DataError unless the prompt is a conversation that waits for an answer."""
    if not any(turn["content"].strip() for turn in prompt if turn["role"] == "user"):
        raise DataError("the prompt is empty: expected a message of the user")
    if prompt[-1]["role"] != "user":
        raise DataError(f"the prompt ends with a message of the {prompt[-1]['role']}: expected one of the user")
    if any(turn["role"] == "system" for turn in prompt[1:]):
        raise DataError("the prompt has a system message after its start: expected it first")


def check_answers(chosen: str, rejected: str) -> None:
    """Raise a DataError unless there are two answers that differ."""
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer.strip():
            raise DataError(f"field '{name}' is empty: expected an answer")
    if chosen.strip() == rejected.strip():
        raise DataError("fields 'chosen' and 'rejected' are the same text: there is nothing to prefer")


def read_standard(row: Mapping[str, Any]) -> Pair:
    """Three strings."""
    return Pair([_user(_text(row, "prompt"))], _text(row, "chosen"), _text(row, "rejected"))


def read_conversational(row: Mapping[str, Any]) -> Pair:
    """Messages: a prompt and two answers, or two conversations that share all but the last answer."""
    prompt = [] if row.get("prompt") is None else _messages(row["prompt"], "prompt", ROLES)
    return _pair_of_conversations(row, prompt)


def read_ultrafeedback(row: Mapping[str, Any]) -> Pair:
    """Two conversations; the prompt is given once more as a string."""
    prompt = _text(row, "prompt")
    pair = _pair_of_conversations(row, [])
    if not pair.prompt:
        return pair._replace(prompt=[_user(prompt)])
    if pair.prompt[-1]["content"].strip() != prompt.strip():
        raise DataError("fields 'chosen' and 'rejected' answer another message than the one in field 'prompt'")
    return pair


def read_sharegpt(row: Mapping[str, Any]) -> Pair:
    """A conversation and two answers with the keys `from` and `value`."""
    prompt = _messages(_field(row, "conversations"), "conversations", SHAREGPT_ROLES, "from", "value")
    answers = []
    for name in ("chosen", "rejected"):
        value = _field(row, name)
        if not isinstance(value, str):
            [answer] = _messages([value], name, SHAREGPT_ROLES, "from", "value")
            value = _answer(answer, name)
        answers.append(value)
    return Pair(prompt, *answers)


def read_hh(row: Mapping[str, Any]) -> Pair:
    """Transcripts. Blanks around a turn belong to the transcript, not to the speaker, and are left out.

    Someone who speaks twice in a row has one turn: many chat templates take nothing else.
    """
    if row.get("prompt") is not None:
        prompt = _transcript(_text(row, "prompt"), "prompt")
        if prompt[-1]["role"] == "assistant" and not prompt[-1]["content"]:
            prompt.pop()
        return Pair(prompt, _text(row, "chosen").strip(), _text(row, "rejected").strip())
    *chosen_prompt, chosen = _transcript(_text(row, "chosen"), "chosen")
    *rejected_prompt, rejected = _transcript(_text(row, "rejected"), "rejected")
    _require_same_prompt(chosen_prompt, rejected_prompt)
    return Pair(chosen_prompt, _answer(chosen, "chosen"), _answer(rejected, "rejected"))


_READERS = {
    "standard": read_standard,
    "conversational": read_conversational,
    "hh": read_hh,
    "ultrafeedback": read_ultrafeedback,
    "sharegpt": read_sharegpt,
}


def _pair_of_conversations(row: Mapping[str, Any], prompt: list[Message]) -> Pair:
    """Answers as strings, as single messages, or as the last messages of conversations that repeat the prompt."""
    histories, answers = [], []
    for name in ("chosen", "rejected"):
        value = _field(row, name)
        if isinstance(value, str):
            histories.append([])
            answers.append(value)
            continue
        *history, last = _messages([value] if isinstance(value, dict) else value, name, ROLES)
        histories.append(history)
        answers.append(_answer(last, name))
    _require_same_prompt(*histories)
    history = histories[0]
    if prompt and history and history != prompt:
        raise DataError("fields 'chosen' and 'rejected' begin with another conversation than field 'prompt'")
    return Pair(history or prompt, *answers)


def _require_same_prompt(chosen: list[Message], rejected: list[Message]) -> None:
    if chosen != rejected:
        raise DataError("fields 'chosen' and 'rejected' differ before their last answer: expected one shared prompt")


def _messages(
    value: Any, name: str, roles: Mapping[str, str], role_key: str = "role", text_key: str = "content"
) -> list[Message]:
    if not isinstance(value, list):
        raise DataError(f"field '{name}' is {_kind(value)}: expected a list of messages")
    if not value:
        raise DataError(f"field '{name}' is empty: expected a list of messages")
    messages = []
    for number, message in enumerate(value, start=1):
        where = f"message {number} of field '{name}'"
        if not isinstance(message, dict):
            raise DataError(f"{where} is {_kind(message)}: expected '{role_key}' and '{text_key}'")
        for key in (role_key, text_key):
            if message.get(key) is None:
                raise DataError(f"{where} has no '{key}'")
            if not isinstance(message[key], str):
                raise DataError(f"'{key}' in {where} is {_kind(message[key])}: expected text")
        if message[role_key] not in roles:
            raise DataError(f"{where} has the role '{message[role_key]}': expected {', '.join(roles)}")
        messages.append(Message(role=roles[message[role_key]], content=message[text_key]))
    return messages


def _transcript(text: str, name: str) -> list[Message]:
    if not _SPEAKER.match(text):
        raise DataError(f"field '{name}' is no transcript: expected it to begin with 'Human:'")
    _, *turns = _SPEAKER.split(text)
    messages: list[Message] = []
    for speaker, content in zip(turns[::2], turns[1::2], strict=True):
        if messages and messages[-1]["role"] == SPEAKERS[speaker]:
            messages[-1]["content"] += f"\n\n{content.strip()}"
        else:
            messages.append(Message(role=SPEAKERS[speaker], content=content.strip()))
    return messages


def _answer(message: Message, name: str) -> str:
    if message["role"] != "assistant":
        raise DataError(f"field '{name}' ends with a message of the {message['role']}: expected one of the assistant")
    return message["content"]


def _user(text: str) -> Message:
    return Message(role="user", content=text)


def _field(row: Mapping[str, Any], name: str) -> Any:
    if row.get(name) is None:
        raise DataError(f"field '{name}' is missing")
    return row[name]


def _text(row: Mapping[str, Any], name: str) -> str:
    value = _field(row, name)
    if not isinstance(value, str):
        raise DataError(f"field '{name}' is {_kind(value)}: expected text")
    return value


def _kind(value: Any) -> str:
    kinds = {list: "a list", dict: "an object", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(value), f"of type {type(value).__name__}")


def _normal(text: str, name: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"field '{name}' is broken: half a character (surrogate) at {error.start}") from error
    return unicodedata.normalize("NFC", text)
