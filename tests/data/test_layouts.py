"""A row of each published layout gives the pair that it means; ambiguous rows and ties give none."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkd.data.formats import decoded, read_pair, unread
from prefkd.data.layouts import LAYOUTS, find_layout, tools
from prefkd.data.layouts.candidates import Candidates, NoPreference, pairs_of
from prefkd.data.layouts.unpaired import paired
from prefkd.data.pairs import DataConfig, load_pairs
from prefkd.data.reading import FileFormats, Reader
from prefkd.errors import DataError


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def parts(text):
    return [{"type": "text", "text": text, "image": None, "mimeType": None}]


SYSTEM = {"role": "system", "content": "Be brief."}
TALK = [user("Hi"), assistant("Hello!"), user("Why?")]
WHY = [user("Why?")]

# name of the layout (None: a form of its own), row, prompt; the answers are always these two.
GOOD, BAD = "Because.", "No."
ROWS = {
    "PKU-SafeRLHF": (
        "pku_better",
        {
            "prompt": "Why?",
            "prompt_source": "Alpaca3-70B",
            "response_0": BAD,
            "response_1": GOOD,
            "response_0_source": "Alpaca-7B",
            "response_1_source": "Alpaca2-7B",
            "is_response_0_safe": True,
            "is_response_1_safe": False,
            "response_0_harm_category": {"Insulting": False, "Violence": True},
            "response_1_harm_category": {"Insulting": False, "Violence": False},
            "response_0_severity_level": 0,
            "response_1_severity_level": 2,
            "better_response_id": 1,
            "safer_response_id": 0,
            "response_0_sha256": "9a",
            "response_1_sha256": "7b",
        },
        WHY,
    ),
    "SHP": (
        "shp",
        {
            "post_id": "qt3nxl",
            "domain": "askculinary_train",
            "upvote_ratio": 0.98,
            "history": "Why?",
            "c_root_id_A": "hkh25sc",
            "c_root_id_B": "hkh25lp",
            "created_at_utc_A": 1636822112,
            "created_at_utc_B": 1636822110,
            "score_A": 340,
            "score_B": 166,
            "human_ref_A": GOOD,
            "human_ref_B": BAD,
            "labels": 1,
            "seconds_difference": 2.0,
            "score_ratio": 2.04,
        },
        WHY,
    ),
    "HelpSteer2": (
        "helpsteer2",
        {
            "split": "train",
            "prompt": "Hi\n<extra_id_1>Assistant\nHello!\n<extra_id_1>User\nWhy?",
            "response_1": BAD,
            "response_2": GOOD,
            "preference_strength": 2,
            "preference_statement": "Response 2 is better.",
            "preference_elaboration": "It answers.",
            "three_most_similar_preferences": [{"statement": "x"}],
            "all_preferences_unprocessed": [{"strength": 2}],
        },
        TALK,
    ),
    "HelpSteer3": (
        "helpsteer3",
        {
            "domain": "general",
            "language": "english",
            "context": TALK,
            "response1": GOOD,
            "response2": BAD,
            "overall_preference": -1,
            "individual_preference": [{"score": -1, "reasoning": "Better.", "feedback1": "a", "feedback2": "b"}],
        },
        TALK,
    ),
    "arena-human-preference-140k": (
        "arena",
        {
            "id": "0001",
            "model_a": "m1",
            "model_b": "m2",
            "winner": "model_b",
            "evaluation_session_id": "s",
            "evaluation_order": 1,
            "conversation_a": [user(parts("Why?")), assistant(parts(BAD))],
            "conversation_b": [user(parts("Why?")), assistant(parts(GOOD))],
            "full_conversation": [{"user": user(parts("Why?")), "model_side_a": assistant(parts(BAD))}],
            "conv_metadata": {"sum_user_tokens": 3},
            "category_tag": {"math_v0.1": {"math": False}},
            "language": "en",
            "is_code": False,
            "timestamp": 1.7e9,
        },
        WHY,
    ),
    "chatbot_arena_conversations": (
        "arena",
        {
            "question_id": "58",
            "model_a": "m1",
            "model_b": "m2",
            "winner": "model_a",
            "judge": "arena_user_973",
            "conversation_a": [user("Why?"), assistant(GOOD)],
            "conversation_b": [user("Why?"), assistant(BAD)],
            "turn": 1,
            "anony": True,
            "language": "English",
            "tstamp": 1682351591.1,
            "openai_moderation": {"flagged": False},
            "toxic_chat_tag": {"t5": {"flagged": False}},
        },
        WHY,
    ),
    "lmsys-arena-human-preference-55k": (
        "arena_text",
        {
            "id": "30192",
            "model_a": "gpt-4",
            "model_b": "gpt-3",
            "prompt": '["Hi","Why?"]',
            "response_a": json.dumps(["Hello!", GOOD]),
            "response_b": json.dumps(["Hello!", BAD]),
            "winner_model_a": 1,
            "winner_model_b": 0,
            "winner_tie": 0,
        },
        TALK,
    ),
    "webgpt_comparisons": (
        "webgpt",
        {
            "question": {"dataset": "triviaqa", "id": "q1", "full_text": "Why?"},
            "quotes_0": {"title": ["t"], "extract": ["e"]},
            "answer_0": GOOD,
            "tokens_0": {"prefix": [1], "completion": [2]},
            "score_0": 0.5,
            "quotes_1": {"title": ["t"], "extract": ["e"]},
            "answer_1": BAD,
            "tokens_1": {"prefix": [1], "completion": [2]},
            "score_1": -0.5,
        },
        WHY,
    ),
    "summarize_from_feedback": (
        "summaries",
        {
            "info": {
                "id": "t3_34xale",
                "post": "My boyfriend...",
                "title": "Why?",
                "subreddit": "relationships",
                "site": None,
                "article": None,
            },
            "summaries": [
                {"text": " No.", "policy": "sup1", "note": None},
                {"text": " Because.", "policy": "ref", "note": "ok"},
            ],
            "choice": 1,
            "worker": "w",
            "batch": "batch3.json",
            "split": "train",
            "extra": {"confidence": None},
        },
        [user("SUBREDDIT: r/relationships\n\nTITLE: Why?\n\nPOST: My boyfriend...\n\nTL;DR:")],
    ),
    "stack-exchange-paired": (
        "question",
        {
            "qid": 1,
            "question": "Why?",
            "date": "2010/01/01",
            "metadata": ["https://x"],
            "response_j": GOOD,
            "response_k": BAD,
        },
        WHY,
    ),
    "CValues-Comparison": (
        "answer_names",
        {"prompt": "Why?", "pos_resp": GOOD, "neg_resp": BAD, "pos_type": "a", "neg_type": "b"},
        WHY,
    ),
    "Nectar": (
        "nectar",
        {
            "prompt": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Why?\n\nAssistant: ",
            "answers": [
                {"answer": "Hm.", "model": "a", "rank": 2.0},
                {"answer": BAD, "model": "b", "rank": 7.0},
                {"answer": GOOD, "model": "c", "rank": 1.0},
            ],
            "turns": 2,
            "num_responses": 3,
            "source": ["sharegpt"],
            "good_natured": True,
        },
        TALK,
    ),
    "openbmb/UltraFeedback": (
        "ultrafeedback_completions",
        {
            "source": "evol_instruct",
            "instruction": "Why?",
            "models": ["a", "b", "c"],
            "completions": [
                {
                    "response": text,
                    "overall_score": score,
                    "fine-grained_score": score / 2,
                    "model": "a",
                    "critique": "c",
                    "annotations": {"honesty": {"Rating": "5"}},
                    "custom_system_prompt": "s",
                    "principle": "honesty",
                }
                for text, score in ((BAD, 3.0), ("Hm.", 5.5), (GOOD, 8.5))
            ],
            "correct_answers": ["None"],
            "incorrect_answers": ["None"],
        },
        WHY,
    ),
    "NeMo-RL": (
        "nemo_rl",
        {
            "context": TALK,
            "completions": [{"rank": 0, "completion": [assistant(GOOD)]}, {"rank": 1, "completion": [assistant(BAD)]}],
            "task_name": "preference",
        },
        TALK,
    ),
    "OpenAI": (
        "openai",
        {
            "input": {"messages": TALK, "tools": [], "parallel_tool_calls": True},
            "preferred_output": [assistant(GOOD)],
            "non_preferred_output": [assistant(BAD)],
        },
        TALK,
    ),
    "ms-swift": ("ms_swift", {"messages": [SYSTEM, *TALK, assistant(GOOD)], "rejected_response": BAD}, [SYSTEM, *TALK]),
    "ms-swift, whole conversations": (
        "ms_swift",
        {"messages": [*TALK, assistant(GOOD)], "rejected_messages": [*TALK, assistant(BAD)]},
        TALK,
    ),
    "axolotl": ("axolotl", {"messages": TALK, "chosen": assistant(GOOD), "rejected": assistant(BAD)}, TALK),
    "axolotl argilla": ("alpaca", {"instruction": "Why?", "chosen_response": GOOD, "rejected_response": BAD}, WHY),
    "hh_rlhf_cn": (
        "hh_rlhf_cn",
        {
            "context": [
                {"role": "human", "text": "Hi"},
                {"role": "assistant", "text": "Hello!"},
                {"role": "human", "text": "Why?"},
            ],
            "chosen": {"role": "assistant", "text": GOOD},
            "rejected": {"role": "assistant", "text": BAD},
        },
        TALK,
    ),
    "UltraInteract": (
        "ultrainteract",
        {
            "task": "Coding",
            "dataset": "codecontest",
            "id": "1",
            "parent_id": "0",
            "chosen": GOOD,
            "rejected": BAD,
            "trajectory": [
                {"from": "user", "value": "Hi"},
                {"from": "assistant", "value": "Hello!"},
                {"from": "user", "value": "Why?"},
            ],
        },
        TALK,
    ),
    "Alpaca": (
        "alpaca",
        {
            "instruction": "Add.",
            "input": "1 + 1",
            "chosen": GOOD,
            "rejected": BAD,
            "system": "Be brief.",
            "history": [["Hi", "Hello!"]],
        },
        [SYSTEM, user("Hi"), assistant("Hello!"), user("Add.\n1 + 1")],
    ),
    "llamafactory/ultrafeedback_binarized": (
        "alpaca",
        {"instruction": "Why?", "chosen": GOOD, "rejected": BAD},
        WHY,
    ),
    "orca_dpo_pairs": (
        "question",
        {"system": "Be brief.", "question": "Why?", "chosen": GOOD, "rejected": BAD},
        [SYSTEM, *WHY],
    ),
    "distilabel-intel-orca-dpo-pairs": (
        "question",
        {
            "system": "",
            "input": "Why?",
            "chosen": GOOD,
            "rejected": BAD,
            "generations": [],
            "order": ["a", "b"],
            "labelling_model": "gpt-4",
            "labelling_prompt": [],
            "raw_labelling_response": "",
            "rating": [9.0, 3.0],
            "rationale": "",
            "status": "tie",
            "original_chosen": "",
            "original_rejected": "",
            "chosen_score": 9.0,
            "in_gsm8k_train": False,
        },
        WHY,
    ),
    "Tulu 3": (
        None,
        {
            "id": "1",
            "prompt": "Hi",
            "chosen": [*TALK, assistant(GOOD)],
            "rejected": [*TALK, assistant(BAD)],
            "source": "x",
        },
        TALK,
    ),
    "capybara": (
        None,
        {
            "source": "x",
            "conversation": [{"input": "Hi", "output": "Hello!"}, {"input": "Why?", "output": "Else."}],
            "original_response": "",
            "prompt": "Why?",
            "chosen": [*TALK, assistant(GOOD)],
            "rejected": [*TALK, assistant(BAD)],
            "rating_chosen": 5,
            "rating_rejected": 2,
            "chosen_model": "a",
            "rejected_model": "b",
        },
        TALK,
    ),
    "orpo-dpo-mix": (
        None,
        {
            "source": "x",
            "chosen": [*WHY, assistant(GOOD)],
            "rejected": [*WHY, assistant(BAD)],
            "prompt": "Why?",
            "question": "Why?",
        },
        WHY,
    ),
    "stack-exchange-preferences": (
        "stack_exchange",
        {
            "qid": 1,
            "question": "Why?",
            "answers": [
                {"answer_id": 1, "author": "x", "author_id": 2, "pm_score": 1, "selected": False, "text": BAD},
                {"answer_id": 2, "author": "y", "author_id": 3, "pm_score": 5, "selected": True, "text": GOOD},
            ],
            "date": "2010/01/01",
            "metadata": ["https://x"],
        },
        WHY,
    ),
    "distilabel": (
        "distilabel",
        {
            "instruction": "Why?",
            "generations": [BAD, GOOD],
            "ratings": [2.0, 5.0],
            "rationales": ["a", "b"],
            "generation_models": ["a", "b"],
            "model_name": "m",
        },
        WHY,
    ),
    "reward-bench-2": (
        "answer_lists",
        {
            "id": "1",
            "prompt": "Why?",
            "chosen": [GOOD],
            "rejected": [BAD, "x", "y"],
            "num_correct": 1,
            "num_incorrect": 3,
            "total_completions": 4,
            "models": ["a"],
            "subset": "Focus",
            "additional_metadata": None,
        },
        WHY,
    ),
    "PKU-SafeRLHF, harm alone": (
        "pku_safer",
        {"prompt": "Why?", "response_0": GOOD, "response_1": BAD, "safer_response_id": 0},
        WHY,
    ),
    "ms-swift, query and response": (
        "question",
        {
            "system": "Be brief.",
            "history": [["Hi", "Hello!"]],
            "query": "Why?",
            "response": GOOD,
            "rejected_response": BAD,
        },
        [SYSTEM, *TALK],
    ),
    "arena-human-preference-100k": (
        "arena",
        {
            "question_id": "q",
            "model_a": "m",
            "model_b": "n",
            "winner": "model_b",
            "judge": "j",
            "conversation_a": [*WHY, assistant(BAD)],
            "conversation_b": [*WHY, assistant(GOOD)],
            "turn": 1,
            "anony": True,
            "language": "English",
            "tstamp": 1.0,
            "conv_metadata": {"sum_user_tokens": 3},
            "is_code": False,
            "is_refusal": False,
            "dedup_tag": {"high_freq": False, "sampled": True},
            "category_tag": {"creative_writing_v0.1": {"creative_writing": False}},
            "judge_hash": "h",
        },
        WHY,
    ),
    "messages as text": (
        None,
        {"question": "Why?", "chosen": json.dumps([*WHY, assistant(GOOD)]), "rejected": str([*WHY, assistant(BAD)])},
        WHY,
    ),
}


def pair_of(row, **settings):
    layout, [one] = Reader(**settings).unfold(row)
    name = "conversational" if layout else FileFormats(None).of(one)
    return read_pair(one, name), unread(one, name)


@pytest.mark.parametrize(("layout", "row", "prompt"), ROWS.values(), ids=ROWS)
def test_a_published_row_gives_its_pair(layout, row, prompt):
    assert find_layout(decoded(row)) == layout
    pair, left = pair_of(row)
    assert pair[:3] == (prompt, GOOD, BAD)
    assert left == []


@pytest.mark.parametrize("name", ROWS)
def test_a_row_can_be_named_and_survives_a_file(tmp_path, name):
    layout, row, prompt = ROWS[name]
    for file in ("p.jsonl", "p.json"):
        (tmp_path / file).write_text(json.dumps(row if file == "p.jsonl" else [row]))
        config = DataConfig(str(tmp_path / file), format=layout or "auto", held_out_fraction=0.0)
        splits = load_pairs(config)
        assert splits.train[0]["prompt"] == prompt
        assert (splits.train[0]["chosen"], splits.train[0]["rejected"]) == (GOOD, BAD)
        assert list(splits.formats.values()) == [1]
        assert layout is None or splits.formats == {layout: 1}


def test_the_safer_answer_is_asked_for_by_name():
    row = ROWS["PKU-SafeRLHF"][1]
    pair, left = pair_of(row, format="pku_safer")
    assert (pair.chosen, pair.rejected, left) == (BAD, GOOD, [])


TIES = {
    "HelpSteer2": {"preference_strength": 0},
    "HelpSteer3": {"overall_preference": 0},
    "arena-human-preference-140k": {"winner": "both_bad"},
    "chatbot_arena_conversations": {"winner": "tie (bothbad)"},
    "lmsys-arena-human-preference-55k": {"winner_model_a": 0, "winner_tie": 1},
    "webgpt_comparisons": {"score_1": 0.5},
    "Nectar": {"answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 1}]},
}


@pytest.mark.parametrize("name", TIES)
def test_a_tie_is_no_pair(name):
    with pytest.raises(NoPreference, match="no answer is better than another"):
        pair_of(ROWS[name][1] | TIES[name])


BAD_ROWS = {
    "no label": ("SHP", {"labels": None}, "field 'labels' is missing"),
    "wrong label": ("PKU-SafeRLHF", {"better_response_id": 2}, "field 'better_response_id' is 2: expected one of 0, 1"),
    "label in words": ("SHP", {"labels": "A"}, "field 'labels' is text: expected a number"),
    "ratio that turns the pair": ("SHP", {"score_ratio": -1.0}, "field 'score_ratio' is -1: expected a ratio above 0"),
    "no winner": ("chatbot_arena_conversations", {"winner": float("nan")}, "field 'winner' is missing"),
    "unknown winner": ("chatbot_arena_conversations", {"winner": "A"}, "field 'winner' is 'a': expected model_a"),
    "no strength": ("HelpSteer2", {"preference_strength": -100}, "field 'preference_strength' is -100: expected -3"),
    "summaries as texts": ("summarize_from_feedback", {"summaries": ["a", "b"]}, "fields 'info' and 'summaries' are"),
    "empty other name": ("CValues-Comparison", {"neg_resp": ""}, "field 'rejected' is empty"),
    "missing other name": ("CValues-Comparison", {"neg_resp": None}, "field 'neg_resp' is missing"),
    "no rejected response": ("ms-swift", {"rejected_response": None}, "field 'rejected_response' is missing"),
    "no context": ("hh_rlhf_cn", {"context": None}, "field 'context' is missing"),
    "equal lists": ("reward-bench-2", {"rejected": [GOOD]}, "fields 'chosen' and 'rejected' are the same text"),
    "no answer": ("SHP", {"human_ref_B": None}, "field 'human_ref_B' is missing"),
    "one answer": (
        "Nectar",
        {"answers": [{"answer": "a", "rank": 1}]},
        "field 'answers' has 1 answers: expected two or more",
    ),
    "no rank": ("Nectar", {"answers": [{"answer": "a"}] * 2}, "field 'rank' is missing"),
    "tools": (
        "OpenAI",
        {"input": {"messages": TALK, "tools": [{"type": "function"}]}},
        "field 'tools' is not a list of tools",
    ),
    "no turns": (
        "lmsys-arena-human-preference-55k",
        {"response_a": "[null]"},
        "field 'response_a' is a list with something",
    ),
    "two winners": (
        "lmsys-arena-human-preference-55k",
        {"winner_tie": 1},
        "are [1, 0, 1]: expected one of them to be 1",
    ),
    "other histories": (
        "chatbot_arena_conversations",
        {
            "conversation_a": [*TALK, assistant("a")],
            "conversation_b": [user("Hi"), assistant("Yo"), user("Why?"), assistant("b")],
        },
        "fields 'chosen' and 'rejected' differ before their last answer",
    ),
    "image": ("Alpaca", {"images": ["a.png"]}, "field 'images' cannot be read"),
    "history": ("Alpaca", {"history": ["Hi"]}, "field 'history' is not a list of [user, assistant]"),
}


@pytest.mark.parametrize(("name", "change", "problem"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_of_a_layout_is_told_by_its_field(name, change, problem):
    with pytest.raises(DataError) as error:
        pair_of(ROWS[name][1] | change)
    assert problem in str(error.value)


def test_a_row_of_two_layouts_is_refused_until_one_is_named():
    row = ROWS["Nectar"][1] | ROWS["PKU-SafeRLHF"][1]
    with pytest.raises(DataError, match="it has the columns of pku_better and of nectar: set data"):
        find_layout(row)
    assert pair_of(row, format="pku_better")[0].chosen == GOOD


def test_the_first_name_of_a_question_is_taken_and_another_is_not_dropped():
    row = {"question": "Why?", "query": "Why?", "chosen": GOOD, "rejected": BAD}
    assert pair_of(row)[0].prompt == WHY
    with pytest.raises(DataError, match="field 'query' cannot be read"):
        pair_of(row | {"query": "Who?"})


def test_every_layout_has_a_row():
    assert {layout for layout, *_ in ROWS.values()} == {*LAYOUTS, None}


# ---------------------------------------------------------------------------------------------------- pairing

answers = st.lists(st.tuples(st.text(max_size=3), st.integers(-3, 3).map(float)), min_size=2, max_size=6)


@settings(max_examples=60, deadline=None)
@given(answers=answers, gap=st.sampled_from([0.0, 1.0, 2.5]))
def test_pairs_of_ranked_answers(answers, gap):
    good = [(one, two) for one in answers for two in answers if one[1] > two[1] and one[1] - two[1] >= gap]
    candidates = Candidates({"prompt": "Why?"}, answers)
    if not good:
        with pytest.raises(NoPreference):
            pairs_of(candidates, "all", gap)
        return
    found = {pairing: pairs_of(candidates, pairing, gap) for pairing in ("all", "best_worst", "best_random")}
    assert sorted((row["chosen"], row["rejected"]) for row in found["all"]) == sorted((a[0], b[0]) for a, b in good)
    best, worst = max(worth for _, worth in answers), min(worth for _, worth in answers)
    [widest], [drawn] = found["best_worst"], found["best_random"]
    assert (widest["chosen"], best) in answers and (widest["rejected"], worst) in answers
    assert (drawn["chosen"], best) in answers and drawn in found["all"]
    assert pairs_of(candidates, "best_random", gap) == [drawn]


def test_ranked_answers_and_ties_in_a_file(tmp_path):
    tie = ROWS["Nectar"][1] | TIES["Nectar"]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (ROWS["Nectar"][1], tie)))
    splits = load_pairs(DataConfig(str(path), pairing="all", held_out_fraction=0.0))
    assert splits.train["file"][:] == ["p.jsonl", "p.jsonl, pair 2", "p.jsonl, pair 3"]
    assert splits.train["chosen"][:] == [GOOD, GOOD, "Hm."]
    assert splits.ties == splits.report["rows_without_preference"] == 1
    assert "1 without a preference" in splits.omissions
    with pytest.raises(DataError, match="no pairs are left"):
        load_pairs(DataConfig(str(path), minimum_gap=7.0, held_out_fraction=0.0))


# ----------------------------------------------------------------------------------------------- columns by name

COLUMNS = {
    "DPO-zh-en-emoji": (
        {"prompt": "question", "chosen": "answer_zh", "rejected": "answer_en"},
        {"question": "Why?", "answer_zh": GOOD, "answer_en": BAD},
        WHY,
    ),
    "nested": (
        {"prompt": "input.messages", "chosen": "outputs.0.text", "rejected": "outputs.1.text", "system": "a.b"},
        {"input": {"messages": TALK}, "outputs": [{"text": GOOD, "score": 1}, {"text": BAD}], "a.b": "Be brief."},
        [SYSTEM, *TALK],
    ),
    "a layout's": (
        {"human_ref_A": "a", "human_ref_B": "b", "labels": "first_is_better", "history": "post"},
        {"a": GOOD, "b": BAD, "first_is_better": True, "post": "Why?"},
        WHY,
    ),
    "conversations": (
        {"conversations": "talk", "chosen": "yes", "rejected": "no"},
        {
            "talk": [{"from": "human", "value": "Why?"}],
            "yes": {"from": "gpt", "value": GOOD},
            "no": {"from": "gpt", "value": BAD},
        },
        WHY,
    ),
}


@pytest.mark.parametrize(("columns", "row", "prompt"), COLUMNS.values(), ids=COLUMNS)
def test_columns_are_read_by_name(columns, row, prompt):
    pair, left = pair_of(row, columns=columns)
    assert (*pair[:3], left) == (prompt, GOOD, BAD, [])


def test_a_column_that_is_missing_or_takes_a_name_is_told():
    columns = {"prompt": "question", "chosen": "answers.0", "rejected": "answers.1"}
    row = {"question": "Why?", "prompt": "Who?", "answers": [GOOD, BAD, "Hm."]}
    pair, left = pair_of(row, columns=columns)
    assert pair[:3] == (WHY, GOOD, BAD)
    assert left == ["prompt of the file", "answers"]
    for broken in ({"answers": [GOOD]}, {"answers": None}, {"answers": "yes"}):
        with pytest.raises(DataError, match=r"column 'answers\.1' is missing|column 'answers\.0' is missing"):
            pair_of(row | broken, columns=columns)


# ----------------------------------------------------------------------------- answers that were judged one by one

judged = st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=20)


@settings(max_examples=60, deadline=None)
@given(rows=judged)
def test_unpaired_answers_meet_those_of_the_other_label(rows):
    """Each is in one pair at most, and all that can be paired are."""
    numbered = [(i, {"prompt": prompt, "completion": i, "label": good}) for i, (prompt, good) in enumerate(rows)]
    found = list(paired(numbered))
    pairs = [row for _, row in found if isinstance(row, dict)]
    used = [answer for row in pairs for answer in (row["chosen"], row["rejected"])]
    assert len(used) == len(set(used)) and len(used) + len(found) - len(pairs) == len(rows)
    for row in pairs:
        assert rows[row["chosen"]] == (row["prompt"], True) and rows[row["rejected"]] == (row["prompt"], False)
    for prompt in "abc":
        good, bad = (rows.count((prompt, label)) for label in (True, False))
        assert sum(row["prompt"] == prompt for row in pairs) == min(good, bad)


JUDGED = {
    "axolotl": ({"system": "Be brief.", "question": "Why?"}, {"completion": GOOD}, {"completion": BAD}),
    "LLaMA-Factory": ({}, {"messages": [*WHY, assistant(GOOD)]}, {"messages": [*WHY, assistant(BAD)]}),
    "ShareGPT": (
        {},
        *(
            {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": answer}]}
            for answer in (GOOD, BAD)
        ),
    ),
    "kto_tag": ({"instruction": "Why?", "input": ""}, {"output": GOOD}, {"output": BAD}),
    "messages as text": ({}, *({"messages": json.dumps([*WHY, assistant(answer)])} for answer in (GOOD, BAD))),
    "BeaverTails": ({"prompt": "Why?", "category": {"privacy": True}}, {"response": GOOD}, {"response": BAD}),
}


@pytest.mark.parametrize("name", JUDGED)
def test_answers_judged_one_by_one_are_known_in_every_published_form(name):
    asked, good, bad = JUDGED[name]
    label = {"BeaverTails": "is_safe", "kto_tag": "kto_tag"}.get(name, "label")
    rows = [(1, asked | good | {label: True}), (2, {"prompt": "Who?"}), (3, asked | bad | {label: False})]
    (_, other), (number, row) = paired(rows)
    assert (other, number) == ({"prompt": "Who?"}, 3)
    pair, left = pair_of(row)
    assert (pair.prompt[-1], pair.chosen, pair.rejected, left) == (*WHY, GOOD, BAD, [])


def test_a_label_that_is_none_is_told_and_one_next_to_a_rival_is_no_label():
    unclear = {"prompt": "Why?", "completion": GOOD, "label": "good"}
    whole = {"messages": [*WHY, assistant(GOOD)], "rejected_response": BAD, "label": True}
    named = {"prompt": "Why?", "response": GOOD, "worse": BAD, "label": 1}
    (_, error), other = paired([(1, unclear), (2, whole)])
    assert str(error) == "field 'label' is 'good': expected true or false"
    assert other == (2, whole)
    assert list(paired([(1, named)], {"chosen": "response", "rejected": "worse"})) == [(1, named)]


@pytest.mark.parametrize("field", ["tools", "functions"])
def test_answers_under_different_tools_are_no_pair(field):
    def row(number, name, good):
        return number, {"prompt": "Why?", "completion": GOOD if good else BAD, "label": good, field: [{"name": name}]}

    *pairs, (_, left) = paired([row(1, "look", True), row(2, "send", False), row(3, "look", False)])
    assert [number for number, _ in pairs] == [3] and isinstance(left, NoPreference)


def test_columns_name_an_answer_and_its_label(tmp_path):
    rows = [{"q": {"text": "Why?"}, "said": said, "ok": ok} for said, ok in ((GOOD, 1), (BAD, 0), ("Hm.", 1))]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"prompt": "q.text", "completion": "said", "label": "ok"}
    splits = load_pairs(DataConfig(str(tmp_path / "p.jsonl"), columns=columns, held_out_fraction=0.0))
    [pair] = splits.train
    assert (pair["prompt"], pair["chosen"], pair["rejected"], splits.ties) == (WHY, GOOD, BAD, 1)


def test_unpaired_rows_of_a_file_become_pairs_and_the_rest_is_counted(tmp_path):
    rows = [
        {"prompt": "Why?", "completion": GOOD, "label": True},
        {"prompt": "Who?", "completion": "I.", "label": "true"},
        {"prompt": "Why?", "completion": BAD, "label": 0},
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = load_pairs(DataConfig(str(tmp_path / "p.jsonl"), held_out_fraction=0.0))
    [pair] = splits.train
    assert (pair["prompt"], pair["chosen"], pair["rejected"], pair["row"]) == (WHY, GOOD, BAD, 3)
    assert splits.ties == 1


SPELT = {
    "answers as JSON": ("Nectar", lambda row: row | {"answers": json.dumps(row["answers"])}),
    "text labels": ("SHP", lambda row: {name: str(value) for name, value in row.items()}),
    "conversations as text": (
        "chatbot_arena_conversations",
        lambda row: row | {"conversation_a": str(row["conversation_a"])},
    ),
    "context as JSON": ("HelpSteer3", lambda row: row | {"context": json.dumps(row["context"])}),
    "strength as text": ("HelpSteer2", lambda row: row | {"preference_strength": "2"}),
    "label as a word": ("SHP", lambda row: row | {"labels": "True", "score_ratio": float("nan")}),
    "winner in capitals": ("chatbot_arena_conversations", lambda row: row | {"winner": "Model_A "}),
    "objects as text": (
        "webgpt_comparisons",
        lambda row: {name: str(value) if name == "question" else value for name, value in row.items()},
    ),
    "lists as Python writes them": (
        "distilabel",
        lambda row: row | {"ratings": "[2.0, 5.0]", "generations": str([BAD, GOOD])},
    ),
    "place of the answer": ("HelpSteer2", lambda row: row | {"prompt": row["prompt"] + "\n<extra_id_1>Assistant\n"}),
    "first speaker named": ("HelpSteer2", lambda row: row | {"prompt": "<extra_id_1>User\n" + row["prompt"]}),
    "line ends of Windows": ("HelpSteer2", lambda row: row | {"prompt": row["prompt"].replace("\n", "\r\n")}),
    "several rejected": ("ms-swift", lambda row: row | {"rejected_response": [BAD, "x"]}),
    "one list, one text": ("reward-bench-2", lambda row: row | {"chosen": GOOD}),
    "history as text": ("Alpaca", lambda row: row | {"history": '[["Hi", "Hello!"]]'}),
    "JSON in JSON": ("messages as text", lambda row: row | {"chosen": json.dumps(row["chosen"])}),
}


@pytest.mark.parametrize(("name", "change"), SPELT.values(), ids=SPELT)
def test_a_published_row_in_another_spelling_gives_its_pair(name, change):
    _, row, prompt = ROWS[name]
    assert pair_of(change(row))[0][:3] == (prompt, GOOD, BAD)


@pytest.mark.parametrize("names", tools.ANSWERS[1:])
def test_other_names_of_two_answers_are_known(names):
    row = {"prompt": "Why?", names[0]: GOOD, names[1]: BAD}
    assert pair_of(row)[0][:3] == (WHY, GOOD, BAD)


def test_a_transcript_may_begin_with_a_system_message():
    start = "\n\nSystem: Be brief.\n\nHuman: Why?\n\nAssistant:"
    whole = {"chosen": f"{start} {GOOD}", "rejected": f"{start} {BAD}"}
    for row in (whole, {"prompt": start, "chosen": GOOD, "rejected": BAD}):
        assert pair_of(row)[0][:3] == ([SYSTEM, *WHY], GOOD, BAD)
    later = {"prompt": "\n\nHuman: a\n\nSystem: b\n\nAssistant:", "chosen": GOOD, "rejected": BAD}
    assert pair_of(later)[0].prompt == [user("a\n\nSystem: b")]
