"""Transcripts, as Anthropic HH has them: text with a speaker's name before each turn -> messages."""

import re

from prefkd.data.messages import Message
from prefkd.errors import DataError

SPEAKERS = {"System": "system", "Human": "user", "Assistant": "assistant"}

# A system message is the first turn; later "System:" is text.
_SPEAKER = re.compile(r"(?:\A\s*|\n\n(?!System:))(System|Human|Assistant):")


def is_transcript(text: str) -> bool:
    """Whether a text begins with a speaker and both speak. `Human:` alone may be the user's own words."""
    return {"Human", "Assistant"} <= set(_SPEAKER.findall(text)) and _SPEAKER.match(text) is not None


def read_transcript(text: str, name: str) -> list[Message]:
    """Read a transcript. Blanks around a turn belong to the transcript, not to the speaker, and are left out.

    Someone who speaks twice in a row has one turn: many chat templates take nothing else.

    Args:
        text: The transcript.
        name: The field that it stands in, for errors.

    Raises:
        DataError: It is not one.
    """
    if not _SPEAKER.match(text):
        raise DataError(f"field '{name}' is not a transcript: expected it to begin with 'Human:'")
    _, *turns = _SPEAKER.split(text)
    messages: list[Message] = []
    for speaker, content in zip(turns[::2], turns[1::2], strict=True):
        if messages and messages[-1]["role"] == SPEAKERS[speaker]:
            messages[-1]["content"] += f"\n\n{content.strip()}"
        else:
            messages.append(Message(role=SPEAKERS[speaker], content=content.strip()))
    return messages


def read_transcript_prompt(text: str, name: str) -> list[Message]:
    """The same for a transcript that waits for an answer: it may end with `Assistant:`."""
    messages = read_transcript(text, name)
    if messages[-1]["role"] == "assistant" and not messages[-1]["content"]:
        messages.pop()
    return messages
