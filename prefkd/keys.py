"""Keys of services: from the environment or a file .env in the current folder, never from a config."""

import os


def find_key(variable: str) -> str | None:
    """The key that a variable holds, None where it is not set or empty."""
    from dotenv import dotenv_values

    return os.environ.get(variable) or dotenv_values(".env").get(variable) or None


def hub_token() -> str | None:
    """The token of the Hugging Face Hub; None leaves it to huggingface_hub, which knows of a login."""
    return find_key("HF_TOKEN")
