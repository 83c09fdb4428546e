"""Pairs as token ids: the names of their columns, which no other module spells, and a row with a type.

The rows lie in Arrow files, flat, so that a data set can be larger than the memory. A model that reads alone has the
columns

    prompt, chosen, rejected                     token ids, those of the answers with their end unless it was cut off
    {part}_cut                                   tokens of prompt, chosen and rejected that truncation took away

and a student and a teacher, aligned by parent tokens, have

    {side}_prompt, {side}_{answer}               token ids, of the answers complete parents only
    {side}_{answer}_parents                      the parent of each of these tokens, 0 .. P-1
    {side}_{part}_cut                            as above
    {answer}_parents, {answer}_ends              `AlignedAnswer`
    {answer}_characters, {answer}_single
    positive_prompt, negative_prompt             with a contrast: the teacher's prompts under the two instructions

Before them stand `file` and `row`, where the pair comes from, and `source`, `weight` and `margin` where the pairs have
them (`prefkd.data.pairs`). Later come, of a training, `{side}_{answer}_targets`, and of scores, `{answer}_{model}` and
what is kept of distributions (`prefkd.data.scores`, `prefkd.data.kept_rows`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from datasets import Dataset, Features, List, Value

from prefkd.data.arrow import list_lengths, numbers
from prefkd.data.pairs import KNOWN

SIDES = ("student", "teacher")
ALONE = ""  # the side of a model that reads without another
ANSWERS = ("chosen", "rejected")
PARTS = ("prompt", *ANSWERS)
INSTRUCTIONS = ("positive", "negative")
# The models whose log-probs scores hold, and those of whose next-token distributions they keep something.
SCORED: tuple[Literal["reference", "positive", "negative"], ...] = ("reference", "positive", "negative")
KEPT: tuple[Literal["teacher", "positive", "negative"], ...] = ("teacher", "positive", "negative")
# The column of the teacher's hidden states, which are kept of chosen answers alone.
STATES = "chosen_teacher_states"
# Columns of a pair that its tokens take along.
WORTH = Features({name: KNOWN[name] for name in ("source", "weight", "margin")})


def token_column(side: str, part: str) -> str:
    """Token ids of the prompt or of an answer. The sides `positive` and `negative` are prompts under instructions."""
    return f"{side}_{part}" if side else part


def parent_column(side: str, answer: str) -> str:
    """The parent of each token of an answer."""
    return f"{side}_{answer}_parents"


def cut_column(side: str, part: str) -> str:
    """How many tokens truncation took away."""
    return f"{token_column(side, part)}_cut"


def target_column(answer: str) -> str:
    """How many target tokens the student has in an answer."""
    return f"student_{answer}_targets"


def answer_column(answer: str, name: str) -> str:
    """A field of `AlignedAnswer`."""
    return f"{answer}_{name}"


def score_column(answer: str, model: str) -> str:
    """The log-prob of each parent under one of `SCORED`."""
    return f"{answer}_{model}"


def kept_column(answer: str, model: str, name: str) -> str:
    """What is kept of the distributions of one of `KEPT`, see `prefkd.data.kept_rows`."""
    return f"{answer}_{model}_{name}"


def read_columns(side: str, *, instructed: bool) -> tuple[list[str], list[str]]:
    """The columns of token ids that a model reads: its prompts, and its answers."""
    prompted = (side, *INSTRUCTIONS) if instructed and side == "teacher" else (side,)
    return [token_column(name, "prompt") for name in prompted], [token_column(side, answer) for answer in ANSWERS]


def row_name(row: Mapping[str, Any]) -> str:
    """`file:row`, which names a pair in messages and records."""
    return f"{row['file']}:{row['row']}"


@dataclass(frozen=True)
class Reading:
    """A pair as one model reads it.

    Attributes:
        prompt: Token ids.
        answers: Token ids of the chosen and of the rejected answer.
        parents: The parent of each of these tokens. Where a model reads alone, each token is its own.
        cut: How many tokens of prompt, chosen and rejected answer truncation took away.
    """

    prompt: list[int]
    answers: tuple[list[int], list[int]]
    parents: tuple[Sequence[int], Sequence[int]]
    cut: tuple[int, int, int] = (0, 0, 0)

    @classmethod
    def of(cls, row: Mapping[str, Any], side: str = ALONE) -> "Reading":
        """What a row says of a side."""
        prompt, chosen, rejected = (row[token_column(side, part)] for part in PARTS)
        parents: Any = range(len(chosen)), range(len(rejected))
        if side:
            parents = tuple(row[parent_column(side, answer)] for answer in ANSWERS)
        cut: Any = tuple(row[cut_column(side, part)] for part in PARTS)
        return cls(prompt, (chosen, rejected), parents, cut)

    def columns(self, side: str = ALONE) -> dict[str, Any]:
        """The same as columns of a row."""
        found: dict[str, Any] = {}
        for part, ids, cut in zip(PARTS, (self.prompt, *self.answers), self.cut, strict=True):
            found |= {token_column(side, part): ids, cut_column(side, part): cut}
        if side:
            found |= {parent_column(side, answer): list(own) for answer, own in zip(ANSWERS, self.parents, strict=True)}
        return found


@dataclass(frozen=True)
class AlignedAnswer:
    """An answer, whichever model reads it.

    Attributes:
        parents: P, how many parents it has; the end, mostly an EOS, is the last one.
        ends: Whether it has its end.
        characters: Characters that are left.
        single: Characters in parents of one token on each side.
    """

    parents: int
    ends: bool
    characters: int
    single: int


# In the place of a rejected answer where the chosen one has no rival; it has no tokens either.
NO_ANSWER = AlignedAnswer(parents=0, ends=False, characters=0, single=0)


@dataclass(frozen=True)
class AlignedRow:
    """A pair as student and teacher read it.

    Attributes:
        student, teacher: Each of them.
        answers: The chosen and the rejected answer, which is `NO_ANSWER` where there is none.
        instructed: With a contrast, the teacher's prompt under the instructions `positive` and `negative`.
    """

    student: Reading
    teacher: Reading
    answers: tuple[AlignedAnswer, AlignedAnswer]
    instructed: Mapping[str, list[int]]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "AlignedRow":
        """A row of an aligned data set."""
        names = [field.name for field in fields(AlignedAnswer)]
        chosen, rejected = (
            AlignedAnswer(**{name: row[answer_column(answer, name)] for name in names}) for answer in ANSWERS
        )
        prompts = {name: row.get(token_column(name, "prompt")) for name in INSTRUCTIONS}
        instructed = {name: ids for name, ids in prompts.items() if ids is not None}
        return cls(Reading.of(row, "student"), Reading.of(row, "teacher"), (chosen, rejected), instructed)

    def columns(self) -> dict[str, Any]:
        """The same as columns of a row."""
        found = self.student.columns("student") | self.teacher.columns("teacher")
        for answer, aligned in zip(ANSWERS, self.answers, strict=True):
            found |= {answer_column(answer, name): value for name, value in vars(aligned).items()}
        return found | {token_column(name, "prompt"): ids for name, ids in self.instructed.items()}

    @property
    def sides(self) -> dict[str, Reading]:
        """Both readings by the name of their side."""
        return {"student": self.student, "teacher": self.teacher}

    def under(self, instruction: str) -> Reading:
        """The pair as the teacher reads it under an instruction."""
        return replace(self.teacher, prompt=self.instructed[instruction])


@dataclass(frozen=True)
class Contents:
    """What a data set of tokens has. No other module asks whether a column is there.

    Attributes:
        sides: The models that read its pairs: `ALONE`, or `student` and `teacher`.
        instructed: Whether the teacher reads the prompts under two instructions too.
        scores: The models of `SCORED` whose log-probs it has.
        kept: The models of `KEPT` of whose distributions it has something.
        states: Whether it has hidden states of the teacher.
        targets: Whether the student's targets are counted.
        worth: The columns of `WORTH` that it has.
    """

    sides: tuple[str, ...]
    instructed: bool
    scores: tuple[str, ...]
    kept: tuple[str, ...]
    states: bool
    targets: bool
    worth: tuple[str, ...]

    @classmethod
    def of(cls, rows: Dataset) -> "Contents":
        """What its columns tell."""
        chosen, names = ANSWERS[0], set(rows.column_names)
        return cls(
            sides=tuple(side for side in (ALONE, *SIDES) if token_column(side, "prompt") in names),
            instructed=token_column(INSTRUCTIONS[0], "prompt") in names,
            scores=tuple(model for model in SCORED if score_column(chosen, model) in names),
            kept=tuple(model for model in KEPT if kept_column(chosen, model, "top") in names),
            states=STATES in names,
            targets=target_column(chosen) in names,
            worth=tuple(name for name in WORTH if name in names),
        )

    @property
    def learner(self) -> str:
        """The side of the model that is trained."""
        return self.sides[0]


def count_scored(aligned: Dataset) -> tuple[int, int, int]:
    """How many parents and how many tokens of the teacher there are in all answers, and how many in the chosen ones."""
    parents = sum(int(numbers(aligned, answer_column(answer, "parents")).sum()) for answer in ANSWERS)
    _, answers = read_columns("teacher", instructed=False)
    chosen, rejected = (int(lengths.sum()) for lengths in list_lengths(aligned, answers).values())
    return parents, chosen + rejected, chosen


def token_features() -> Features:
    """The columns of pairs that one model reads."""
    return Features(_PLACE | _reading_features(ALONE))


def aligned_features(*, with_contrast: bool) -> Features:
    """The columns of an aligned data set."""
    columns: dict[str, Any] = dict(_PLACE)
    for side in SIDES:
        columns |= _reading_features(side)
        columns |= {parent_column(side, answer): _IDS for answer in ANSWERS}
    for answer in ANSWERS:
        columns |= {answer_column(answer, name): _COUNT for name in ("parents", "characters", "single")}
        columns |= {answer_column(answer, "ends"): Value("bool")}
    if with_contrast:
        columns |= {token_column(name, "prompt"): _IDS for name in INSTRUCTIONS}
    return Features(columns)


_IDS, _COUNT = List(Value("int32")), Value("int32")
_PLACE: dict[str, Any] = {"file": Value("string"), "row": Value("int64")}


def _reading_features(side: str) -> dict[str, Any]:
    return {token_column(side, part): _IDS for part in PARTS} | {cut_column(side, part): _COUNT for part in PARTS}
