"""Vocabularies as texts, and what maps one to another.

The text of a token is what it stands for in an answer, so that tokens of different tokenizers can be compared: a blank
is ▁, a part of a character is <0xE4> for each byte, everything else is itself.
"""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from prefkd.data.token_map import BLANK, BYTE_OF, cached, cached_token_map, is_byte_level, token_bytes
from prefkd.errors import PrefkdError
from prefkd.method.baselines import minimal_edit_vocabulary_map
from prefkd.method.shared_tokens import SharedTokens, TokenMap, find_shared_tokens

logger = logging.getLogger(__name__)

Made = TypeVar("Made")

# Raise it when the same tokenizers come to give another map.
VERSION = 1
LITTLE = 0.1  # share of shared tokens below which a warning is due
# Bytes that are no UTF-8 come as these characters from a decoder that is told to let them escape.
_ESCAPED = {0xDC00 + byte: f"<0x{byte:02X}>" for byte in range(0x80, 0x100)}


def token_texts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The text of each token, from id 0 on; an id without a token has none."""
    tokens: list[str | None] = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))  # pyright: ignore
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    read = _byte_level_reader(added) if is_byte_level(tokenizer) else _sentencepiece_reader(set(tokens))
    return tuple(read(token or "").replace(" ", BLANK) for token in tokens)


def _byte_level_reader(added: set[str]) -> Callable[[str], str]:
    def read(token: str) -> str:
        if token in added or not all(character in BYTE_OF for character in token):
            return token
        return bytes(map(BYTE_OF.__getitem__, token)).decode(errors="surrogateescape").translate(_ESCAPED)

    return read


def _sentencepiece_reader(tokens: set[str | None]) -> Callable[[str], str]:
    def read(token: str) -> str:
        byte = re.fullmatch("<0x([0-7][0-9A-F])>", token)  # an ASCII character by its number
        return chr(int(byte[1], 16)) if byte and chr(int(byte[1], 16)) not in tokens else token

    return read


@dataclass(frozen=True)
class Vocabularies:
    """The tokens of both models, from id 0 on.

    Attributes:
        student, teacher: Their texts.
        tokenizers: The two tokenizers.
        ends: The ids of the two tokens that end an answer; None where none is of interest.
    """

    student: Sequence[str]
    teacher: Sequence[str]
    tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase] | None = None
    ends: tuple[int, int] | None = None
    _made: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(
        cls, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, ends: tuple[int, int] | None = None
    ) -> "Vocabularies":
        """The vocabularies of two tokenizers."""
        return cls(token_texts(student), token_texts(teacher), (student, teacher), ends)

    def once(self, make: Callable[[], Made], *key: Any) -> Made:
        """What is made of them once, on a device for instance, and then kept under a key.

        It has content also where a plan looks on at a step of tensors that have none.
        """
        if key not in self._made:
            with _disable_current_modes():
                self._made[key] = make()
        return self._made[key]

    @cached_property
    def are_one(self) -> bool:
        """Whether both models have the same tokens."""
        return self.student == self.teacher

    @cached_property
    def shared(self) -> SharedTokens:
        """Pairs of tokens with the same bytes, and the two that end an answer; all tokens of one vocabulary.

        Raises:
            PrefkdError: There are none.
        """
        if self.are_one:
            ids = torch.arange(len(self.student))
            return SharedTokens(ids, ids)
        assert self.tokenizers is not None
        found = find_shared_tokens(*map(token_bytes, self.tokenizers), ends=self.ends)
        sizes = len(found.student), len(self.student)
        if sizes[0] <= (self.ends is not None):
            raise PrefkdError("the two tokenizers share no token; compare sorted probabilities instead, with term uld")
        if sizes[0] < LITTLE * sizes[1]:
            _warn_of_little(*sizes)
        return found

    @cached_property
    def token_map(self) -> TokenMap:
        """The map of X-Token from the student's tokens to the teacher's."""
        assert self.tokenizers is not None
        return cached_token_map(*self.tokenizers, self.shared)

    @cached_property
    def nearest(self) -> Tensor:
        """(V_t,) the student's token that is spelled most like each of the teacher's (MinED), made once, with a bar."""

        def make() -> dict[str, Tensor]:
            bar = partial(tqdm, desc="Mapping the teacher's tokens", unit=" batches", leave=False)
            return {"ids": minimal_edit_vocabulary_map(self.student, self.teacher, track=bar)}

        return cached("vocabulary map", (VERSION, self.student, self.teacher), make)["ids"]


@cache  # once for two tokenizers, though a run looks twice
def _warn_of_little(shared: int, tokens: int) -> None:
    logger.warning("the two tokenizers share only %d of the student's %d tokens", shared, tokens)
