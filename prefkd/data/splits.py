"""Which pairs of the sources are held out, which of the others are trained on, and how many of each source."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np
from datasets import Dataset, concatenate_datasets

from prefkd.data.arrow import numbers, tables
from prefkd.data.mixtures import held_out_rows, mixture_sizes, repeated
from prefkd.data.settings import DataConfig, MixedRows
from prefkd.errors import DataError
from prefkd.files import fingerprint


def hold_out(parts: Sequence[Dataset], fraction: float, seed: int) -> tuple[list[Dataset], list[Dataset]]:
    """Split each source by prompt. A prompt that is held out of one is held out of all."""
    keys = np.concatenate([_held_out_keys(pairs, fraction, seed) for pairs in parts])
    held_out = [np.isin(numbers(pairs, "key"), keys) for pairs in parts]
    rest = [select(pairs, (~held).nonzero()[0]) for pairs, held in zip(parts, held_out, strict=True)]
    return rest, [select(pairs, held.nonzero()[0]) for pairs, held in zip(parts, held_out, strict=True)]


def _held_out_keys(pairs: Dataset, fraction: float, seed: int) -> np.ndarray:
    """The prompts that a seeded hash puts first, until the fraction is reached."""
    order = np.fromiter(
        (
            int(fingerprint(seed, json.dumps(prompt))[:16], 16)
            for table in tables(pairs, ["prompt"])
            for prompt in table["prompt"].to_pylist()
        ),
        dtype=np.uint64,
        count=len(pairs),
    )
    keys = numbers(pairs, "key")
    return keys[held_out_rows(keys, order, fraction)]


def without_known_prompts(
    parts: Sequence[Dataset], held_out: Dataset, config: DataConfig
) -> tuple[list[Dataset], int, int]:
    """The training pairs of each source that `leakage` and `duplicates` leave, and how many each of the two drops."""
    leaked = np.concatenate([has_held_out_prompt(pairs, held_out) for pairs in parts]) & (config.leakage == "drop")
    # A prompt counts once, whichever of the sources has it.
    again = repeated(np.concatenate([numbers(pairs, "key") for pairs in parts])) & (config.duplicates == "drop")
    kept = np.split(~(leaked | again), np.cumsum([len(pairs) for pairs in parts])[:-1])
    left = [select(pairs, places.nonzero()[0]) for pairs, places in zip(parts, kept, strict=True)]
    return left, int(leaked.sum()), int((again & ~leaked).sum())


def mixed_parts(train: Sequence[Dataset], parts: Sequence[MixedRows], seed: int) -> list[Dataset]:
    """Of each source as many pairs as its limit and its weight allow."""
    limited = [limited_part(pairs, part.limit, seed) for pairs, part in zip(train, parts, strict=True)]
    weights = [part.weight for part in parts if part.weight is not None]
    if not weights:
        return limited
    for part, pairs in zip(parts, limited, strict=True):
        if not len(pairs):
            raise DataError(
                f"{part.source}: no pairs are left for its share of the mixture; take it out of data.sources"
            )
    sizes = mixture_sizes([len(pairs) for pairs in limited], weights)
    return [limited_part(pairs, size, seed) for pairs, size in zip(limited, sizes, strict=True)]


def limited_part(pairs: Dataset, limit: int | None, seed: int) -> Dataset:
    """A random part in the old order. With the same seed a smaller part lies in a larger one."""
    if limit is None or limit >= len(pairs):
        return pairs
    chosen = np.random.default_rng(seed).permutation(len(pairs))[:limit]
    return select(pairs, np.sort(chosen))


def select(pairs: Dataset, rows: np.ndarray) -> Dataset:
    """Some rows, with a fingerprint that depends on which they are."""
    if len(rows) == len(pairs):
        return pairs
    digest = hashlib.sha256(rows.astype(np.int64).tobytes()).hexdigest()
    return pairs.select(rows, new_fingerprint=fingerprint(pairs._fingerprint, digest))


def together(parts: Sequence[Dataset]) -> Dataset:
    """The rows of all sources, one source after the other."""
    if len(parts) == 1:
        return parts[0]
    whole = concatenate_datasets(list(parts))
    whole._fingerprint = fingerprint(*(part._fingerprint for part in parts))
    return whole


def has_held_out_prompt(pairs: Dataset, held_out: Dataset) -> np.ndarray:
    """(n,) which pairs have a prompt that is held out."""
    return np.isin(numbers(pairs, "key"), numbers(held_out, "key"))
