"""What the command line prints: plain lines that a terminal may break but that stay whole when copied or piped."""

import errno
import logging
import os
import sys
import traceback
import warnings
from pathlib import Path

from rich.console import Console
from rich.text import Text

from prefkd.errors import PrefkdError

USE_LESS_MEMORY = "lower the batch size or the maximal length, or turn activation checkpointing on"
_REMEDIES = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "free some of your quota, or write to another disk",
    errno.EROFS: "write to another folder",
    errno.EEXIST: "a folder of that name is needed; name another one",
    errno.ENOTDIR: "a folder of that name is needed; name another one",
    errno.EACCES: "change its permissions, or use another folder",
    errno.EPERM: "change its permissions, or use another folder",
}


# How warnings begin that a user can do nothing about: they are about calls of prefkd's own, or of a library's.
_FOR_DEVELOPERS = (
    "`gradient_checkpointing_enable` is deprecated",  # the name that all versions of transformers 5 know
    "barrier\\(\\): using the device under current context",  # which is the right one: join_ranks has set it
    "OptimState.* does not implement _stable_hash_for_caching",  # of torchao's optimizers
)


def say(text: str) -> None:
    """Print a line, or several, for the user."""
    Console().print(Text(text), soft_wrap=True)


def hush_libraries() -> None:
    """Leave the terminal to prefkd: no progress bar for each file of weights, no notes about optional kernels."""
    logging.getLogger("torchao").setLevel(logging.ERROR)
    for warning in _FOR_DEVELOPERS:
        warnings.filterwarnings("ignore", message=warning)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def explain(error: BaseException) -> str | None:
    """What a user can do about an error, in one line for each thing; None where it is a mistake in the program."""
    if isinstance(error, PrefkdError):
        return str(error)
    text = " ".join(str(error).split())
    if isinstance(error, ValueError) and "null byte" in text:
        return "a path holds the character 0, which no name has; remove it"
    torch = sys.modules.get("torch")  # not imported for the question's sake
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return f"the memory is used up; {USE_LESS_MEMORY}"
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return f"the memory of the GPU is used up; {USE_LESS_MEMORY}"
    cache = _cache_of(error)
    if cache is not None:
        reason = os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else text
        return f"{getattr(error, 'filename', None)}: {reason}; {cache}"
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{os.strerror(error.errno).lower()}; {_REMEDIES[error.errno]}"
    if "No space left on device" in text:  # safetensors and torch wrap it in exceptions of their own
        return f"{text}; {_REMEDIES[errno.ENOSPC]}"
    if isinstance(error, OSError):
        return f"{error.filename}: {(error.strerror or text).lower()}" if error.filename else text
    return None


def _cache_of(error: BaseException) -> str | None:
    """What to do if an error is about a cache of Hugging Face, which lies in the user's home unless it is told."""
    name = error.filename if isinstance(error, OSError) else None
    if not isinstance(name, str):
        return None
    path = Path(name).absolute()
    for module, variable in (("datasets.config", "HF_DATASETS_CACHE"), ("huggingface_hub.constants", "HF_HOME")):
        folder = getattr(sys.modules.get(module), variable, None)  # not imported for the question's sake
        if folder is not None:
            cache = Path(folder).absolute()
            # The cache, what is in it, or a folder on the way to it that is not there yet.
            if cache == path or cache in path.parents or (path in cache.parents and not path.exists()):
                others = " (HF_HOME for all caches of Hugging Face)" if variable != "HF_HOME" else ""
                return f"this is the cache {cache}; set {variable}{others} to a folder that can be written to"
    return None


def complain(error: BaseException) -> bool:
    """Print `error: ...` for each line of an explained error; False if it has no explanation and nothing was printed.

    PREFKD_DEBUG=1 prints the trace as well.
    """
    explanation = explain(error)
    if explanation is None:
        return False
    if os.environ.get("PREFKD_DEBUG"):
        traceback.print_exception(error)
    console = Console(stderr=True)
    for line in explanation.splitlines():
        console.print(Text.assemble(("error: ", "bold red"), line), soft_wrap=True)
    return True
