"""Vocabularies as texts, and a file that maps one to another.

The text of a token is what it stands for in an answer, so that tokens of different tokenizers can be compared: a blank
is ▁, a part of a character is <0xE4> for each byte, everything else is itself.
"""

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prefkd.data.pairs import fingerprint
from prefkd.data.token_map import BLANK, BYTE_OF, cached_token_map, is_byte_level, token_bytes
from prefkd.errors import PrefkdError
from prefkd.files import whole
from prefkd.method.baselines import minimal_edit_vocabulary_map
from prefkd.method.shared_tokens import SharedTokens, TokenMap, find_shared_tokens

logger = logging.getLogger(__name__)

# Raise it when the same tokenizers come to give another map.
VERSION = 1
MAP = "teacher_to_student"
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

    @classmethod
    def of(
        cls, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, ends: tuple[int, int] | None = None
    ) -> "Vocabularies":
        """The vocabularies of two tokenizers."""
        return cls(token_texts(student), token_texts(teacher), (student, teacher), ends)

    @cached_property
    def shared(self) -> SharedTokens:
        """Pairs of tokens with the same bytes, and the two that end an answer.

        Raises:
            PrefkdError: There are none.
        """
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
    def fingerprints(self) -> dict[str, str]:
        """A name for each of the two, by their content."""
        sides = {"student": self.student, "teacher": self.teacher}
        return {side: f"{len(texts)} tokens {fingerprint('vocabulary', texts)}" for side, texts in sides.items()}


@cache  # once for two tokenizers, though a run looks twice
def _warn_of_little(shared: int, tokens: int) -> None:
    logger.warning("the two tokenizers share only %d of the student's %d tokens", shared, tokens)


def write_vocabulary_map(
    path: Path, vocabularies: Vocabularies, track: Callable[[Sequence[int]], Iterable[int]] = iter
) -> Tensor:
    """Find the student's token that is spelt most like each of the teacher's, and write the map whole or not at all.

    Args:
        path: The file, safetensors.
        vocabularies: Of both models.
        track: Iterates over batches of the teacher's tokens; it may show progress.

    Returns:
        (V_t,) the student's ids.
    """
    found = minimal_edit_vocabulary_map(vocabularies.student, vocabularies.teacher, track=track)
    with whole(path) as unfinished:
        save_file({MAP: found}, unfinished, metadata={"version": str(VERSION), **vocabularies.fingerprints})
    return found


def read_vocabulary_map(path: Path, vocabularies: Vocabularies) -> Tensor:
    """The map in a file, (V_t,) the student's id for each of the teacher's.

    Raises:
        PrefkdError: There is none, or it is one of other tokenizers.
    """
    found, metadata = _read(path)
    if metadata.get("version") != str(VERSION):
        raise PrefkdError(f"{path} is no vocabulary map of this version of prefkd; make it again, {_MAKE}")
    for side, expected in vocabularies.fingerprints.items():
        if metadata.get(side) != expected:
            raise PrefkdError(f"{path} was made for another tokenizer of the {side}; make one for these two, {_MAKE}")
    return found


_MAKE = "with `prefkd vocabulary-map`"


@lru_cache(maxsize=1)  # it is asked for with every batch
def _read(path: Path) -> tuple[Tensor, dict[str, str]]:
    if not path.is_file():
        raise PrefkdError(f"{path} does not exist; make it {_MAKE}")
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor(MAP), file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise PrefkdError(f"{path} is no vocabulary map; make one {_MAKE}") from error
