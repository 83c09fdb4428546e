"""What the runner of the study is told."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

HERE = Path(__file__).resolve().parent
# Whatever the length of a seed, these come in this order: rows that answer the question first.
MAIN = ("dpo", "dpo_distill", "tis_teacher", "tis_student", "sft")

# Metrics of readings.py that are the better the higher they are.
Primary = Literal["reward accuracy", "log-prob accuracy", "per-token accuracy", "reward margin, nats"]


@dataclass
class Arguments:
    """What to run, on what, and for how long."""

    student: str
    """Folder or Hub id of the student."""
    teacher: str
    """Folder or Hub id of the teacher."""
    data: str
    """Preference pairs, as data.source of a config."""
    subset: str | None = None
    """data.subset of a config."""
    split: str = "train"
    """data.split of a config."""
    out: Path = Path("runs/study")
    """Folder of the runs."""
    rows: tuple[str, ...] = MAIN
    """Rows of rows.yaml, in the order in which they run."""
    rows_file: Path = HERE / "rows.yaml"
    """The trainings, by name."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds that shuffle the pairs."""
    rates: tuple[float, ...] = ()
    """Learning rates from which each row takes its best on the development pairs; that of rows.yaml if not given."""
    primary: Primary = "reward accuracy"
    """Metric by which a learning rate is best."""
    train_pairs: int = 56
    """Pairs that a student sees, and the teachers without `_many`."""
    teacher_pairs: int = 560
    """Pairs that the teachers named `_many` see, those of the student among them."""
    held_out_pairs: int = 160
    """Pairs that all rows are compared on."""
    development_pairs: int = 48
    """Pairs that learning rates are chosen on."""
    tokens: int = 224
    """Pairs for which a model would read more tokens are left out."""
    minutes: float = 60.0
    """When this time is over, the runs that are under way write a checkpoint and end."""
    parallel: int = 1
    """Rows that run at the same time, on the same device."""
    judge: str | None = None
    """Adapter of the student's base that judges answers: the DPO teacher of the study in the other direction."""
    answered: int = 64
    """Held-out prompts that are answered for the judge."""
    answer_tokens: int = 64
    """Maximum tokens of such an answer."""
    overrides: tuple[str, ...] = field(default=())
    """Settings of every training, key=value."""
