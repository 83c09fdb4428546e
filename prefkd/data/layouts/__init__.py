"""Layouts of public preference sets and of other tools -> rows with a prompt, a chosen and a rejected answer.

A layout is one pure function; its docstring gives the published columns. It is recognised by its columns (`find_layout`
says in which order), or named with `data.format`. Rows whose fields are already a form of `prefkd.data.formats` have
none.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from prefkd.data.fields import has_content
from prefkd.data.layouts import ranked, tools, two_answers
from prefkd.data.layouts.candidates import Candidates, Row
from prefkd.data.transcripts import is_transcript
from prefkd.errors import DataError


class Layout(NamedTuple):
    """How rows of a layout are read.

    Attributes:
        read: The layout.
        columns: Columns of its rows.
    """

    read: Callable[[Row], Candidates]
    columns: tuple[str, ...]


_PKU = ("prompt", "response_0", "response_1")
_WINNERS = ("winner_model_a", "winner_model_b", "winner_tie")

# Known by columns of their own, none of which is called chosen or rejected.
OWN_ANSWERS = {
    "pku_better": Layout(two_answers.pku_better, (*_PKU, "better_response_id")),
    "pku_safer": Layout(two_answers.pku_safer, (*_PKU, "safer_response_id")),
    "shp": Layout(two_answers.shp, ("history", "human_ref_A", "human_ref_B", "labels")),
    "helpsteer2": Layout(two_answers.helpsteer2, ("prompt", "response_1", "response_2", "preference_strength")),
    "helpsteer3": Layout(two_answers.helpsteer3, ("context", "response1", "response2", "overall_preference")),
    "arena": Layout(two_answers.arena, ("conversation_a", "conversation_b", "winner")),
    "arena_text": Layout(two_answers.arena_text, ("prompt", "response_a", "response_b", *_WINNERS)),
    "webgpt": Layout(two_answers.webgpt, ("question", "answer_0", "answer_1", "score_0", "score_1")),
    "summaries": Layout(two_answers.summaries, ("info", "summaries", "choice")),
    "nectar": Layout(ranked.nectar, ("prompt", "answers")),
    "ultrafeedback_completions": Layout(ranked.ultrafeedback_completions, ("instruction", "completions")),
    "stack_exchange": Layout(ranked.stack_exchange, ("question", "answers")),
    "distilabel": Layout(ranked.distilabel, ("generations", "ratings")),
    "nemo_rl": Layout(ranked.nemo_rl, ("context", "completions")),
    "openai": Layout(tools.openai, ("input", "preferred_output", "non_preferred_output")),
}

LAYOUTS = OWN_ANSWERS | {
    "ms_swift": Layout(tools.ms_swift, ("messages",)),
    "axolotl": Layout(tools.axolotl, ("messages", "chosen", "rejected")),
    "hh_rlhf_cn": Layout(tools.hh_rlhf_cn, ("context", "chosen", "rejected")),
    "answer_lists": Layout(ranked.answer_lists, ("prompt", "chosen", "rejected")),
    "ultrainteract": Layout(tools.ultrainteract, ("trajectory", "chosen", "rejected")),
    "alpaca": Layout(tools.alpaca, ("instruction",)),
    "question": Layout(tools.question, ()),
    "answer_names": Layout(tools.answer_names, ("prompt",)),
}


def find_layout(row: Row) -> str | None:
    """The layout of a row, None if it has none.

    1. `chosen` and `rejected` with a prompt of their own, or with `prompt` or `conversations`: none, or `answer_lists`
       where one is a list of texts and the other too, or a text.
    2. `chosen` and `rejected`, and the prompt under another name, in this order: messages, trajectory, context,
       instruction, question, query, input.
    3. The columns of `OWN_ANSWERS`; of answers with a better and a safer one, the better.
    4. messages with rejected_response or rejected_messages; else two answers of `tools.ANSWERS`, and the prompt as in
       2. Columns count that hold nothing, so that they are named as what is missing.

    Raises:
        DataError: It has the columns of two of `OWN_ANSWERS`.
    """
    if has_content(row.get("chosen")) and has_content(row.get("rejected")):
        if has_content(row.get("prompt")) and _are_answer_lists(row["chosen"], row["rejected"]):
            return "answer_lists"
        return None if _has_prompt(row) else _by_prompt(row)
    found = [name for name, layout in OWN_ANSWERS.items() if set(layout.columns) <= set(row)]
    if "pku_better" in found and "pku_safer" in found:
        found.remove("pku_safer")
    if len(found) > 1:
        raise DataError(f"it has the columns of {' and of '.join(found)}: set data.format to the one that is meant")
    if found:
        return found[0]
    if has_content(row.get("messages")) and {"rejected_response", "rejected_messages"} & set(row):
        return "ms_swift"
    if (tools.answer_columns(row) or tools.ANSWERS[0]) != tools.ANSWERS[0]:
        return "answer_names" if has_content(row.get("prompt")) else _by_prompt(row)
    return None


def columns_of(name: str, columns: Mapping[str, str]) -> str:
    """The columns that rows of a form or a layout are read from, in a line.

    Args:
        columns: Name that it reads -> column, as in `data.columns`.
    """
    layout = LAYOUTS.get(name)
    read = layout.columns if layout else ("conversations" if name == "sharegpt" else "prompt", "chosen", "rejected")
    renamed = [f"{one} = {columns[one]}" if one in columns else one for one in dict.fromkeys([*read, *columns])]
    return ", ".join(renamed)


def read_layout(row: Row, name: str) -> Candidates:
    """The prompt and the answers of a row.

    Raises:
        DataError: The row is not of this layout.
    """
    layout = LAYOUTS[name]
    for column in layout.columns:
        if row.get(column) is None:
            raise DataError(f"field '{column}' is missing")
    return layout.read(row)


def _are_answer_lists(*answers: Any) -> bool:
    lists = [value for value in answers if isinstance(value, list)]
    texts = [part for value in answers for part in (value if isinstance(value, list) else [value])]
    return bool(lists) and all(isinstance(part, str) for part in texts)


def _has_prompt(row: Row) -> bool:
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, str):
        repeated = is_transcript(chosen) and isinstance(rejected, str) and is_transcript(rejected)
    else:
        repeated = isinstance(chosen, list) and len(chosen) > 1
    return repeated or has_content(row.get("prompt")) or has_content(row.get("conversations"))


def _by_prompt(row: Row) -> str | None:
    has: Mapping[str, Any] = {name: value for name, value in row.items() if has_content(value)}
    if "messages" in has:
        return "axolotl"
    if "trajectory" in has:
        return "ultrainteract"
    if "context" in row and isinstance(has.get("chosen"), dict) and "text" in has["chosen"]:
        return "hh_rlhf_cn"
    if "instruction" in has:
        return "alpaca"
    return "question" if any(name in has for name in tools.QUESTIONS) else None
