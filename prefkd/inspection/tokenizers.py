"""Tokenizers without their models."""

from pathlib import Path
from typing import Literal

from transformers import AutoTokenizer

from prefkd.data.sources import HUB_ID
from prefkd.data.templates import ModelSide
from prefkd.errors import PrefkdError

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


def read_side(path: str, template: Literal["auto", "chat", "plain"]) -> ModelSide:
    """The tokenizer and the template of one model.

    Args:
        path: Folder with the files of a tokenizer (it needs no weights), or a Hub id.
        template: As in `ModelSide`.

    Raises:
        PrefkdError: There is no such tokenizer, or it cannot be used.
    """
    folder = Path(path)
    if folder.is_dir():
        if not any((folder / name).is_file() for name in FILES):
            raise PrefkdError(f"{path} holds no tokenizer; expected one of {', '.join(FILES)}")
    elif folder.is_file():
        raise PrefkdError(f"{path} is a file; name the folder that holds the tokenizer")
    elif not HUB_ID.fullmatch(path) or path.startswith((".", "models/")):
        raise PrefkdError(f"no folder {path}; name a folder with a tokenizer, or a Hub id owner/name")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # tokenizers raises a bare Exception for a broken file
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
        raise PrefkdError(f"cannot load the tokenizer of {path}: {reason}") from error
    return ModelSide(tokenizer, template, name=folder.resolve().name if folder.is_dir() else path)
