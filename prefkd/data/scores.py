"""A teacher's scores on disk: log-probs of parent tokens, computed once and used by many trainings.

A folder of scores holds

    fingerprint.json              what the scores depend on, see `prefkd.data.fingerprints`
    tokenizer/                    the teacher's tokenizer, so that training needs nothing else of the teacher
    train/shard-00000.parquet     the pairs to train on, `pairs_per_shard` in each shard; the same for held_out/

and a shard has the columns

    file, row                     where the pair comes from
    content                       a hash of the tokens and parents that were scored
    {answer}_reference            float32 log-prob of each parent of the answers chosen and rejected, EOS parent
                                  included, summed over its tokens, under the model that students are compared with
    {answer}_positive             the same under pi+ and pi-, if there is a contrast
    {answer}_negative

that is 12 bytes a parent; and what it was asked to keep of next-token distributions and hidden states
(`prefkd.data.kept_rows`). With hidden states there is also

    head.safetensors              the teacher's outer layers, which read them (`prefkd.models.kept_states`)

Weights are not in it: they follow from the scores by settings of the training.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers import PreTrainedTokenizerBase

from prefkd.data.arrow import column, numbers
from prefkd.data.fingerprints import Fingerprint, require_same, row_contents
from prefkd.data.kept_rows import TEMPERATURE, TOKENS
from prefkd.data.rows import INSTRUCTIONS, STATES, Contents, read_columns
from prefkd.errors import ConfigError, PrefkdError, Problem
from prefkd.files import read_object, whole

# Raise it when a folder of scores comes to look otherwise.
VERSION = 1

SPLITS = ("train", "held_out")
MOST_ROWS = 2**40  # of a file
FINGERPRINT, HEAD = "fingerprint.json", "head.safetensors"
# Rows of a Parquet row group with states, which are megabytes for each answer; readers take 2 GB at most.
STATES_AT_ONCE = 8
PLACE = {"file": Value("string"), "row": Value("int64"), "content": Value("int64")}


@dataclass(frozen=True)
class Shard:
    """A part of the scores, computed and written as one.

    Attributes:
        split: One of `SPLITS`.
        number: Its place among the shards of the split, from 0.
        rows: Its rows in the aligned data set.
    """

    split: str
    number: int
    rows: range

    def path(self, folder: Path) -> Path:
        """Its file in a folder of scores."""
        return folder / self.split / f"shard-{self.number:05}.parquet"


def plan_shards(parts: Fingerprint) -> list[Shard]:
    """All shards of the scores with this fingerprint."""
    size = cast(int, parts["pairs_per_shard"])
    return [
        Shard(split, number, range(start, min(start + size, count)))
        for split in SPLITS
        for count in [cast(int, parts[f"{split}.pairs"])]
        for number, start in enumerate(range(0, count, size))
    ]


def begin_scores(folder: Path, parts: Fingerprint, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Prepare a folder of scores, or make sure that the scores in it are those of these settings.

    Args:
        tokenizer: The teacher's, for a folder that is used without the teacher.

    Raises:
        ConfigError: They are not; a line for each part that differs.
    """
    if (folder / FINGERPRINT).exists():
        found = {"keep.models": None, "keep.states": False, **_read_fingerprint(folder)}
        prompted = [f"contrast.{name}" for name in ("kind", *(f"{name}_prompt" for name in INSTRUCTIONS))]
        if any(parts.get(name) != found.get(name) for name in prompted):
            # What pairs hold includes prompts under instructions, and so differs with the contrast.
            parts = {name: value for name, value in parts.items() if not name.endswith(".content")}
        require_same(parts, found, remedy="restore it, or name another output_dir")
        return
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder / "tokenizer")
    text = json.dumps({"version": VERSION, **parts}, indent=2, ensure_ascii=False) + "\n"
    with whole(folder / FINGERPRINT) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def is_finished(folder: Path, shard: Shard) -> bool:
    """Whether a shard is there and whole."""
    return _damage(shard.path(folder)) is None


def write_shard(folder: Path, shard: Shard, aligned: Dataset, scores: Mapping[int, Mapping[str, Any]]) -> None:
    """Write a shard. It gets its name when it is whole, so that a process may end at any moment.

    Args:
        aligned: The data set of the shard's split.
        scores: For each row of the shard `{answer}_reference` and so on, float32 (P,), and what is kept, as bytes.

    Raises:
        PrefkdError: A score is not a number.
    """
    rows = aligned.select(shard.rows)
    names = list(scores[shard.rows[0]])
    packed = {name for name in names if isinstance(scores[shard.rows[0]][name], bytes)}
    for (file, number), row in zip(_places(rows), shard.rows, strict=True):
        if not all(np.isfinite(values).all() for name, values in scores[row].items() if name not in packed):
            raise PrefkdError(f"row {number} of {file}: a log-prob is not a finite number; score with dtype: float32")
    columns = {"file": rows["file"][:], "row": rows["row"][:], "content": row_contents(rows)}
    columns |= {name: [scores[row][name] for row in shard.rows] for name in names}
    kinds = {name: Value("binary") if name in packed else List(Value("float32")) for name in names}
    schema = Features(PLACE | kinds).arrow_schema
    table = pa.table(columns, schema=schema)
    path = shard.path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    at_once = STATES_AT_ONCE if STATES in names else None
    with whole(path) as unfinished:
        pq.write_table(table, unfinished, compression="zstd", write_page_checksum=True, row_group_size=at_once)


def scores_problems(folder: Path, key: str = "") -> Iterator[Problem]:
    """What keeps a folder of scores from being used, as far as can be seen without reading the scores.

    Args:
        key: Where the config names it.
    """
    for text in _faults(folder):
        yield Problem(key, text, about="scores", paths=(folder,))


def _faults(folder: Path) -> Iterator[str]:
    if not (folder / FINGERPRINT).is_file():
        if (folder / "scores" / FINGERPRINT).is_file():
            yield f"{folder} has its scores in a folder of their own; name {folder / 'scores'}"
        elif folder.is_dir():
            yield f"{folder} holds no {FINGERPRINT}; name the folder `scores` that recipe score wrote"
        else:
            yield f"no folder {folder}; write it with recipe score"
        return
    try:
        parts = _read_fingerprint(folder)
        shards = plan_shards(parts)
    except PrefkdError as error:
        yield str(error)
        return
    missing = [shard.path(folder) for shard in shards if not shard.path(folder).is_file()]
    if missing:
        yield f"{len(missing)} of {len(shards)} shards are missing, {missing[0]} first; run score again, which resumes"
    elif parts.get("keep.states") and not (folder / HEAD).is_file():
        yield f"{folder / HEAD} is missing; run score again, which writes it"


def open_scores(folder: Path) -> "Scores":
    """Open a folder of scores.

    Raises:
        PrefkdError: It cannot be used.
    """
    for text in _faults(folder):
        raise PrefkdError(text)
    return Scores(folder, _read_fingerprint(folder))


@dataclass(frozen=True)
class Scores:
    """The scores in a folder.

    Attributes:
        fingerprint: Everything that they depend on.
    """

    folder: Path
    fingerprint: Fingerprint

    @property
    def tokenizer(self) -> Path:
        """Folder of the teacher's tokenizer."""
        return self.folder / "tokenizer"

    @property
    def template(self) -> Literal["chat", "plain"]:
        """The teacher's template."""
        return cast(Any, str(self.fingerprint["teacher.template"]).split()[0])

    @property
    def has_contrast(self) -> bool:
        """Whether pi+ and pi- were scored."""
        return self.fingerprint["contrast.kind"] != "none"

    @property
    def kept_models(self) -> tuple[str, ...]:
        """The models of whose distributions something was kept, of teacher, positive and negative."""
        return tuple(str(self.fingerprint["keep.models"]).split()) if self.fingerprint.get("keep.top_k") else ()

    @property
    def has_states(self) -> bool:
        """Whether hidden states of the teacher were kept, those of chosen answers."""
        return bool(self.fingerprint.get("keep.states"))

    @property
    def kept_temperature(self) -> float:
        """The temperature besides 1 at which the mass of other tokens is known, and that of the values."""
        return cast(float, self.fingerprint["keep.temperature"])

    @property
    def instructions(self) -> tuple[str, str] | None:
        """The positive and the negative instruction, if the contrast was made by such.

        Pairs have to be aligned with them again, since a prompt is cut so that the longer instruction fits.
        """
        if self.fingerprint["contrast.kind"] != "prompts":
            return None
        return cast(Any, tuple(self.fingerprint[f"contrast.{name}_prompt"] for name in INSTRUCTIONS))

    def require(self, reading: Fingerprint) -> None:
        """Make sure that pairs are read as they were for the scores.

        Args:
            reading: `prefkd.data.fingerprints.reading_fingerprint` of the training.

        Raises:
            ConfigError: A line for each part that differs.
        """
        require_same(reading, self.fingerprint, remedy="restore it, or score again")

    def splits(self) -> dict[tuple[str, int], str]:
        """File and row of each pair that was scored -> its split."""
        found = {split: self.read(split) for split in SPLITS}
        return {place: split for split, rows in found.items() if rows is not None for place in _places(rows)}

    def attach(self, aligned: Dataset, split: Literal["train", "held_out"], *, states: bool = False) -> Dataset:
        """Add the scores to rows of an aligned data set, which may be a part of those that were scored.

        Args:
            states: Whether hidden states are added too, if there are any; they are most of the bytes.

        Returns:
            The rows with the columns `{answer}_reference` and so on; without the prompts under instructions, which
            nobody reads any more.

        Raises:
            ConfigError: A row was not scored, or is not what it was then.
            PrefkdError: A shard is damaged.
        """
        contents = np.array(row_contents(aligned), dtype=np.int64)
        _, *instructed = read_columns("teacher", instructed=Contents.of(aligned).instructed)[0]
        aligned = aligned.remove_columns(instructed)
        if not len(aligned):
            return aligned
        scored, codes = self.read(split, states=states), dict[str, int]()
        known = np.empty(0, dtype=np.int64) if scored is None else _place_numbers(scored, codes)
        wanted, order = _place_numbers(aligned, codes), np.argsort(known, kind="stable")
        found = np.append(order, -1)[np.searchsorted(known, wanted, sorter=order)]  # -1 where it would come last
        missing = np.append(known, -1)[found] != wanted
        changed = ~missing & (contents != np.append(numbers(scored, "content") if scored else [], 0)[found])
        pairs, lines = f"of {len(aligned)} {split} pairs", []
        if missing.any():
            what = f"{pairs} are not among the {len(known)} that were scored"
            lines.append(_data_problem(aligned, missing, what))
        if changed.any():
            lines.append(_data_problem(aligned, changed, f"{pairs} are not what they were when they were scored"))
        if lines or scored is None:
            raise ConfigError(lines)
        columns = scored.select(found).remove_columns(list(PLACE))
        if self.kept_models:
            same = {TEMPERATURE: self.fingerprint["keep.temperature"], TOKENS: self.fingerprint["keep.tokens"]}
            for name, value in same.items():
                columns = columns.add_column(name, [value] * len(columns))  # pyright: ignore[reportArgumentType]
        return concatenate_datasets([aligned, columns], axis=1)

    def read(self, split: str, *, states: bool = False) -> Dataset | None:
        """All rows of a split, memory-mapped; None if there are none.

        Args:
            states: Whether hidden states are read too.

        Raises:
            PrefkdError: A shard is damaged.
        """
        paths = [shard.path(self.folder) for shard in plan_shards(self.fingerprint) if shard.split == split]
        for path in paths:
            damage = _damage(path)
            if damage is not None:
                raise PrefkdError(f"{path} {damage}; run score again, which computes this shard again")
        if not paths:
            return None
        were_disabled = are_progress_bars_disabled()
        disable_progress_bars()  # it is done in no time, and says nothing to a user
        try:
            names = [name for name in pq.read_schema(paths[0]).names if states or name != STATES]
            return cast(Dataset, Dataset.from_parquet([str(path) for path in paths], columns=names))
        finally:
            if not were_disabled:
                enable_progress_bars()


def _damage(path: Path) -> str | None:
    """What is wrong with a shard, None if it is whole. All of it is read, since bits rot anywhere."""
    if not path.is_file():
        return "is missing"
    try:
        pq.read_table(path, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        return f"is damaged ({' '.join(str(error).split())})"
    return None


def _read_fingerprint(folder: Path) -> Fingerprint:
    path = folder / FINGERPRINT
    damaged = PrefkdError(f"{path} is damaged; remove {folder} and score again")
    parts = read_object(path, "version")
    if parts is None:
        raise damaged
    if parts.pop("version") != VERSION:
        raise PrefkdError(f"{path} was written by another version of prefkd; score again into another folder")
    counts = [parts.get(name) for name in ("pairs_per_shard", *(f"{split}.pairs" for split in SPLITS))]
    if not all(type(count) is int and count >= least for count, least in zip(counts, (1, 0, 0), strict=True)):
        raise damaged
    return parts


def _data_problem(aligned: Dataset, places: np.ndarray, what: str) -> str:
    first: Any = aligned[int(places.argmax())]
    count = int(places.sum())
    return f"data: {count} {what}, row {first['row']} of {first['file']} first; restore the data, or score again"


def _place_numbers(rows: Dataset, codes: dict[str, int]) -> np.ndarray:
    """(n,) a number for the file and the row of each pair.

    Args:
        codes: Number of each file, to which new ones are added.
    """
    files: Any = column(rows, "file").combine_chunks().dictionary_encode()
    own = np.array([codes.setdefault(name, len(codes)) for name in files.dictionary.to_pylist()], dtype=np.int64)
    return own[files.indices.to_numpy()] * MOST_ROWS + numbers(rows, "row")


def _places(rows: Dataset) -> Iterator[tuple[str, int]]:
    return zip(rows["file"][:], rows["row"][:], strict=True)
