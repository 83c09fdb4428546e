"""What a row holds besides the fields that its format reads: metadata, more to read, or something unknown.

Metadata is passed over. A field that a model would have to read (a system prompt, a history, tools, images) is an error
unless its text is in the prompt already. Any other field with content is counted and reported.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

# Fields and message keys that say something about a pair and are never read by a model; `*` is any text. In lower case.
METADATA = (
    # What a row is called.
    *("", "id", "_id", "*_id", "id_*", "*-id", "qid", "idx", "index", "*_index", "uuid", "hash", "*_hash", "hashed_*"),
    *("key", "row", "line", "file", "path", "filename", "unnamed:*", "__index_level_*__", "turn_identifier"),
    # Where it comes from, and what it is about.
    *("source", "sources", "source_*", "*_source", "dataset", "dataset_*", "*_dataset", "datasets", "data_source"),
    *("origin", "origin_*", "subset", "split", "task", "task_*", "tasks", "domain", "subdomain", "category"),
    *(
        "categories",
        "category_*",
        "*_category",
        "*_categories",
        "topic",
        "*_topic",
        "tag",
        "tags",
        "*_tag",
        "*_tags",
        "type",
    ),
    *(
        "*_type",
        "kind",
        "url",
        "urls",
        "link",
        "license",
        "licence",
        "author",
        "authors",
        "language",
        "languages",
        "lang",
    ),
    *("*_lang", "*_language", "locale", "country", "metadata", "meta", "*_metadata"),
    # What it was judged to be worth.
    *("score", "scores", "score_*", "*_score", "*_scores", "*-score", "rating", "ratings", "rating_*", "*_rating"),
    *("*-rating", "*_ratings", "reward", "rewards", "reward_*", "*_reward", "*_rewards", "rank", "ranks", "*_rank"),
    *("margin", "*_margin", "gap", "*_gap", "delta", "quality", "*_quality", "difficulty", "confidence", "probability"),
    *(
        "votes",
        "*_votes",
        "vote_*",
        "upvote*",
        "preference_strength",
        "overall_preference",
        "strength",
        "agreement",
        "helpfulness",
    ),
    *("correctness", "coherence", "complexity", "magnitude", "verbosity", "instag", "*_label", "good_natured"),
    # Who wrote and who judged it.
    *("model", "models", "model_*", "*_model", "*-model", "*_models", "policy", "*_policy", "*_policies"),
    *("generator", "*_generator", "annotator", "annotators", "annotator_*", "judge", "judge_*", "rm_name", "worker"),
    # When.
    *("date", "*_date", "time", "*_time", "timestamp", "timestamps", "*_timestamp", "tstamp", "created", "created_*"),
    *("updated", "updated_*", "*_at", "year"),
    # How much of it there is, and how it was dealt with.
    *("num_*", "n_*", "*_count", "count", "tokens", "*_tokens", "token_*", "length", "*_length", "len", "len_*"),
    *("turn", "turns", "is_*", "has_*", "in_*_train", "status", "order", "toxic", "toxicity", "redacted", "anony"),
    *("moderation", "*_moderation", "openai_moderation", "conversation_hash", "temperature", "top_p", "seed"),
)

# What a model is given besides text.
ATTACHMENTS = frozenset({"tools", "functions", "image", "images", "video", "videos", "audio", "audios", "pixel_values"})

# Fields that hold what a model should read before it answers.
CONTEXT = ATTACHMENTS | {
    *("system", "system_prompt", "system_message", "instruction", "instructions", "question", "query", "input"),
    *("inputs", "context", "contexts", "background", "passage", "document", "documents", "history", "messages"),
    *("conversation", "conversations", "dialog", "dialogue", "trajectory", "initial_reason_steps"),
}


def has_content(value: Any) -> bool:
    """Whether a value says something. None, NaN, False, blank text, and containers of such do not: Arrow, pandas and
    CSV files fill what is absent with them."""
    if value is None or value is False or value != value:
        return False
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, Mapping):
        return any(has_content(part) for part in value.values())
    if isinstance(value, list | tuple):
        return any(has_content(part) for part in value)
    return True


@cache
def is_metadata(name: str) -> bool:
    """Whether a field of this name is known to be metadata."""
    return any(fnmatchcase(name.lower(), pattern) for pattern in METADATA)


def unread_fields(row: Mapping[str, Any], reads: Collection[str]) -> list[str]:
    """Fields with content that are neither read nor metadata, nor objects of nothing but metadata."""
    return [
        name
        for name, value in row.items()
        if name not in reads
        and not is_metadata(str(name))
        and has_content(value if name in CONTEXT else _without_metadata(value))
    ]


def _without_metadata(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_without_metadata(part) for part in value]
    if isinstance(value, Mapping):
        return {key: _without_metadata(part) for key, part in value.items() if not is_metadata(str(key))}
    return value


def unread_parts(row: Mapping[str, Any], reads: Collection[str], known: Collection[str]) -> list[str]:
    """Keys of messages with content that are neither read nor metadata, as `field[].key`.

    Args:
        reads: The fields that hold messages.
        known: The keys of a message that are read.
    """
    found = {}
    for name in reads:
        value = row.get(name)
        for message in value if isinstance(value, list) else [value]:
            if isinstance(message, Mapping):
                found |= {
                    f"{name}[].{key}": None
                    for key, part in message.items()
                    if key not in known and not is_metadata(str(key)) and has_content(part)
                }
    return list(found)


def is_repeated(value: Any, texts: Sequence[str]) -> bool:
    """Whether all that a field would have a model read stands in some texts already. Answers in it do not count."""
    return all(any(text in other for other in texts) for text in _texts_to_read(value))


def _texts_to_read(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if value.strip():
            yield value.strip()
    elif isinstance(value, Mapping):
        if value.get("role", value.get("from")) not in ("assistant", "gpt"):
            for key, part in value.items():
                if key not in ("role", "from", "type", "output") and not is_metadata(str(key)):
                    yield from _texts_to_read(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts_to_read(part)
    elif has_content(value):
        yield str(value)
