"""The pairs of a distillation: read, aligned between student and teacher, with what a teacher has scored before."""

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from datasets import Dataset

from prefkd.data.alignment_report import alignment_report
from prefkd.data.collate import count_targets
from prefkd.data.data_report import data_line, data_report
from prefkd.data.fingerprints import reading_fingerprint
from prefkd.data.pairs import DataConfig, load_pairs
from prefkd.data.sides import ModelSide
from prefkd.data.tokenizing import align_pairs
from prefkd.errors import PrefkdError
from prefkd.models.contrast import require_one_tokenizer
from prefkd.models.teacher import Teacher
from prefkd.ranks import Ranks


@dataclass(frozen=True)
class AlignedPairs:
    """Pairs as both models read them, see `prefkd.data.tokenizing`.

    Attributes:
        train, held_out: The two splits, with log-probs of the teacher where scores were given.
        report: The data report and the alignment report of the pairs to train on.
        omissions: Everything that reading left out of the data, in one line for the terminal.
    """

    train: Dataset
    held_out: Dataset
    report: dict[str, Any]
    omissions: str

    @property
    def description(self) -> dict[str, str]:
        """How many there are and how well they align, in two lines for the terminal."""
        return {
            "data": data_line(self.report, self.held_out, self.omissions),
            "alignment": f"{self.report['share_of_text_aligned_one_to_one']:.0%} of the text token to token",
        }

    def with_counts(self) -> "AlignedPairs":
        """The same, each pair with its number of target tokens; so a batch tells how much there is in its step."""
        return replace(self, train=count_targets(self.train), held_out=count_targets(self.held_out))


def load_aligned_pairs(data: DataConfig, *, student: ModelSide, teacher: Teacher, ranks: Ranks) -> AlignedPairs:
    """Read and align the pairs; the main rank first, so that the others find its work in the cache.

    Raises:
        PrefkdError: No pair is left, the teacher's scores are those of other pairs, tokenizers or templates, or pi+ and
            pi- do not read the teacher's tokens.
    """
    require_one_tokenizer(teacher.side, teacher.asks.pair)
    teacher.require(reading_fingerprint(data, student=student, teacher=teacher.side))
    align = partial(align_pairs, student=student, teacher=teacher.side, config=data, contrast=teacher.instructions)
    with ranks.main_first():
        pairs = load_pairs(data)
        left_out: Counter[str] = Counter()
        train, held_out = align(pairs.train, left_out=left_out), align(pairs.held_out)
        train, held_out = teacher.attach(train, "train"), teacher.attach(held_out, "held_out")
    if not len(train):
        raise PrefkdError("no pair is left after truncation; raise data.max_length")
    report = data_report(train, pairs, left_out, max_length=data.max_length)
    report |= alignment_report(train, pairs.train, left_out)
    return AlignedPairs(train, held_out, report, pairs.omissions)
