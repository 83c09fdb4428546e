"""The user's access to the Hugging Face Hub."""

import os


def hub_token() -> str | None:
    """The token from the environment or a file .env here; None leaves it to huggingface_hub, which knows of a login."""
    from dotenv import dotenv_values

    return os.environ.get("HF_TOKEN") or dotenv_values(".env").get("HF_TOKEN") or None
