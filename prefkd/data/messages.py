"""Messages of a conversation as data sets write them -> messages with a role and text, or an error that names the part.

A message is {"role", "content"} or ShareGPT's {"from", "value"}. Content is text, or a list of text parts
{"type": "text", "text": ...}, which are joined. What else a message holds, and a model would read or write (calls of
tools, thoughts, images), is an error. A list of messages may be text itself, as CSV files have it: JSON, Python's
notation, or NumPy's.
"""

import ast
import json
import re
from collections.abc import Mapping
from typing import Any, TypedDict

from prefkd.data.fields import has_content
from prefkd.errors import DataError


class Message(TypedDict):
    """One turn of a conversation. The role is `system`, `user` or `assistant`."""

    role: str
    content: str


# The names that data sets give to the three roles.
ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
SHAREGPT_ROLES = ROLES | {"human": "user", "gpt": "assistant"}

# Parts of a message that a model would read or write, and that a message of role and text cannot carry.
UNREADABLE_PARTS = frozenset(
    {
        *("tool_calls", "tool_call", "tool_call_id", "tool_responses", "tool_plan", "tools", "function_call"),
        *("functions", "reasoning", "reasoning_content", "reasoning_details", "thinking", "thoughts", "refusal"),
        *("name", "image", "images", "audio", "audios", "video", "videos", "file", "files", "documents", "citations"),
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
    for key in (role_key, text_key):
        if message.get(key) is None:
            raise DataError(f"{where} has no '{key}'")
    role, content = message[role_key], message[text_key]
    if not isinstance(role, str):
        raise DataError(f"'{role_key}' in {where} is {kind(role)}: expected text")
    if isinstance(content, list):
        content = _join_parts(content, f"'{text_key}' in {where}")
    if not isinstance(content, str):
        raise DataError(f"'{text_key}' in {where} is {kind(content)}: expected text")
    roles = SHAREGPT_ROLES if role_key == "from" else ROLES
    if role not in roles:
        raise DataError(f"{where} has the role '{role}': expected {', '.join(roles)}")
    return Message(role=roles[role], content=content)


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
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{", "array(")):
        return value
    parsed = _parsed(value)
    if _are_messages(parsed) or (isinstance(parsed, dict) and _are_messages([parsed]) and _has_known_role(parsed)):
        return parsed
    if parsed is None and _BEGINS_LIKE_MESSAGES.match(value):
        raise DataError(
            f"field '{name}' looks like messages written as text, and is neither JSON nor Python: "
            "write it as a list of messages"
        )
    return value


def _parsed(text: str) -> Any:
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
