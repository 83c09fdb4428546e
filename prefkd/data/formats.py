"""The forms in which preference data comes, each read by one pure function: a row -> prompt, chosen, rejected.

    standard        {"prompt": "...", "chosen": "...", "rejected": "..."}
    conversational  {"prompt": [messages], "chosen": [answer], "rejected": [answer]}, or without a prompt two whole
                    conversations that share everything but the last answer
    hh              Anthropic HH: "chosen" and "rejected" are transcripts, "\\n\\nHuman: ...\\n\\nAssistant: ...", that
                    share all but the last answer; or the prompt is a transcript and the answers stand alone
    ultrafeedback   {"prompt": "...", "chosen": [user, assistant], "rejected": [user, assistant]}
    sharegpt        {"conversations": [{"from", "value"}], "chosen": {"from", "value"}, "rejected": {"from", "value"}}
    answers         {"prompt": "..." or [messages], "answer": "..."}: an answer without a rival, as recipe sample writes
                    it; never found, but asked for, since most training needs a rival

Messages are those of `prefkd.data.messages`, and may be text that spells them. A field "system" with text becomes the
system message of any of them, and a field "tools" tells which tools can be called. "chosen_finish" and
"rejected_finish", of answers "finish", is "length" where an answer was cut, so that it gets no end. What cannot be read
is a `DataError` that names the field and what belongs there.
"""

import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from prefkd.data.fields import ATTACHMENTS, CONTEXT, has_content, is_metadata, is_repeated, unread_fields, unread_parts
from prefkd.data.messages import (
    SYSTEM_ROLES,
    THOUGHTS,
    Answer,
    Message,
    answer_text,
    decode_messages,
    kind,
    read_messages,
    read_tools,
)
from prefkd.data.transcripts import is_transcript, read_transcript, read_transcript_prompt
from prefkd.data.worth import Worth
from prefkd.errors import DataError

ANSWERS_ALONE = "answers"  # name of the form of answers without a rival
# What recipe sample says of an answer besides.
SAMPLED = ("key", "prompt_cut", "references", "model", "number", "finish", "tokens", "seed")


class Pair(NamedTuple):
    """Two answers to one prompt.

    Attributes:
        prompt: A conversation that ends with a message of the user or of a tool.
        chosen, rejected: The better and the worse answer: text, or a message that calls tools. An answer without a
            rival is the chosen one, and the rejected one is empty.
        tools: The tools that can be called, JSON schemas, or None.
        worth: Its weight, margin and gap.
        cut: Whether the chosen and the rejected answer are not finished, so that nothing ends behind them.
    """

    prompt: list[Message]
    chosen: Answer
    rejected: Answer
    tools: list[dict[str, Any]] | None = None
    worth: Worth = Worth()
    cut: tuple[bool, bool] = (False, False)


def detect_format(row: Mapping[str, Any]) -> str:
    """Which of the forms a row has. Whether text is a transcript is a guess: a file decides by all of its rows.

    Raises:
        DataError: It has none of them.
    """
    row = decoded(row)
    if has_content(row.get("answer")) and not any(has_content(row.get(name)) for name in ("chosen", "rejected")):
        raise DataError(
            "fields 'chosen' and 'rejected' are missing: rank answers with recipe rank first, or give format: answers "
            "where no rival is needed"
        )
    chosen, rejected, prompt = _field(row, "chosen"), _field(row, "rejected"), row.get("prompt")
    if has_content(row.get("conversations")) and (not isinstance(chosen, list) or len(chosen) == 1):
        return "sharegpt"
    if isinstance(chosen, list | dict):
        return "ultrafeedback" if isinstance(prompt, str) and prompt.strip() else "conversational"
    if isinstance(prompt, list) and prompt:
        return "conversational"
    texts = [prompt] if has_content(prompt) else [chosen, rejected]
    if all(isinstance(text, str) and is_transcript(text) for text in texts):
        return "hh"
    _field(row, "prompt")
    return "standard"


def read_pair(row: Mapping[str, Any], row_format: str) -> Pair:
    """Read a row, check it, and bring its text into Unicode NFC, so that every tokenizer sees the same characters.

    Args:
        row: Field name -> value.
        row_format: The form that the row has.

    Raises:
        DataError: A field is missing, empty or of the wrong type, the row holds something that belongs to the prompt
            and is not read, or the pair carries no preference.
    """
    row = decoded(row)
    pair = FORMATS[row_format].read(row)
    prompt: list[Message] = with_system(normal(pair.prompt, "prompt"), row.get("system"))
    tools = normal(read_tools(row["tools"]), "tools") if has_content(row.get("tools")) else None
    chosen, rejected = normal(pair.chosen, "chosen"), normal(pair.rejected, "rejected")
    pair = pair._replace(prompt=prompt, chosen=chosen, rejected=rejected, tools=tools)
    check_context(row, FORMATS[row_format].reads, pair.prompt)
    check_prompt(pair.prompt)
    if row_format != ANSWERS_ALONE:
        pair = pair._replace(cut=(is_cut(row, "chosen_finish"), is_cut(row, "rejected_finish")))
        check_answers(answer_text(pair.chosen), answer_text(pair.rejected))
    return pair


def unread(row: Mapping[str, Any], row_format: str) -> list[str]:
    """What a row holds that its format does not read, and that is not known to be metadata: fields, `field[].key`."""
    reads = FORMATS[row_format].reads
    row = decoded(row)
    fields = [name for name in unread_fields(row, reads) if name not in CONTEXT]
    return fields + unread_parts(row, reads - {"tools"}, MESSAGE_KEYS)


MESSAGE_KEYS = ("role", "content", "from", "value", "tool_calls", "function_call", "tool_call_id", "name", *THOUGHTS)


def with_system(prompt: list[Message], system: Any) -> list[Message]:
    """A prompt behind the text of a field `system`, if it has any.

    Raises:
        DataError: It is not text, or the prompt has another system message.
    """
    if not has_content(system):
        return prompt
    if not isinstance(system, str):
        raise DataError(f"field 'system' is {kind(system)}: expected text")
    system = normal(system, "system")
    if not prompt or prompt[0]["role"] not in SYSTEM_ROLES:
        return [Message(role="system", content=system), *prompt]
    if prompt[0]["content"].strip() != system.strip():
        raise DataError("field 'system' is not the system message of the prompt: remove one of the two")
    return prompt


def check_context(row: Mapping[str, Any], reads: frozenset[str], prompt: list[Message]) -> None:
    """Raise a DataError if a field belongs to the prompt and its text is not there."""
    texts = [turn["content"] for turn in prompt]
    for name in unread_fields(row, reads):
        if name in ATTACHMENTS or (name in CONTEXT and not is_repeated(_all_normal(row[name]), texts)):
            raise DataError(
                f"field '{name}' cannot be read, and the prompt is another without it: put it into the prompt, or "
                "remove it"
            )


def check_prompt(prompt: list[Message]) -> None:
    """Raise a DataError unless the prompt is a conversation that waits for an answer."""
    if not any(turn["content"].strip() for turn in prompt if turn["role"] == "user"):
        raise DataError("the prompt is empty: expected a message of the user")
    if prompt[-1]["role"] not in ("user", "tool"):
        raise DataError(f"the prompt ends with a message of the {prompt[-1]['role']}: expected one of the user")
    if any(turn["role"] in SYSTEM_ROLES for turn in prompt[1:]):
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
    """Messages: a prompt and two answers, or two conversations that share all but the last answer.

    A prompt without content, "" or [], counts as none.
    """
    prompt = read_messages(row["prompt"], "prompt") if has_content(row.get("prompt")) else []
    history, *answers = _conversations(row)
    # A prompt may leave out the system message, or earlier turns, that the conversations have.
    if prompt and history and history[-len(prompt) :] != prompt:
        raise DataError("fields 'chosen' and 'rejected' begin with a different conversation from field 'prompt'")
    chosen, rejected = answers
    return Pair(history or prompt, chosen, rejected)


def read_ultrafeedback(row: Mapping[str, Any]) -> Pair:
    """Two conversations; one message of the user in them, often the first or the last, is given once more as text."""
    prompt = _text(row, "prompt")
    history, *answers = _conversations(row)
    asked = [normal(turn["content"], "prompt").strip() for turn in history if turn["role"] == "user"]
    if history and normal(prompt, "prompt").strip() not in asked:
        raise DataError("fields 'chosen' and 'rejected' answer a different message from the one in field 'prompt'")
    chosen, rejected = answers
    return Pair(history or [_user(prompt)], chosen, rejected)


def read_sharegpt(row: Mapping[str, Any]) -> Pair:
    """A conversation and two answers with the keys `from` and `value`."""
    prompt = read_messages(_field(row, "conversations"), "conversations")
    answers = []
    for name in ("chosen", "rejected"):
        value = _field(row, name)
        if not isinstance(value, str):
            messages = read_messages(value if isinstance(value, list) else [value], name)
            if len(messages) > 1:
                raise DataError(f"field '{name}' has {len(messages)} messages: expected the answer alone")
            value = _answer(messages[0], name)
        answers.append(value)
    return Pair(prompt, *answers)


def read_hh(row: Mapping[str, Any]) -> Pair:
    """Transcripts (`prefkd.data.transcripts`), or a transcript as the prompt of two answers."""
    if has_content(row.get("prompt")):
        prompt = read_transcript_prompt(_text(row, "prompt"), "prompt")
        return Pair(prompt, _text(row, "chosen").strip(), _text(row, "rejected").strip())
    *chosen_prompt, chosen = read_transcript(_text(row, "chosen"), "chosen")
    *rejected_prompt, rejected = read_transcript(_text(row, "rejected"), "rejected")
    _require_same_prompt(chosen_prompt, rejected_prompt)
    return Pair(chosen_prompt, _answer(chosen, "chosen"), _answer(rejected, "rejected"))


def read_answer(row: Mapping[str, Any]) -> Pair:
    """A prompt, text or messages, and an answer; `finish: length` says that it was cut."""
    prompt = row.get("prompt")
    messages = read_messages(prompt, "prompt") if isinstance(prompt, list) else [_user(_text(row, "prompt"))]
    answer = _text(row, "answer")
    if not answer.strip():
        raise DataError("field 'answer' is empty: expected an answer")
    return Pair(messages, answer, "", cut=(is_cut(row), False))


def is_cut(row: Mapping[str, Any], name: str = "finish") -> bool:
    """Whether a sampled answer was cut at its limit of tokens.

    Raises:
        DataError: The field of this name is neither of the two reasons for which an answer ends.
    """
    finish = row.get(name)
    if has_content(finish) and finish not in ("stop", "length"):
        raise DataError(f"field '{name}' is {finish!r}: expected 'stop', or 'length' for an answer that was cut")
    return finish == "length"


class _Format(NamedTuple):
    """How rows of a form are read, and which of their fields."""

    read: Callable[[Mapping[str, Any]], Pair]
    reads: frozenset[str]


_COMMON = frozenset({"prompt", "chosen", "rejected", "chosen_finish", "rejected_finish", "system", "tools"})

FORMATS: dict[str, _Format] = {
    "standard": _Format(read_standard, _COMMON),
    "conversational": _Format(read_conversational, _COMMON),
    "hh": _Format(read_hh, _COMMON),
    "ultrafeedback": _Format(read_ultrafeedback, _COMMON),
    "sharegpt": _Format(read_sharegpt, _COMMON - {"prompt"} | {"conversations"}),
    ANSWERS_ALONE: _Format(read_answer, frozenset({"prompt", "answer", "system", "tools", *SAMPLED})),
}


def _conversations(row: Mapping[str, Any]) -> tuple[list[Message], Answer, Answer]:
    """What both conversations begin with, and their last answers: texts, single messages, or the ends of lists."""
    histories, answers = [], []
    for name in ("chosen", "rejected"):
        value = _field(row, name)
        if isinstance(value, str):
            histories.append([])
            answers.append(value)
            continue
        *history, last = read_messages([value] if isinstance(value, dict) else value, name)
        histories.append(history)
        answers.append(_answer(last, name))
    _require_same_prompt(*histories)
    return histories[0], answers[0], answers[1]


def _require_same_prompt(chosen: list[Message], rejected: list[Message]) -> None:
    if chosen != rejected:
        raise DataError("fields 'chosen' and 'rejected' differ before their last answer: expected one shared prompt")


def _answer(message: Message, name: str) -> Answer:
    if message["role"] != "assistant":
        raise DataError(f"field '{name}' ends with a message of the {message['role']}: expected one of the assistant")
    return message if "tool_calls" in message else message["content"]


def _user(text: str) -> Message:
    return Message(role="user", content=text)


def _field(row: Mapping[str, Any], name: str) -> Any:
    value = row.get(name)
    if value is None or value != value:  # pandas writes what is absent as NaN
        if name not in row and not {"chosen", "rejected"} & set(row):
            has = ", ".join(map(str, [*row][:8])) or "nothing"
            raise DataError(f"field '{name}' is missing: tell with data.columns which it is (the row has {has})")
        raise DataError(f"field '{name}' is missing")
    return value


def _text(row: Mapping[str, Any], name: str) -> str:
    value = _field(row, name)
    if not isinstance(value, str):
        raise DataError(f"field '{name}' is {kind(value)}: expected text")
    return value


def decoded(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the messages that its texts spell."""
    return {name: value if is_metadata(str(name)) else decode_messages(value, name) for name, value in row.items()}


def normal(value: Any, name: str) -> Any:
    """A value whose texts are in Unicode NFC."""
    if isinstance(value, list):
        return [normal(part, name) for part in value]
    if isinstance(value, dict):
        return {key: normal(part, name) for key, part in value.items()}
    if not isinstance(value, str):
        return value
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"field '{name}' is broken: half a character (surrogate) at {error.start}") from error
    return unicodedata.normalize("NFC", value)


def _all_normal(value: Any) -> Any:
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value)
    if isinstance(value, list | tuple):
        return [_all_normal(part) for part in value]
    return {key: _all_normal(part) for key, part in value.items()} if isinstance(value, Mapping) else value
