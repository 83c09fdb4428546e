"""Prompts that models answer, with the references that answers are compared with, if there are any.

A row is {"prompt": text or messages, "references": a text or several} ("reference" for one), or a preference pair in
any of its forms (`prefkd.data.formats`) or layouts (`prefkd.data.layouts`); the best answer is the reference, and a tie
has none. AlpacaEval has `instruction` in place of `prompt`; questions of Arena-Hard have a `uid`. A prompt can be a
transcript of Human and Assistant.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from prefkd.config.hints import LARGEST_SEED, size_problems
from prefkd.data.formats import (
    Pair,
    check_context,
    check_prompt,
    decoded,
    detect_format,
    normal,
    read_pair,
    with_system,
)
from prefkd.data.layouts import find_layout, read_layout
from prefkd.data.messages import Message, decode_messages, read_messages
from prefkd.data.sources import open_source, part_problems, source_problems
from prefkd.data.transcripts import is_transcript, read_transcript_prompt
from prefkd.errors import DataError, Problem
from prefkd.files import fingerprint

logger = logging.getLogger(__name__)

READ = frozenset({"prompt", "instruction", "system", "reference", "references", "uid"})


@dataclass
class PromptsConfig:
    """Which prompts are answered.

    Attributes:
        source: A file (`prefkd.data.containers.KINDS`), a folder of such files, one that `save_to_disk` of datasets
            wrote, or the id of a data set on the Hugging Face Hub.
        subset: The configuration of a Hub data set, or the name of a folder in it (helpful-base, say).
        split: The split of a Hub data set, or of a folder.
        limit: At most this many prompts, chosen at random; a smaller limit takes a part of a larger one.
        seed: Seed of the limit.
        on_bad_row: Whether a row that cannot be used is an error, or is left out, counted and reported.
    """

    source: str
    subset: str | None = None
    split: str = "train"
    limit: int | None = None
    seed: int = 0
    on_bad_row: Literal["error", "skip"] = "error"

    def problems(self) -> Iterator[Problem | str]:
        yield from source_problems(self.source, "source")
        yield from part_problems(self.source, split=self.split, subset=self.subset)
        yield from size_problems(self, "limit")
        yield from size_problems(self, "seed", least=0, most=LARGEST_SEED)


@dataclass(frozen=True)
class Prompt:
    """A conversation that waits for an answer.

    Attributes:
        key: Its name, file:row.
        messages: Messages of system, user and assistant; the last is the user's.
        references: Texts that an answer is compared with; may be empty.
        uid: Its name in the benchmark that it is of, or None.
    """

    key: str
    messages: list[Message]
    references: list[str]
    uid: str | None = None


def read_prompts(config: PromptsConfig) -> list[Prompt]:
    """Read the prompts of a config.

    Raises:
        DataError: There are none, or a row is bad.
    """
    prompts, bad = [], []
    for file, read in open_source(config.source, split=config.split, subset=config.subset).parts.items():
        for number, row in read():
            try:
                prompts.append(_read_row(f"{file}:{number}", row))
            except DataError as error:
                bad.append(f"row {number} of {file}: {error}")
                if config.on_bad_row == "error":
                    raise DataError(f"{bad[0]}; fix the data, or leave such rows out with on_bad_row: skip") from error
    if bad:
        logger.warning("%s: %d rows are left out, the first: %s", config.source, len(bad), bad[0])
    if not prompts:
        raise DataError(f"{config.source}: there are no rows in it{' that can be used' if bad else ''}")
    if config.limit is not None and config.limit < len(prompts):
        chosen = np.random.default_rng(config.seed).permutation(len(prompts))[: config.limit]
        prompts = [prompts[index] for index in sorted(chosen.tolist())]
    return prompts


def prompts_fingerprint(prompts: list[Prompt]) -> str:
    """Equal for equal prompts; references do not change what is answered."""
    return fingerprint("prompts", [(prompt.key, prompt.messages) for prompt in prompts])


def read_references(row: Mapping[str, Any]) -> list[str]:
    """What answers to a row are compared with. Blank text is none: all answers would contain it."""
    value = row.get("references", row.get("reference"))
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError("field 'references' is neither a text nor a list of texts")
    return [text for text in texts if text.strip()]


def _read_row(key: str, row: Any) -> Prompt:
    if isinstance(row, DataError):
        raise row
    if not isinstance(row, dict):
        raise DataError(f"it is of type {type(row).__name__}: expected an object with named fields")
    layout = find_layout(decoded(row))
    if layout == "nectar" and not is_transcript(str(row["prompt"])):
        layout = None  # `answers` are something else
    if layout is not None or (row.get("chosen") is not None and row.get("rejected") is not None):
        pair, is_tie = _read_pair(row, layout)
        if pair.tools or not isinstance(pair.chosen, str):
            raise DataError("field 'tools' and answers that call tools cannot be read here")
        return Prompt(key, pair.prompt, [] if is_tie else [pair.chosen])
    name = "instruction" if row.get("prompt") is None and row.get("instruction") is not None else "prompt"
    prompt = decode_messages(row.get(name), name)
    if isinstance(prompt, str) and prompt.rstrip().endswith("\n\nAssistant:") and is_transcript(prompt):
        messages = read_transcript_prompt(prompt, name)
    elif isinstance(prompt, str):
        messages = [Message(role="user", content=prompt)]
    elif isinstance(prompt, list):
        messages = read_messages(prompt, name)
    else:
        raise DataError("field 'prompt' is missing or neither text nor messages with 'role' and 'content'")
    messages = with_system(normal(messages, name), row.get("system"))
    check_context(row, READ, messages)
    check_prompt(messages)
    uid = row.get("uid")
    return Prompt(key, messages, read_references(row), None if uid is None else str(uid))


def _read_pair(row: Mapping[str, Any], layout: str | None) -> tuple[Pair, bool]:
    """The pair of a row, or of several answers the best and another, and whether the best is no better than that."""
    if layout is None:
        return read_pair(row, detect_format(row)), False
    found = read_layout(decoded(row), layout)
    (best, worth), *_, (other, least) = sorted(found.answers, key=lambda answer: -answer[1])
    return read_pair(found.row | {"chosen": best, "rejected": other}, "conversational"), worth == least
