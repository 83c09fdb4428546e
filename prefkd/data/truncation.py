"""How many tokens of a prompt and its answers a model sees. Parents are found first: `parent_tokens.keep_complete`."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from prefkd.errors import DataError

NO_PROMPT = (
    "the prompt has no tokens, and an answer is predicted from its last one; write a prompt, or take a template that "
    "puts text around it"
)


class Limits(NamedTuple):
    """How long a prompt and one answer may be, in tokens of one side."""

    max_length: int
    max_prompt_length: int
    truncation: Literal["keep_start", "keep_end"]


def kept_lengths(prompt: int, answers: Sequence[int], limits: Limits) -> tuple[int, int]:
    """How many tokens of a prompt and of each of its answers are kept.

    Args:
        prompt: Tokens of the prompt.
        answers: Tokens of each answer, EOS included.

    Returns:
        The prompt's tokens, and the most tokens that an answer may have, EOS included. The prompt is cut only if the
        longer answer does not fit behind it; the answers get the room that is then left.
    """
    if prompt + max(answers) > limits.max_length:
        prompt = min(prompt, limits.max_prompt_length)
    return prompt, limits.max_length - prompt


def cut_prompt(ids: list[int], length: int, limits: Limits, bos_id: int | None) -> list[int]:
    """The start or the end of a prompt; the BOS stays in either case.

    Raises:
        DataError: The prompt has no tokens: it is from the last of them that an answer is predicted.
    """
    if not ids:
        raise DataError(NO_PROMPT)
    if len(ids) <= length:
        return ids
    if limits.truncation == "keep_start":
        return ids[:length]
    start = ids[:1] if ids[0] == bos_id else []
    return start + ids[len(ids) - length + len(start) :]
