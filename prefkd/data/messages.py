"""Messages of a conversation as data sets write them -> messages with a role and text, or an error that names the part.

A message is {"role", "content"} or ShareGPT's {"from", "value"}. Content is text, or a list of text parts
{"type": "text", "text": ...}, which are joined. An assistant's message may call tools (`tool_calls`, or the older
`function_call`), and have a thought (`reasoning_content`), which becomes a part of its text: <think> ... </think>. What
else a message holds, and a model would read or write (images, say), is an error. A list of messages may be text itself,
as CSV files have it: JSON, Python's notation, or NumPy's.
"""

import ast
import json
import re
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

from prefkd.data.fields import has_content
from prefkd.errors import DataError


class Message(TypedDict):
    """One turn of a conversation. The role is a name in `ROLES`.

    Calls are {"type": "function", "function": {"name", "arguments"}}, arguments as an object. A message of the role
    `tool` may say which call it answers.
    """

    role: str
    content: str
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]


# An answer: its text, or a message that calls tools.
Answer = str | Message

# The names that data sets give to the roles.
ROLES = {name: name for name in ("system", "developer", "user", "assistant", "tool")}
SHAREGPT_ROLES = ROLES | {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}
SYSTEM_ROLES = ("system", "developer")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")

# Parts of a message that a model would read or write, and that a message of role and text cannot carry.
UNREADABLE_PARTS = frozenset(
    {
        *("tool_call", "tool_responses", "tool_plan", "tools", "functions", "reasoning_details", "thoughts", "refusal"),
        *("image", "images", "audio", "audios", "video", "videos", "file", "files", "documents", "citations"),
    }
)

TEXT_PARTS = (None, "text", "input_text", "output_text")

_BEGINS_LIKE_MESSAGES = re.compile(r"""\s*\[?\s*\{\s*(["'])(role|content|from|value)\1\s*:""")
_BETWEEN_ARRAY_ITEMS = re.compile(r"\}\s*\n\s*\{")
_NUMPY_ARRAY = re.compile(r"\s*array\((\[.*\]),\s*dtype=object\)\s*", re.DOTALL)


def read_messages(value: Any, name: str) -> list[Message]:
    """Read the list of messages in a field.

    Args:
        value: The field's value.
        name: The field's name, for errors.

    Raises:
        DataError: It is not a list of messages, or a message holds something that cannot be read.
    """
    if not isinstance(value, list):
        raise DataError(f"field '{name}' is {kind(value)}: expected a list of messages")
    if not value:
        raise DataError(f"field '{name}' is empty: expected a list of messages")
    return [_read_message(message, f"message {i} of field '{name}'") for i, message in enumerate(value, start=1)]


def message_keys(message: Mapping[str, Any]) -> tuple[str, str]:
    """The keys of a message's role and text: ShareGPT's if only they are there (Arrow fills absent ones with None)."""
    sharegpt = message.get("role") is None and message.get("from") is not None
    return ("from", "value") if sharegpt else ("role", "content")


def _read_message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise DataError(f"{where} is {kind(message)}: expected 'role' and 'content'")
    role_key, text_key = message_keys(message)
    for key, value in message.items():
        if key in UNREADABLE_PARTS and has_content(value):
            raise DataError(f"'{key}' in {where} cannot be read")
    role, content = message.get(role_key), message.get(text_key)
    calls = _read_calls(message, where)
    if content is None and calls:
        content = ""
    for key, value in ((role_key, role), (text_key, content)):
        if value is None:
            raise DataError(f"{where} has no '{key}'")
    if not isinstance(role, str):
        raise DataError(f"'{role_key}' in {where} is {kind(role)}: expected text")
    if isinstance(content, list):
        content = _join_parts(content, f"'{text_key}' in {where}")
    if not isinstance(content, str):
        raise DataError(f"'{text_key}' in {where} is {kind(content)}: expected text")
    roles = SHAREGPT_ROLES if role_key == "from" else ROLES
    if role not in roles:
        raise DataError(f"{where} has the role '{role}': expected {', '.join(roles)}")
    if role == "function_call" and not calls:
        calls, content = [_call(_json(content), f"'{text_key}' in {where}")], ""
    read = Message(role=roles[role], content=_with_thought(message, content, where))
    if calls:
        read["tool_calls"] = calls
    for key in ("tool_call_id", "name"):
        if has_content(message.get(key)) and read["role"] != "tool":
            raise DataError(f"'{key}' in {where} cannot be read: it belongs to messages of the role tool")
        if has_content(message.get(key)):
            read[key] = str(message[key])
    if read["role"] != "assistant" and (calls or any(has_content(message.get(key)) for key in THOUGHTS)):
        raise DataError(f"{where} has calls or a thought: expected them in messages of the assistant only")
    return read


def _with_thought(message: Mapping[str, Any], content: str, where: str) -> str:
    """The text of a message behind its thought, as models of the family that names it so write the two."""
    thought = next((message[key] for key in THOUGHTS if has_content(message.get(key))), None)
    if thought is None:
        return content
    if not isinstance(thought, str):
        raise DataError(f"the thought in {where} is {kind(thought)}: expected text")
    return f"<think>\n{thought.strip()}\n</think>\n\n{content.lstrip()}"


def _read_calls(message: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The calls of tools in a message; text that spells them in JSON is read."""
    value = message.get("tool_calls")
    if not has_content(value):
        value = [message["function_call"]] if has_content(message.get("function_call")) else []
    value = _json(value) if isinstance(value, str) else value
    if not isinstance(value, list):
        raise DataError(f"'tool_calls' in {where} is {kind(value)}: expected a list of calls")
    return [_call(call, f"'tool_calls' in {where}") for call in value]


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError(f"{where} has a call without the name of a function")
    arguments = function.get("arguments")
    parsed = _json(arguments) if isinstance(arguments, str) and arguments.strip() else arguments or {}
    if not isinstance(parsed, dict):
        raise DataError(f"{where} has a call whose arguments are {kind(arguments)}: expected an object")
    read = {"type": "function", "function": {"name": function["name"], "arguments": without_nulls(parsed)}}
    return read | ({"id": call["id"]} if has_content(call.get("id")) else {})


def read_tools(value: Any) -> list[dict[str, Any]]:
    """The tools of a row, each a JSON schema; text that spells them in JSON is read.

    Raises:
        DataError: It is something else.
    """
    value = _json(value) if isinstance(value, str) else value
    for tool in value if isinstance(value, list) else [None]:
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError("field 'tools' is not a list of tools with a name, as {type: function, function: {name}}")
    return [without_nulls(tool) for tool in value]


def without_nulls(value: Any) -> Any:
    """A value without the keys that hold nothing: Arrow gives each object the keys of all others."""
    if isinstance(value, dict):
        return {key: without_nulls(part) for key, part in value.items() if part is not None}
    return [without_nulls(part) for part in value] if isinstance(value, list) else value


def answer_text(answer: Answer) -> str:
    """An answer for comparison and for length: its text, and its calls as JSON."""
    if isinstance(answer, str):
        return answer
    return "\n".join([answer["content"], *(json.dumps(call["function"]) for call in answer.get("tool_calls", ()))])


def pack_calls(prompt: list[Message], answers: Mapping[str, Answer], tools: list[dict[str, Any]] | None) -> str | None:
    """All that messages of role and text cannot carry, as JSON; None if there is nothing."""
    extra = {
        "tools": tools,
        "prompt": {i: rest for i, turn in enumerate(prompt) if (rest := _beyond_text(turn))},
        "answers": {name: answer.get("tool_calls") for name, answer in answers.items() if not isinstance(answer, str)},
    }
    return json.dumps(extra, ensure_ascii=False) if any(extra.values()) else None


def unpack_calls(
    prompt: list[Message], answers: Mapping[str, str], packed: str | None
) -> tuple[list[Message], dict[str, Answer], list[dict[str, Any]] | None]:
    """What `pack_calls` was given: the prompt, the answers by name, and the tools."""
    if packed is None:
        return prompt, dict(answers), None
    extra = json.loads(packed)
    whole: list[Any] = [{**turn, **extra["prompt"].get(str(i), {})} for i, turn in enumerate(prompt)]
    found: dict[str, Answer] = dict(answers)
    for name, calls in extra["answers"].items():
        found[name] = Message(role="assistant", content=answers[name], tool_calls=calls)
    return whole, found, extra["tools"]


def _beyond_text(turn: Message) -> dict[str, Any]:
    return {key: value for key, value in turn.items() if key not in ("role", "content")}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _join_parts(parts: list[Any], where: str) -> str:
    texts = []
    for part in parts:
        if not isinstance(part, dict):
            raise DataError(f"{where} is a list with {kind(part)} in it: expected text, or parts of type text")
        if part.get("type") not in TEXT_PARTS:
            raise DataError(f"{where} has a part of type '{part['type']}': expected text only")
        others = [key for key, value in part.items() if key not in ("type", "text") and has_content(value)]
        if others:
            raise DataError(f"{where} has a part with '{others[0]}': expected text only")
        if not isinstance(part.get("text"), str):
            raise DataError(f"{where} has a part without 'text': expected text only")
        texts.append(part["text"])
    return "".join(texts)


def decode_messages(value: Any, name: str) -> Any:
    """The messages that a text spells, or the value as it is. Other text stays text, JSON or not.

    Args:
        value: The value of a field.
        name: The field's name, for errors.

    Raises:
        DataError: The text begins like messages, and cannot be read as such.
    """
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{", "array(", '"[', '"{')):
        return value
    parsed = spelled(value)
    if isinstance(parsed, str):  # JSON in JSON
        inner = decode_messages(parsed, name)
        return value if isinstance(inner, str) else inner
    if _are_messages(parsed) or (isinstance(parsed, dict) and _are_messages([parsed]) and _has_known_role(parsed)):
        return parsed
    if parsed is None and _BEGINS_LIKE_MESSAGES.match(value):
        raise DataError(
            f"field '{name}' looks like messages written as text, and is neither JSON nor Python: "
            "write it as a list of messages"
        )
    return value


def spelled(text: str) -> Any:
    """What a text spells as JSON, as Python, or as a NumPy array of objects; None if nothing."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if array := _NUMPY_ARRAY.fullmatch(text):
        text = array[1]
    # NumPy writes no commas between items. A line break inside a Python string is escaped, so none of these is text.
    for spelled in (text, _BETWEEN_ARRAY_ITEMS.sub("}, {", text)):
        try:
            return ast.literal_eval(spelled.strip())
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return None


def _are_messages(value: Any) -> bool:
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        return False
    has_role = all("role" in message or "from" in message for message in value)
    return has_role and any({"role", "content"} <= set(turn) or {"from", "value"} <= set(turn) for turn in value)


def _has_known_role(message: Mapping[str, Any]) -> bool:
    role = message[message_keys(message)[0]]
    return isinstance(role, str) and role in SHAREGPT_ROLES


def kind(value: Any) -> str:
    """What a value is, in words for an error."""
    kinds = {list: "a list", dict: "an object", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(value), f"of type {type(value).__name__}")
