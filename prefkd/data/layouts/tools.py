"""Layouts that other tools read: a chosen and a rejected answer under other names. Each docstring gives the columns."""

from collections.abc import Sequence
from typing import Any

from prefkd.data.fields import has_content
from prefkd.data.layouts.candidates import Candidates, Row, asked, preferred, structure, take, text
from prefkd.data.messages import Message, kind
from prefkd.errors import DataError


def openai(row: Row) -> Candidates:
    """OpenAI preference fine-tuning: input {messages, tools, parallel_tool_calls}, preferred_output [message],
    non_preferred_output [message]."""
    given = structure(row["input"])
    if not isinstance(given, dict) or not isinstance(given.get("messages"), list):
        raise DataError("field 'input' has no 'messages'")
    rest = take(row, "input", "preferred_output", "non_preferred_output") | {"prompt": given["messages"]}
    rest |= {name: value for name, value in given.items() if name not in ("messages", "parallel_tool_calls")}
    return preferred(rest, row["preferred_output"], row["non_preferred_output"])


def ms_swift(row: Row) -> Candidates:
    """ms-swift: messages (the last is the chosen answer), rejected_response (a text or several), or rejected_messages
    (a whole conversation) in its place; system, tools, images."""
    messages = row["messages"]
    if not isinstance(messages, list) or len(messages) < 2:
        raise DataError("field 'messages' is not a list of a prompt and the chosen answer")
    if has_content(row.get("rejected_messages")):
        return preferred(take(row, "messages", "rejected_messages"), messages, row["rejected_messages"])
    rest = take(row, "messages", "rejected_response") | {"prompt": messages[:-1]}
    worse = row.get("rejected_response")
    return preferred(rest, [messages[-1]], worse if isinstance(worse, list) else text(row, "rejected_response"))


def axolotl(row: Row) -> Candidates:
    """axolotl chat_template.default: messages (the prompt), chosen {role, content}, rejected {role, content}."""
    return preferred(take(row, "messages", "chosen", "rejected") | {"prompt": row["messages"]}, *_answers(row))


def hh_rlhf_cn(row: Row) -> Candidates:
    """AI-ModelScope/hh_rlhf_cn: context [{role, text}], chosen {role, text}, rejected {role, text}; the roles are human
    and assistant."""
    names = {"human": "user", "assistant": "assistant"}

    def message(turn: Any) -> dict[str, Any]:
        if not isinstance(turn, dict) or turn.get("role") not in names:
            raise DataError("a turn of field 'context', 'chosen' or 'rejected' has no role human or assistant")
        return take(turn, "text") | {"role": names[turn["role"]], "content": turn.get("text")}

    if not isinstance(row["context"], list):
        raise DataError(f"field 'context' is {kind(row['context'])}: expected a list of turns")
    rest = take(row, "context", "chosen", "rejected") | {"prompt": [message(turn) for turn in row["context"]]}
    chosen, rejected = _answers(row)
    return preferred(rest, message(chosen), message(rejected))


def ultrainteract(row: Row) -> Candidates:
    """openbmb/UltraInteract_pair: trajectory [{from: user or assistant, value}] (the prompt), chosen, rejected (text),
    task, dataset, id, parent_id."""
    return preferred(take(row, "trajectory", "chosen", "rejected") | {"prompt": row["trajectory"]}, *_answers(row))


def alpaca(row: Row) -> Candidates:
    """Alpaca with ranking, as LLaMA-Factory and axolotl read it: instruction, input, chosen, rejected (or
    chosen_response, rejected_response), system, history [[user, assistant]]. Instruction and input are joined by a line
    break."""
    question = "\n".join(part for name in ("instruction", "input") if (part := _optional_text(row, name)))
    prompt = [*_history(row.get("history")), Message(role="user", content=question)]
    return _renamed(take(row, "instruction", "input", "history"), prompt)


def question(row: Row) -> Candidates:
    """The prompt under another name, the first of question (Intel/orca_dpo_pairs, lvwerra/stack-exchange-paired), query
    (ms-swift, LLaMA-Factory) and input (argilla/distilabel-intel-orca-dpo-pairs) that the row has; system, history."""
    name = next((name for name in QUESTIONS if has_content(row.get(name))), QUESTIONS[0])
    prompt = [*_history(row.get("history")), Message(role="user", content=text(row, name))]
    return _renamed(take(row, name, "history"), prompt)


def answer_names(row: Row) -> Candidates:
    """The two answers under other names, `ANSWERS`, next to an ordinary prompt: CValues-Comparison (prompt, pos_resp,
    neg_resp, pos_type, neg_type), axolotl's argilla rows (prompt, chosen_response, rejected_response)."""
    return _renamed(dict(row), asked(row["prompt"]))


QUESTIONS = ("question", "query", "input")
ANSWERS = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("pos_resp", "neg_resp"),
    ("response_j", "response_k"),
    ("accepted", "rejected"),
    ("preferred", "dispreferred"),
    ("response_w", "response_l"),
    ("response", "rejected_response"),
    ("preferred_output", "non_preferred_output"),
)


def _renamed(rest: dict[str, Any], prompt: Sequence[Any]) -> Candidates:
    chosen, rejected = answer_columns(rest) or ANSWERS[0]
    return preferred(take(rest, chosen, rejected) | {"prompt": prompt}, *_answers(rest, chosen, rejected))


def answer_columns(row: Row) -> tuple[str, str] | None:
    """The first two of `ANSWERS` that hold something, or else that the row has."""
    filled = (names for names in ANSWERS if all(has_content(row.get(name)) for name in names))
    there = (names for names in ANSWERS if set(names) <= set(row))
    return next(filled, next(there, None))


def _answers(row: Row, chosen: str = "chosen", rejected: str = "rejected") -> tuple[Any, Any]:
    for name in (chosen, rejected):
        if row.get(name) is None:
            raise DataError(f"field '{name}' is missing")
    return row[chosen], row[rejected]


def _optional_text(row: Row, name: str) -> str:
    return text(row, name) if has_content(row.get(name)) else ""


def _history(value: Any) -> list[Message]:
    """Earlier turns, as pairs of what the user and the assistant said."""
    value = structure(value)
    if not has_content(value):
        return []
    if not isinstance(value, list) or not all(
        isinstance(turn, list) and len(turn) == 2 and all(isinstance(said, str) for said in turn) for turn in value
    ):
        raise DataError("field 'history' is not a list of [user, assistant]")
    roles = ("user", "assistant")
    return [Message(role=role, content=said) for turn in value for role, said in zip(roles, turn, strict=True)]
