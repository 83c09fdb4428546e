"""What scores depend on, by name, so that a difference can be named."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import cast

import pyarrow as pa
from datasets import Dataset

from prefkd.data.pairs import DataConfig
from prefkd.data.rows import ANSWERS, Contents, parent_column, read_columns, token_column
from prefkd.data.sides import ModelSide
from prefkd.errors import ConfigError
from prefkd.files import fingerprint, sha256

# A name, which is that of a setting where there is one -> its value, or a hash of what it stands for.
Fingerprint = dict[str, str | float | int | bool | None]
HASHED = (".tokenizer", ".template", ".model", ".adapter", ".content", ".probe")
# Bytes that are read of each tensor.
SAMPLED = 4096
# Mean difference in nats a token of two readings of a probe by the same model. Rounding to bfloat16 makes it 0.02.
SAME_MODEL = 0.1


def own_columns(pairs: Dataset) -> list[str]:
    """The columns that hold what the model that is trained reads."""
    return _read_columns(pairs, Contents.of(pairs).learner)


def reading_fingerprint(data: DataConfig, student: ModelSide, teacher: ModelSide) -> Fingerprint:
    """How pairs become parent tokens, which training has to do as scoring did."""
    sides = {"student": student, "teacher": teacher}
    return {
        "data.max_length": data.max_length,
        "data.max_prompt_length": data.max_prompt_length,
        "data.truncation": data.truncation,
        "data.reverse": data.reverse,
        **{f"{name}.tokenizer": _tokenizer_fingerprint(side) for name, side in sides.items()},
        **{f"{name}.template": _template_fingerprint(side) for name, side in sides.items()},
    }


def folder_fingerprint(folder: Path) -> str:
    """Names a model or an adapter in a folder by the content of its files, wherever it lies."""
    digests = {}
    for pattern in ("config.json", "adapter_config.json", "*.safetensors"):
        for file in sorted(folder.glob(pattern)):
            digests[file.name] = sha256(file)
    return fingerprint("folder", digests)


def sampled_fingerprint(folder: Path) -> str:
    """The same as `folder_fingerprint`, but of each tensor a part is read: seconds for weights that take minutes.

    Any training moves its tensors all over, so that it tells two models apart as well.
    """
    samples = hashlib.sha256()
    for pattern in ("config.json", "adapter_config.json"):
        for file in folder.glob(pattern):
            samples.update(file.read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as content:
            head = content.read(int.from_bytes(content.read(8), "little"))
            start = content.tell()
            samples.update(head)
            for tensor in json.loads(head).values():
                if "data_offsets" in tensor:  # or it is the metadata
                    begin, end = tensor["data_offsets"]
                    content.seek(start + begin)
                    samples.update(content.read(min(end - begin, SAMPLED)))
    return samples.hexdigest()[:32]


def pairs_fingerprint(aligned: Mapping[str, Dataset]) -> Fingerprint:
    """How many pairs there are in each split, and what they are."""
    parts: Fingerprint = {}
    for split, rows in aligned.items():
        parts[f"{split}.pairs"] = len(rows)
        parts[f"{split}.content"] = fingerprint("pairs", rows["file"][:], rows["row"][:], row_contents(rows))
    return parts


def learner_fingerprint(pairs: Mapping[str, Dataset]) -> Fingerprint:
    """What `pairs_fingerprint` leaves out, by which scores do not change, but a training does."""
    parts: Fingerprint = {}
    for split, rows in pairs.items():
        contents = Contents.of(rows)
        if "teacher" in contents.sides:
            tokens = row_contents(rows, contents.learner)
            parts[f"{split}.{contents.learner}_tokens"] = fingerprint("tokens", tokens)
        parts[f"{split}.worth"] = fingerprint("worth", {name: rows[name][:] for name in contents.worth})
    return parts


def row_contents(aligned: Dataset, side: str | None = None) -> list[int]:
    """A hash of each row's tokens and parents, 8 bytes.

    Args:
        side: Whose; None = those that are scored, or those of the trained model where there are no others.
    """
    contents = Contents.of(aligned)
    if side is None:
        side = "teacher" if "teacher" in contents.sides else contents.learner
    names = _read_columns(aligned, side)
    hashes = []
    for table in aligned.select_columns(names).with_format("arrow").iter(batch_size=1000):
        lists = [cast(pa.Table, table)[name].combine_chunks() for name in names]
        parts = [(part.offsets.to_numpy(), part.values.to_numpy()) for part in lists]
        for row in range(len(lists[0])):
            digest = hashlib.blake2b(digest_size=8)
            for offsets, values in parts:
                ids = values[offsets[row] : offsets[row + 1]]
                digest.update(len(ids).to_bytes(4, "little") + ids.tobytes())
            hashes.append(int.from_bytes(digest.digest(), "little", signed=True))
    return hashes


def _read_columns(pairs: Dataset, side: str) -> list[str]:
    """What the log-probs of a side depend on, apart from its model."""
    own, *instructed = read_columns(side, instructed=Contents.of(pairs).instructed)[0]
    answers = [[token_column(side, answer), *([parent_column(side, answer)] if side else [])] for answer in ANSWERS]
    return [own, *chain(*answers), *instructed]


def same_part(name: str, one: object, other: object) -> bool:
    """Whether a part of two fingerprints is the same. Probes of servers are, but for rounding."""
    return same_probe(one, other) if name.endswith(".probe") else one == other


def written_probe(logprobs: Sequence[float]) -> str:
    """What a server said of a text of ours, as a fingerprint holds it: log-probs in nats."""
    return " ".join(f"{value:.3f}" for value in logprobs)


def same_probe(one: object, other: object) -> bool:
    """Whether two written probes are those of the same model, but for rounding."""
    first, second = ([float(value) for value in str(probe or "").split()] for probe in (one, other))
    if len(first) != len(second) or not first:
        return False
    return sum(abs(a - b) for a, b in zip(first, second, strict=True)) / len(first) <= SAME_MODEL


def require_same(expected: Fingerprint, found: Fingerprint, *, remedy: str) -> None:
    """Compare what both have.

    Raises:
        ConfigError: A line for each part that differs.
    """
    lines = []
    for name, value in expected.items():
        if name not in found or same_part(name, found[name], value):
            continue
        values = f"is {value} here, but was {found[name]} when the scores were made"
        lines.append(f"{name}: {'differs from what was scored' if name.endswith(HASHED) else values}; {remedy}")
    if lines:
        raise ConfigError(lines)


def _tokenizer_fingerprint(side: ModelSide) -> str:
    backend = json.loads(side.tokenizer.backend_tokenizer.to_str())
    backend |= {"padding": None, "truncation": None}  # how it was last called, not what it is
    return fingerprint("tokenizer", backend, side.bos_id, side.eos_id)


def _template_fingerprint(side: ModelSide) -> str:
    parts = [side.template.source] + ([] if side.keeps_thoughts else ["thoughts dropped"])
    return f"{'chat' if side.uses_chat_template else 'plain'} {fingerprint('template', *parts)}"
