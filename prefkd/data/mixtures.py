"""Rows of several sources: how many of each make an epoch, and which prompts occur twice."""

import unicodedata
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np

from prefkd.data.messages import Message


def mixture_sizes(available: Sequence[int], weights: Sequence[float]) -> list[int]:
    """How many pairs of each source make the longest epoch that repeats none, with shares in proportion to weights.

    Args:
        available: Pairs of each source.
        weights: Its weight, above 0.
    """
    shares = np.array(weights, dtype=float) / sum(weights)
    total = min(np.array(available) / shares)
    sizes = np.minimum(np.round(total * shares), available).astype(int)
    return np.maximum(sizes, np.minimum(1, available)).tolist()


def prompt_key(prompt: Iterable[Message]) -> int:
    """64 bits that name a prompt, equal for prompts that differ in capitals, blanks and forms of characters only."""
    texts = (f"{turn['role']}\n{turn['content']}" for turn in prompt)
    text = " ".join(unicodedata.normalize("NFKC", "\n".join(texts)).casefold().split())
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def repeated(keys: np.ndarray) -> np.ndarray:
    """(n,) whether a key has occurred before."""
    first = np.zeros(len(keys), dtype=bool)
    first[np.unique(keys, return_index=True)[1]] = True
    return ~first


def held_out_rows(keys: np.ndarray, order: np.ndarray, fraction: float) -> np.ndarray:
    """(n,) which rows are held out: whole groups of one key, in an order, until a fraction of all rows is reached.

    The last group is never held out, so that something is left to be trained on.

    Args:
        keys: (n,) the key of each row.
        order: (n,) where a row stands in the order of groups; the first row of a group decides.
        fraction: Share of the rows.
    """
    _, first, group, sizes = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    groups = np.argsort(order[first], kind="stable")[:-1]
    before = np.cumsum(sizes[groups]) - sizes[groups]
    chosen = groups[before < round(fraction * len(keys))]
    return np.isin(group, chosen)
