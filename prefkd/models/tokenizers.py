"""Tokenizers, with their models or without."""

from pathlib import Path
from typing import Literal

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from prefkd.data.sides import ModelSide
from prefkd.data.sources import HUB_ID
from prefkd.errors import PrefkdError, first_line

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
EMPTY = "an empty text names no model"


def may_be_hub_id(path: str) -> bool:
    """Whether a path that is not there may name a model on the Hub, owner/name."""
    return HUB_ID.fullmatch(path) is not None and not path.startswith((".", "models/"))


def no_folder(path: str) -> str:
    """What to say of a model's path that is neither a folder nor a Hub id."""
    return f"no folder {path}; fetch the model with `prefkd download`, or name a Hub id owner/name"


def read_tokenizer(path: str, *, trust_remote_code: bool = False, revision: str = "main") -> PreTrainedTokenizerBase:
    """The fast tokenizer in a folder, or of a Hub id.

    Raises:
        PrefkdError: There is none, or it is not a fast one (offsets are needed to find parent tokens).
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, revision=revision)
    except Exception as error:  # tokenizers raises a bare Exception for a broken tokenizer.json
        raise PrefkdError(f"cannot load the tokenizer of {path}: {first_line(error)}") from error
    if not tokenizer.is_fast:
        raise PrefkdError(f"the tokenizer of {path} is not a fast tokenizer, so it gives no offsets; convert it first")
    return tokenizer


def side_without_model(path: str, template: Literal["auto", "chat", "plain"]) -> ModelSide:
    """The tokenizer and the template of a model whose weights need not be there.

    Args:
        path: Folder with the files of a tokenizer, or a Hub id.
        template: As in `ModelSide`.

    Raises:
        PrefkdError: There is no such tokenizer, or it cannot be used.
    """
    folder = Path(path)
    if not path.strip():
        raise PrefkdError(EMPTY)
    if folder.is_dir():
        if not any((folder / name).is_file() for name in FILES):
            raise PrefkdError(f"{path} holds no tokenizer; expected one of {', '.join(FILES)}")
    elif folder.is_file():
        raise PrefkdError(f"{path} is a file; name the folder that holds the tokenizer")
    elif not may_be_hub_id(path):
        raise PrefkdError(no_folder(path))
    return ModelSide(read_tokenizer(path), template, name=folder.resolve().name if folder.is_dir() else path)
