"""What the tokens of a tokenizer stand for in bytes, and maps between two vocabularies that are kept between runs."""

import logging
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from huggingface_hub import cached_assets_path
from huggingface_hub.utils import WeakFileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from prefkd.files import fingerprint, whole
from prefkd.method.shared_tokens import SharedTokens, TokenMap, make_token_map, projection_weights

logger = logging.getLogger(__name__)

# Raise it when the same tokenizers come to give another map.
VERSION = 1
FILE = "map.safetensors"
NOT_CACHED = "the map of the two vocabularies is not cached (%s); set HF_ASSETS_CACHE"
BLANK = "▁"
# How byte-level vocabularies write a byte: as one of 256 characters.
BYTE_OF = {character: byte for byte, character in bytes_to_unicode().items()}
_CHARACTER_OF = bytes_to_unicode()


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> tuple[bytes | None, ...]:
    """The bytes that each id stands for in a text; None for special tokens and for ids without a token.

    A byte that stands in for a character with a token of its own, as <0x41> does for A, is None too: no text is
    tokenized so.
    """
    tokens: list[str | None] = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))  # pyright: ignore
    known, byte_level = set(tokens), is_byte_level(tokenizer)
    special = {*tokenizer.all_special_ids, *(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)}
    added = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items()}

    def read(index: int, token: str | None) -> bytes | None:
        if token is None:
            return None
        byte = None if byte_level else re.fullmatch("<0x([0-9A-Fa-f]{2})>", token)
        if byte is not None:
            value = int(byte[1], 16)
            character = BLANK if value == ord(" ") else chr(value)
            return None if value < 0x80 and character in known else bytes([value])
        if index in special:
            return None
        if not byte_level:
            return token.replace(BLANK, " ").encode(errors="surrogatepass")
        if index in added or not all(character in BYTE_OF for character in token):
            return token.encode(errors="surrogatepass")
        return bytes(map(BYTE_OF.__getitem__, token))

    return tuple(read(index, token) for index, token in enumerate(tokens))


def is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether tokens are written in the byte-level alphabet (of GPT-2), rather than as text with ▁ for blanks."""
    backend: Any = tokenizer.backend_tokenizer
    return backend.decoder is not None and b'"ByteLevel"' in backend.decoder.__getstate__()  # the decoder as JSON


def token_pieces(tokenizer: PreTrainedTokenizerBase, texts: Sequence[bytes | None]) -> list[list[int]]:
    """The ids that each text is split into by the tokenizer's model, as a piece in the middle of a text would be."""
    backend: Any = tokenizer.backend_tokenizer
    model, byte_level = backend.model, is_byte_level(tokenizer)
    unknown = tokenizer.unk_token_id

    def split(text: bytes | None) -> list[int]:
        if not text:
            return []
        if byte_level:
            written = "".join(map(_CHARACTER_OF.__getitem__, text))
        else:
            try:
                written = text.decode().replace(" ", BLANK)
            except UnicodeDecodeError:  # part of a character
                ids = [model.token_to_id(f"<0x{byte:02X}>") for byte in text]
                return [index for index in ids if index is not None]
        return [token.id for token in model.tokenize(written) if token.id != unknown]

    return list(map(split, texts))


def cached_token_map(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, shared: SharedTokens
) -> TokenMap:
    """The map of X-Token (arXiv 2605.21699) from the student's tokens to the teacher's, made once."""

    def make() -> dict[str, Tensor]:
        own, certain = token_bytes(student), set(ends[0])
        # A shared token is its own piece.
        unshared = [None if index in certain else text for index, text in enumerate(own)]
        weights = projection_weights(token_pieces(teacher, unshared), token_pieces(student, token_bytes(teacher)))
        return make_token_map(weights, shared, len(student))._asdict()

    backends: list[Any] = [student.backend_tokenizer, teacher.backend_tokenizer]
    ends = shared.student.tolist(), shared.teacher.tolist()
    return TokenMap(**cached("token map", (VERSION, *(backend.to_str() for backend in backends), ends), make))


def cached(kind: str, made_from: tuple[Any, ...], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors that follow from two tokenizers, from the cache if they are there, else made and put there.

    They lie in the folder of Hugging Face for what libraries make (HF_ASSETS_CACHE). Of several processes the first
    makes them, and the others wait.

    Args:
        kind: Kind of the array, for its file name.
        made_from: Everything that they depend on, as JSON can write it.
        make: Makes them.
    """
    name = fingerprint(kind, *made_from)
    with ExitStack() as until_written:
        try:
            path = cached_assets_path("prefkd", namespace=f"{kind.replace(' ', '_')}s", subfolder=name) / FILE
            if (found := _read(path)) is None:
                until_written.enter_context(WeakFileLock(path.with_suffix(".lock")))
                found = _read(path)
            if found is not None:
                return found
        except (OSError, ValueError) as error:  # there can be no such folder
            logger.warning(NOT_CACHED, error)
            return make()
        made = make()
        try:
            with whole(path) as unfinished:
                save_file(made, unfinished)
        except OSError as error:
            logger.warning(NOT_CACHED, error)
        return made


def _read(path: Path) -> dict[str, Tensor] | None:
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        return None  # there is none, or a disk has damaged it
