"""Layouts with two answers and a label that says which is better. Each docstring gives the published columns."""

import re
from typing import Any

from prefkd.data.fields import has_content
from prefkd.data.layouts.candidates import Candidates, Row, asked, choice, labelled, number, structure, take, text
from prefkd.data.messages import Message, kind
from prefkd.errors import DataError

_TURN = re.compile(r"(?:\A|\r?\n)<extra_id_[01]>(System|User|Assistant)\r?(?:\n|\Z)")
# What the people who were asked could say besides model_a and model_b.
_TIES = ("tie", "tie (bothbad)", "both_bad", "bothbad")


def pku_better(row: Row) -> Candidates:
    """PKU-SafeRLHF, the more helpful answer: prompt, response_0, response_1, better_response_id (0 or 1),
    safer_response_id, prompt_source, and for each answer is_response_0_safe, response_0_source,
    response_0_harm_category, response_0_severity_level, response_0_sha256."""
    return _pku(row, "better_response_id")


def pku_safer(row: Row) -> Candidates:
    """PKU-SafeRLHF, the safer answer: the same columns, labelled by safer_response_id."""
    return _pku(row, "safer_response_id")


def _pku(row: Row, label: str) -> Candidates:
    better = choice(row, label)
    known = [name for name in row if re.fullmatch(r"(is_)?response_[01](_\w+)?|(better|safer)_response_id", name)]
    first, second = text(row, "response_0"), text(row, "response_1")
    return labelled(take(row, *known) | {"prompt": asked(text(row, "prompt"))}, first, second, 2 if better else 1)


def shp(row: Row) -> Candidates:
    """stanfordnlp/SHP: history, human_ref_A, human_ref_B, labels (1: A is better, 0: B), and post_id, domain,
    upvote_ratio, c_root_id_A, c_root_id_B, created_at_utc_A, created_at_utc_B, score_A, score_B, score_ratio,
    seconds_difference. The gap is score_ratio, where the row has it."""
    rest = take(row, "history", "human_ref_A", "human_ref_B", "labels", *(f"c_root_id_{x}" for x in "AB"))
    rest = take(rest, *(f"created_at_utc_{x}" for x in "AB"), "seconds_difference")
    better = 1 if choice(row, "labels") else 2
    rest["prompt"] = asked(text(row, "history"))
    first, second = text(row, "human_ref_A"), text(row, "human_ref_B")
    if not has_content(row.get("score_ratio")):
        return labelled(rest, first, second, better)
    ratio = number(row, "score_ratio")
    if ratio <= 0:
        raise DataError(f"field 'score_ratio' is {ratio:g}: expected a ratio above 0")
    return Candidates(rest, [(first, ratio * (better == 1)), (second, ratio * (better == 2))])


def helpsteer2(row: Row) -> Candidates:
    """nvidia/HelpSteer2, preference: split, prompt (turns parted by <extra_id_1>), response_1, response_2,
    preference_strength (-3: the first is much better, 3: the second, 0: neither), preference_statement,
    preference_elaboration, three_most_similar_preferences, all_preferences_unprocessed."""
    reasons = ("preference_statement", "preference_elaboration", "three_most_similar_preferences")
    strength = _strength(row, "preference_strength")
    rest = take(row, "response_1", "response_2", "all_preferences_unprocessed", *reasons)
    rest |= {"prompt": _extra_id_turns(text(row, "prompt")), "preference_strength": abs(strength)}
    return _by_strength(rest, text(row, "response_1"), text(row, "response_2"), strength)


def helpsteer3(row: Row) -> Candidates:
    """nvidia/HelpSteer3, preference: domain, language, context [messages], response1, response2, overall_preference
    (-3: the first is much better, 3: the second, 0: neither), individual_preference."""
    strength = _strength(row, "overall_preference")
    rest = take(row, "context", "response1", "response2", "individual_preference")
    rest |= {"prompt": asked(row["context"]), "overall_preference": abs(strength)}
    return _by_strength(rest, text(row, "response1"), text(row, "response2"), strength)


def arena(row: Row) -> Candidates:
    """lmarena-ai/arena-human-preference-140k, lmsys/chatbot_arena_conversations: conversation_a, conversation_b
    [messages, whose content may be text parts], winner (model_a, model_b; or tie, tie (bothbad), both_bad), id or
    question_id, model_a, model_b, evaluation_order, turn, language, judge, tstamp, full_conversation, conv_metadata,
    category_tag."""
    rest = take(row, "conversation_a", "conversation_b", "winner", "full_conversation", "conv_metadata", "category_tag")
    rest = take(rest, *(name for name in rest if name.startswith(("evaluation_", "toxic_chat"))))
    if not has_content(row["winner"]):
        raise DataError("field 'winner' is missing")
    won = text(row, "winner").strip().lower()
    if won not in ("model_a", "model_b", *_TIES):
        raise DataError(f"field 'winner' is {won!r}: expected model_a, model_b, tie or both_bad")
    better = 1 if won == "model_a" else 2 if won == "model_b" else None
    return labelled(rest, row["conversation_a"], row["conversation_b"], better)


def arena_text(row: Row) -> Candidates:
    """lmsys/lmsys-arena-human-preference-55k: prompt, response_a, response_b (each a JSON list of turns in text),
    winner_model_a, winner_model_b, winner_tie (0 or 1), id, model_a, model_b."""
    winners = ("winner_model_a", "winner_model_b", "winner_tie")
    turns = {name: _list_in_text(row, name) for name in ("prompt", "response_a", "response_b")}
    conversations = []
    for name in ("response_a", "response_b"):
        if len(turns[name]) != len(turns["prompt"]):
            raise DataError(f"field '{name}' has {len(turns[name])} turns and field 'prompt' {len(turns['prompt'])}")
        both = zip(turns["prompt"], turns[name], strict=True)
        conversations.append(
            [turn for user, assistant in both for turn in (_message("user", user), _message("assistant", assistant))]
        )
    won = [choice(row, name) for name in winners]
    if sum(won) != 1:
        raise DataError(f"fields {', '.join(winners)} are {won}: expected one of them to be 1")
    better = (1, 2, None)[won.index(1)]
    return labelled(take(row, *turns, *winners), conversations[0], conversations[1], better)


def webgpt(row: Row) -> Candidates:
    """openai/webgpt_comparisons: question {full_text, dataset, id}, answer_0, answer_1, score_0, score_1 (-1 to 1),
    quotes_0, quotes_1 {title, extract}, tokens_0, tokens_1."""
    rest = take(row, "question", *(f"{name}_{i}" for name in ("answer", "score", "quotes", "tokens") for i in (0, 1)))
    question = structure(row["question"])
    rest["prompt"] = asked(text(question, "full_text") if isinstance(question, dict) else text(row, "question"))
    return Candidates(rest, [(text(row, f"answer_{i}"), number(row, f"score_{i}")) for i in (0, 1)])


def summaries(row: Row) -> Candidates:
    """openai/summarize_from_feedback, comparisons: info {id, post, title, subreddit, site, article}, summaries
    [{text, policy, note}], choice (0 or 1), worker, batch, split, extra.

    The prompt is that of Stiennon et al., arXiv 2009.01325: SUBREDDIT, TITLE, POST, TL;DR."""
    info, both = structure(row["info"]), structure(row["summaries"])
    are_two = isinstance(both, list) and len(both) == 2 and all(isinstance(one, dict) for one in both)
    if not isinstance(info, dict) or not are_two:
        raise DataError("fields 'info' and 'summaries' are not an object and a list of two summaries")
    if has_content(info.get("post")):
        subreddit = f"r/{info['subreddit']}" if has_content(info.get("subreddit")) else None
        parts = {"SUBREDDIT": subreddit, "TITLE": info.get("title"), "POST": info["post"]}
    else:
        parts = {"TITLE": info.get("title"), "ARTICLE": text(info, "article")}
    post = "\n\n".join(f"{name}: {value}" for name, value in parts.items() if has_content(value))
    rest = take(row, "info", "summaries", "choice", "batch", "extra") | {"prompt": asked(f"{post}\n\nTL;DR:")}
    first, second = (text(one, "text").strip() for one in both)
    return labelled(rest, first, second, 2 if choice(row, "choice") else 1)


def _by_strength(rest: dict[str, Any], first: str, second: str, strength: float) -> Candidates:
    return Candidates(rest, [(first, max(-strength, 0.0)), (second, max(strength, 0.0))])


def _strength(row: Row, name: str) -> float:
    strength = number(row, name)
    if not -3 <= strength <= 3:
        raise DataError(f"field '{name}' is {strength:g}: expected -3 to 3")
    return strength


def _extra_id_turns(prompt: str) -> list[Message]:
    first, *turns = _TURN.split(prompt)
    said = [("user", first)] if first.strip() or not turns else []
    said += [(who.lower(), turn) for who, turn in zip(turns[::2], turns[1::2], strict=True)]
    if said[-1][0] == "assistant" and not said[-1][1].strip():  # the place of the answer
        said.pop()
    return [_message(role, turn) for role, turn in said]


def _list_in_text(row: Row, name: str) -> list[Any]:
    value = structure(row[name])
    if isinstance(value, str):
        raise DataError(f"field '{name}' is not a JSON list of turns")
    if not isinstance(value, list) or not all(isinstance(turn, str) for turn in value):
        raise DataError(f"field '{name}' is {kind(value)} with something other than text: expected a list of turns")
    return value


def _message(role: str, content: str) -> Message:
    return Message(role=role, content=content)
