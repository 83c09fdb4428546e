"""Who says how good a candidate is: one function for each kind of ranker, candidates -> scores, higher is better.

What was scored is kept in <folder>/<ranker>.jsonl, so that a killed run resumes and a second pairing asks nobody.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

import torch
from datasets import Dataset, Features

from prefkd.candidates.reading import Question
from prefkd.config.components import Component, bind
from prefkd.config.hints import MOST_TOKENS, size_problems
from prefkd.data.collate import collate_pairs
from prefkd.data.fingerprints import Fingerprint, folder_fingerprint
from prefkd.data.messages import pack_calls
from prefkd.data.pairs import COLUMNS, KNOWN, DataConfig
from prefkd.data.rows import AlignedRow, row_name
from prefkd.data.sides import ModelSide
from prefkd.data.steps import Microbatch, pair_lengths, split_step
from prefkd.data.tokenizing import align_pairs
from prefkd.errors import PrefkdError, first_line
from prefkd.evaluation.checkpoints import in_rounds, on_all
from prefkd.evaluation.judge import Comparison, JudgeConfig, Judgement, judge
from prefkd.evaluation.records import Records
from prefkd.evaluation.reward_model import RewardModel, RewardModelConfig
from prefkd.files import fingerprint
from prefkd.models.contrast import ContrastConfig, fewest_embeddings, model_fingerprint, require_one_tokenizer
from prefkd.models.load import TeacherConfig, load_tokenizer
from prefkd.models.questions import Asks
from prefkd.models.teacher import Teacher
from prefkd.ranks import Ranks
from prefkd.training.display import Display

logger = logging.getLogger(__name__)

# Key of a question and number of a candidate -> score.
Scores = dict[tuple[str, int], float]


@dataclass
class ContrastRankerConfig:
    """A teacher that ranks by what pi+ and pi- think of an answer.

    Attributes:
        teacher: The teacher, in memory or behind a server.
        contrast: pi+ and pi-, as in recipe score.
        per: Its score is the `sum` of log pi+ - log pi- over the answer, or this sum per `character`, so that length
            does not decide.
        max_length: Maximum tokens of a prompt and an answer together.
        max_prompt_length: Maximum tokens of a prompt that is longer; its end is kept.
        microbatch_size: Answers of one forward pass.
        chunk_size: Target tokens whose logits exist at one time; null = as many as the device has room for.
    """

    teacher: TeacherConfig
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    per: Literal["sum", "character"] = "sum"
    max_length: int = 1024
    max_prompt_length: int = 512
    microbatch_size: int = 8
    chunk_size: int | None = None

    def problems(self) -> Iterator[str]:
        yield from size_problems(self, "microbatch_size", "chunk_size")
        yield from size_problems(self, "max_length", "max_prompt_length", most=MOST_TOKENS)
        if self.max_length <= self.max_prompt_length:
            yield f"max_length: {self.max_length} leaves no room for an answer; raise it or lower max_prompt_length"
        if self.contrast.kind == "none":
            yield "contrast.kind: none leaves nothing to rank by; use prompts or models"


def rank_by_contrast(
    questions: Sequence[Question],
    config: ContrastRankerConfig,
    path: Path,
    ranks: Ranks,
    display: Display,
    read_in_part: Counter[str],
) -> Scores:
    """s(y) = sum over the parents P of y of log pi+(P) - log pi-(P), or this per character.

    It is the sum of the log-ratios that TIS-DPO makes token weights of (arXiv 2410.04350), here for whole answers: the
    implicit reward of the pair of teachers. An answer that was cut has no end, and so no score for it.

    Args:
        read_in_part: Gets the number of candidates that were truncated, under `contrast`.

    Returns:
        A candidate has no score if truncation leaves nothing of it, or a template refuses it.

    Raises:
        PrefkdError: A model cannot be loaded, or its server does not answer.
    """
    asks = Asks(instructions=config.contrast.instructions, pair=config.contrast.models)
    teacher = Teacher(config.teacher, asks)
    embeddings = fewest_embeddings((config.teacher, *config.contrast.models.values()))
    side = ModelSide(load_tokenizer(config.teacher), config.teacher.template, embeddings=embeddings)
    require_one_tokenizer(side, config.contrast.models)
    parts: Fingerprint = model_fingerprint("teacher", config.teacher) | config.contrast.fingerprint()
    parts |= {"side": side.fingerprint, "max_length": config.max_length, "prompt": config.max_prompt_length}
    records = Records(path, parts | {"candidates": _fingerprint(questions)}, ranks)
    if not records.finished:
        _read(_aligned(questions, side, config), teacher, config, records, ranks, display)
        records.finish()
    found = {key: records.rows[_name(key)] for key, _ in _texts(questions) if _name(key) in records.rows}
    read_in_part["contrast"] += sum(row["truncated"] for row in found.values())
    # What was read alone counts: the sum of an answer that was truncated is that of its beginning.
    return {key: row["sum"] / (row["characters"] if config.per == "character" else 1) for key, row in found.items()}


def rank_by_reward_model(
    questions: Sequence[Question],
    config: RewardModelConfig,
    path: Path,
    ranks: Ranks,
    display: Display,
    read_in_part: Counter[str],
) -> Scores:
    """s(y) = what a reward model gives prompt and answer, `prefkd.evaluation.reward_model`.

    Args:
        read_in_part: Gets the number of conversations that were truncated, under `reward_model`.

    Raises:
        PrefkdError: The model cannot be loaded.
    """
    parts: Fingerprint = {f"reward_model.{name}": value for name, value in vars(config).items()}
    if Path(config.path).is_dir():
        parts["reward_model.model"] = folder_fingerprint(Path(config.path))
    records = Records(path, parts | {"candidates": _fingerprint(questions)}, ranks)
    messages = {question.key: question.messages for question in questions}
    left = [(key, text) for key, text in _texts(questions) if _name(key) not in records.rows]
    left.sort(key=lambda one: len(one[1]), reverse=True)
    if left:
        loaded: list[RewardModel] = []
        on_all(ranks, lambda: loaded.append(RewardModel(config, ranks.device)))

        def score(batch: Sequence[tuple[tuple[str, int], str]]) -> list[dict[str, Any]]:
            conversations = [(messages[key[0]], text) for key, text in batch]
            rewards, truncated = loaded[0].score(conversations), loaded[0].truncated(conversations)
            if not all(map(math.isfinite, rewards)):
                raise PrefkdError(f"{config.path}: a reward is not a finite number; use dtype: float32")
            return [
                {"key": _name(key), "reward": reward, "truncated": is_part}
                for (key, _), reward, is_part in zip(batch, rewards, truncated, strict=True)
            ]

        size = config.batch_size
        with display.progress(len(left)) as bar:
            for found in in_rounds(ranks, [left[i : i + size] for i in range(0, len(left), size)], score):
                records.add(found)
                bar.advance("reward model", steps=len(found))
    records.finish()
    rows = {key: records.rows[_name(key)] for key, _ in _texts(questions)}
    read_in_part["reward_model"] += sum(row["truncated"] for row in rows.values())
    return {key: row["reward"] for key, row in rows.items()}


def rank_by_judge(questions: Sequence[Question], config: JudgeConfig, path: Path, ranks: Ranks) -> Scores:
    """s(y) = the share of the other candidates that y beats before a judge, each pair asked in both orders.

    A verdict counts only if it outlasts the swap (`prefkd.evaluation.judge`); else both get a half. With N candidates a
    prompt costs N (N - 1) requests.

    Returns:
        A candidate has no score if none of its comparisons was decided.

    Raises:
        PrefkdError: The endpoint refuses, or does not answer any more.
    """
    names = [
        (question, one, other)
        for question in questions
        for one, other in combinations(range(len(question.candidates)), 2)
    ]
    comparisons = [
        Comparison(
            f"{question.key}:{one}-{other}",
            question.messages,
            question.candidates[one].answer,
            question.candidates[other].answer,
        )
        for question, one, other in names
    ]
    records = Records(path, config.fingerprint(), Ranks(0, 1, ranks.device))
    judged = judge(comparisons, config, records) if ranks.is_main else Judgement({}, Counter())
    lacking = {name: judged.counts[name] for name in ("unreadable", "unanswered", "not asked") if judged.counts[name]}
    if lacking:
        told = ", ".join(f"{count} {name}" for name, count in lacking.items())
        logger.warning("judge: no verdict for some of %d comparisons: %s", len(comparisons), told)
    wins = ranks.gather(judged.wins)[0]
    found: dict[tuple[str, int], list[float]] = {}
    for (question, one, other), comparison in zip(names, comparisons, strict=True):
        if comparison.key in wins:
            found.setdefault((question.key, one), []).append(wins[comparison.key])
            found.setdefault((question.key, other), []).append(1 - wins[comparison.key])
    return {key: sum(values) / len(values) for key, values in found.items()}


def rank_by_function(questions: Sequence[Question], scorer: Component) -> Scores:
    """s(y) = what a function of `answer` and `references` returns: `prefkd.evaluation.scorers`, or the user's own.

    That is how verifiable answers are ranked: the result of a sum, or whether the tests of a programme pass.

    Raises:
        PrefkdError: The function fails, or returns something that is not a finite number.
    """
    function, name = bind(scorer), scorer["_component_"]
    references = {question.key: question.references for question in questions}
    asked = {question.key: f"“{shorten(question.messages[-1]['content'], 60)}”" for question in questions}
    found: Scores = {}
    for key, text in _texts(questions):
        compared = references[key[0]]
        try:
            score = found[key] = float(function(answer=text, references=compared))
        except (Exception, SystemExit) as error:  # whatever a function of the user's own raises
            why = first_line(error) + ("" if compared else "; the prompt has no references")
            raise PrefkdError(f"{name} fails for an answer to {asked[key[0]]}: {why}") from error
        if not math.isfinite(score):
            raise PrefkdError(f"{name} returns {score} for an answer to {asked[key[0]]}; return a finite number")
    return found


def agreement(scores: Mapping[str, Scores]) -> Scores:
    """The mean of several rankers' scores, each in units of its own standard deviation over all candidates.

    Whether they agree on a pair is for `prefkd.candidates.pairing` to ask. A candidate that one of them has not scored
    has no score.
    """
    common = set.intersection(*(set(one) for one in scores.values()))
    found = dict.fromkeys(sorted(common), 0.0)
    for one in scores.values():
        values = torch.tensor([one[key] for key in found], dtype=torch.float64)
        spread = values.std(correction=0).clamp(min=1e-12)
        for key, value in zip(found, ((values - values.mean()) / spread).tolist(), strict=True):
            found[key] += value / len(scores)
    return found


def _texts(questions: Sequence[Question]) -> Iterator[tuple[tuple[str, int], str]]:
    for question in questions:
        for number, candidate in enumerate(question.candidates):
            yield (question.key, number), candidate.answer


def _name(key: tuple[str, int]) -> str:
    return f"{key[0]}:{key[1]}"


def _fingerprint(questions: Sequence[Question]) -> str:
    answers = [(one.messages, [(own.answer, own.is_cut) for own in one.candidates]) for one in questions]
    return fingerprint("candidates", answers)


def _aligned(questions: Sequence[Question], side: ModelSide, config: ContrastRankerConfig) -> Dataset:
    """Each candidate by itself, so that none costs another its score; its file and row are the parts of its name."""
    features = Features({**COLUMNS, **{name: KNOWN[name] for name in ("chosen_is_cut", "calls")}})
    rows: list[dict[str, Any]] = []
    for question in questions:
        texts = [{"role": turn["role"], "content": turn["content"]} for turn in question.messages]
        asked = {"prompt": texts, "calls": pack_calls(question.messages, {}, None), "file": question.key}
        rows += [
            {**asked, "row": number, "chosen": one.answer, "rejected": "", "chosen_is_cut": one.is_cut}
            for number, one in enumerate(question.candidates)
        ]
    data = DataConfig(
        "candidates",
        on_bad_row="skip",
        max_length=config.max_length,
        max_prompt_length=config.max_prompt_length,
    )
    answers = Dataset.from_list(rows, features=features)
    aligned = align_pairs(answers, side, side, config=data, contrast=config.contrast.instructions)
    if not len(aligned):
        raise PrefkdError("no candidate is left to be ranked; sample more answers, or longer ones")
    return aligned


def _read(
    aligned: Dataset,
    teacher: Teacher,
    config: ContrastRankerConfig,
    records: Records,
    ranks: Ranks,
    display: Display,
) -> None:
    share = config.teacher.share_prompt
    collate = partial(collate_pairs, aligned, share_prompt=(share, share))
    lengths = pair_lengths(aligned)
    longest_first = sorted(range(len(aligned)), key=lengths.__getitem__, reverse=True)
    places: Any = aligned.select_columns(["file", "row"])
    keys = [row_name(place) for place in places]
    left = [row for row in longest_first if keys[row] not in records.rows]
    if not left:
        return
    probe = collate(Microbatch([0])).to(ranks.device).teacher
    teacher.load(probe, chunk_size=config.chunk_size, ranks=ranks)
    planned = split_step(left, config.microbatch_size, ranks.rank, ranks.world_size)
    began, done = time.perf_counter(), 0
    with display.progress(len(left)) as bar:
        for microbatch in planned:
            found = teacher.logprobs(collate(microbatch).to(ranks.device))
            sums = (found["positive"] - found["negative"])[0].sum(-1).tolist()  # (B,); there are no rivals
            counted = len(microbatch.rows) - microbatch.fillers
            own = [
                {"key": keys[row], "sum": value, **_extent(aligned[row])}
                for row, value in zip(microbatch.rows[:counted], sums[:counted], strict=True)
            ]
            rows = [row for part in ranks.gather(own) for row in part]
            if not all(math.isfinite(row["sum"]) for row in rows):
                raise PrefkdError(
                    f"{config.teacher.label}: a log-prob is not a finite number; rank with dtype: float32"
                )
            records.add(rows)
            done += len(rows)
            speed = done / (time.perf_counter() - began)
            bar.advance(f"contrast, {speed:.1f} answers/s", steps=len(rows))


def _extent(row: Mapping[str, Any]) -> dict[str, Any]:
    """How many characters of an answer the teacher reads, and whether it or its prompt is truncated."""
    aligned = AlignedRow.of(row)
    return {"characters": aligned.answers[0].characters, "truncated": any(aligned.teacher.cut)}
