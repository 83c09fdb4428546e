"""`prefkd inspect`."""

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.console import Console
from tyro.conf import arg

from prefkd.catalog import hush_libraries
from prefkd.cli.arguments import optional
from prefkd.cli.output import say
from prefkd.errors import PrefkdError
from prefkd.terminal import console

Template = Annotated[Literal["auto", "chat", "plain"], arg(help_behavior_hint="")]


def inspect(
    student: Annotated[str, arg(metavar="STUDENT")],
    teacher: Annotated[str, arg(metavar="TEACHER")],
    data: Annotated[str, arg(metavar="DATA")],
    /,
    *,
    html: Annotated[Path, optional("FILE")] = Path("inspect.html"),
    json: Annotated[Path | None, optional("FILE")] = None,
    scores: Annotated[Path | None, optional("FOLDER")] = None,
    limit: Annotated[int, optional("N")] = 2000,
    format: Annotated[str, optional("NAME")] = "auto",
    subset: Annotated[str | None, optional("NAME")] = None,
    split: Annotated[str, optional("NAME")] = "train",
    max_length: Annotated[int | None, optional("N")] = None,
    max_prompt_length: Annotated[int | None, optional("N")] = None,
    truncation: Annotated[Literal["keep_start", "keep_end"], arg(help_behavior_hint="")] = "keep_end",
    student_template: Template = "auto",
    teacher_template: Template = "auto",
) -> None:
    """Show how two tokenizers align on preference pairs, before any model is loaded.

    For example:
        prefkd inspect models/SmolLM2-135M-Instruct models/gemma-3-270m pairs.jsonl
        prefkd inspect models/student models/teacher Anthropic/hh-rlhf --subset harmless-base --max-length 1024
        prefkd inspect models/student models/teacher pairs.jsonl --html report/pairs.html --json report/pairs.json
        prefkd inspect models/student models/teacher pairs.jsonl --scores runs/score/scores

    Args:
        student: Folder or Hub id of the student; only its tokenizer is read.
        teacher: Folder or Hub id of the teacher.
        data: File, folder or Hub data set of preference pairs, as in `data.source` of a config.
        html: Page to write, with the numbers and with pairs in tokens of both models; inspect.html by default.
        json: JSON file to write the numbers to.
        scores: Folder that recipe score wrote. The page then shows the scored pairs, coloured by weight.
        limit: Number of pairs to read, drawn at random; 2,000 by default.
        format: Format of the rows, as in `data.format` of a config; recognised by their columns by default.
        subset: Configuration of a Hub data set, or a folder in it.
        split: Split of a Hub data set or of a folder; train by default.
        max_length: Maximum tokens of a prompt and one answer; 512 by default, or that of the scores.
        max_prompt_length: Maximum tokens of a prompt whose pair is too long; half of --max-length by default, or that
            of the scores.
        truncation: Which end of such a prompt is kept; the end by default.
        student_template: The tokenizer's chat template, or plain role headings; the chat template, if it has one, by
            default.
        teacher_template: The teacher's chat template, or plain role headings, chosen in the same way.
    """
    if limit < 1:
        raise PrefkdError(f"--limit {limit} leaves nothing to look at; give 1 or more")
    with _without_collector(), Console(stderr=True).status("reading the tokenizers") as status:
        from datasets import disable_progress_bars

        from prefkd.data.pairs import DataConfig
        from prefkd.data.scores import open_scores
        from prefkd.models.tokenizers import side_without_model
        from prefkd.reports.alignment.report import inspect_pairs
        from prefkd.reports.alignment.terminal import print_inspection

        hush_libraries()
        disable_progress_bars()
        cache = None if scores is None else open_scores(scores)
        known: dict[str, Any] = dict(cache.fingerprint) if cache else {}
        if max_length is None:
            max_length = int(known.get("data.max_length", 512))
        if max_prompt_length is None:
            max_prompt_length = int(known.get("data.max_prompt_length", max(max_length // 2, 1)))
        config = DataConfig(
            source=data,
            format=format,
            subset=subset,
            split=split,
            held_out_fraction=0.0,
            on_bad_row="skip",
            max_length=max_length,
            max_prompt_length=max_prompt_length,
            reverse=known.get("data.reverse", False),
            truncation=truncation,
        )
        problems = list(config.problems())
        if problems:
            raise PrefkdError("\n".join(map(str, problems)))
        sides = side_without_model(student, student_template), side_without_model(teacher, teacher_template)
        status.update("aligning")
        found = inspect_pairs(config, *sides, most=limit, scores=cache)
    _write(html, found.page)
    if json is not None:
        _write(json, _as_json(found.numbers))
    print_inspection(found.numbers, found.verdict, console())
    say(f"\nwrote {html}" + (f" and {json}" if json is not None else ""))


@contextmanager
def _without_collector() -> Iterator[None]:
    """Vocabularies and modules are millions of objects that stay: to look through them takes a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _as_json(numbers: dict) -> str:
    return json.dumps(numbers, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
