"""Keys of services: from the environment or a file .env in the current folder, never from a config or an address."""

import os
import re
from collections.abc import Iterator


def find_key(variable: str) -> str | None:
    """The key that a variable holds, None where it is not set or empty."""
    from dotenv import dotenv_values

    return os.environ.get(variable) or dotenv_values(".env").get(variable) or None


def hub_token() -> str | None:
    """The token of the Hugging Face Hub; None leaves it to huggingface_hub, which knows of a login."""
    return find_key("HF_TOKEN")


def address_problems(key: str, address: str, example: str) -> Iterator[str]:
    """What is wrong with the address of a service. It is written to files, and so may hold neither password nor key.

    Args:
        key: The setting that names it.
        example: An address of its kind.
    """
    if not re.fullmatch(r"https?://[^/\s@?#]+(/[^\s@?#]*)?", address):
        shown = re.split(r"[?#]", address.rpartition("@")[2])[0]  # the rest may hold a password or a key
        yield f"{key}: {shown} is not an address; write one such as {example}, without a password or a key"


def without_keys(text: str) -> str:
    """A text whose addresses have lost what may be a password or a key: before the host, and after the path."""
    return re.sub(r"(://[^\s?#]*)[?#]\S*", r"\1", re.sub(r"(?<=://)[^/\s]*@", "", text))
