"""prefkd distils human preferences from a large language model into a small one whose tokenizer may differ."""

__version__ = "0.1.0"
