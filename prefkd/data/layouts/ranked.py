"""Layouts with several answers that have a rank or a score. Each docstring gives the published columns."""

from typing import Any

from prefkd.data.fields import has_content
from prefkd.data.layouts.candidates import Candidates, Row, asked, number, preferred, structure, take, text
from prefkd.data.messages import kind
from prefkd.data.transcripts import read_transcript_prompt
from prefkd.errors import DataError


def nectar(row: Row) -> Candidates:
    """berkeley-nest/Nectar: prompt (a transcript of Human and Assistant), answers [{answer, model, rank}] (rank 1 is
    the best), turns, num_responses, source, good_natured."""
    answers = [(text(one, "answer"), -number(one, "rank")) for one in _objects(row, "answers")]
    prompt = read_transcript_prompt(text(row, "prompt"), "prompt")
    return Candidates(take(row, "answers") | {"prompt": prompt}, answers)


def ultrafeedback_completions(row: Row) -> Candidates:
    """openbmb/UltraFeedback: instruction, completions [{response, overall_score, fine-grained_score, model, critique,
    annotations, custom_system_prompt, principle}], models, source, correct_answers, incorrect_answers."""
    answers = [(text(one, "response"), number(one, "overall_score")) for one in _objects(row, "completions")]
    rest = take(row, "instruction", "completions", "correct_answers", "incorrect_answers")
    return Candidates(rest | {"prompt": asked(text(row, "instruction"))}, answers)


def stack_exchange(row: Row) -> Candidates:
    """HuggingFaceH4/stack-exchange-preferences: qid, question, answers [{text, pm_score, answer_id, author, author_id,
    author_profile, selected}], date, metadata."""
    answers = [(text(one, "text"), number(one, "pm_score")) for one in _objects(row, "answers")]
    return Candidates(take(row, "question", "answers") | {"prompt": asked(text(row, "question"))}, answers)


def distilabel(row: Row) -> Candidates:
    """The UltraFeedback task of distilabel: instruction (or prompt, or input), generations [text], ratings [number],
    rationales, generation_models."""
    texts, ratings = structure(row["generations"]), structure(row["ratings"])
    if not isinstance(texts, list) or not isinstance(ratings, list) or len(texts) != len(ratings) or len(texts) < 2:
        raise DataError("fields 'generations' and 'ratings' are not two lists of the same length, of two or more")
    answers = [
        (text({"generations": one}, "generations"), number({"ratings": worth}, "ratings"))
        for one, worth in zip(texts, ratings, strict=True)
    ]
    names = ("prompt", "instruction", "input")
    name = next((name for name in names if has_content(row.get(name))), "instruction")
    prompt = row[name] if isinstance(row.get(name), list) else text(row, name)
    return Candidates(take(row, name, "generations", "ratings", "rationales") | {"prompt": asked(prompt)}, answers)


def answer_lists(row: Row) -> Candidates:
    """allenai/reward-bench-2: id, prompt, chosen [text], rejected [text], num_correct, num_incorrect,
    total_completions, models, subset, additional_metadata; THU-KEG/RM-Bench: id, prompt, chosen [text], rejected
    [text], domain."""
    rest = take(row, "chosen", "rejected", "total_completions")
    return preferred(rest | {"prompt": asked(row["prompt"])}, row["chosen"], row["rejected"])


def nemo_rl(row: Row) -> Candidates:
    """NeMo-RL's preference rows: context [messages] (or text), completions [{rank, completion [messages]}] (rank 0 is
    the best), task_name."""
    answers = [(one.get("completion"), -number(one, "rank")) for one in _objects(row, "completions")]
    return Candidates(take(row, "context", "completions") | {"prompt": asked(row["context"])}, answers)


def _objects(row: Row, name: str) -> list[dict[str, Any]]:
    value = structure(row[name])
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise DataError(f"field '{name}' is {kind(value)}: expected a list of answers")
    if len(value) < 2:
        raise DataError(f"field '{name}' has {len(value)} answers: expected two or more")
    return value
