"""A judge on a real local server that is slow, limits, breaks, refuses and talks nonsense."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("openai", reason="needs the extra judge: pip install 'prefkd[judge]'")

from prefkd.data.formats import Message
from prefkd.errors import PrefkdError
from prefkd.evaluation.judge import Comparison, JudgeConfig, Judgement, combine, judge, parse_verdict
from prefkd.evaluation.records import Records
from prefkd.ranks import Ranks
from tests.evaluation.judge_server import JudgeServer, judge_server

LONG, SHORT = "a long answer", "short"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.02)
    with judge_server() as server:
        yield server


def comparisons(*answers: tuple[str, str]) -> list[Comparison]:
    return [
        Comparison(f"f:{i}", [Message(role="user", content=f"Question {i}?")], own, other)
        for i, (own, other) in enumerate(answers)
    ]


def ask(server: JudgeServer, folder: Path, pairs: list[Comparison], **settings) -> Judgement:
    settings = {"timeout": 20.0, "retries": 3, "parallel": 1} | settings
    config = JudgeConfig(server.url, "the-judge", api_key_variable="JUDGE_KEY", **settings)
    assert list(config.problems()) == []
    records = Records(folder / "judge.jsonl", config.fingerprint(), Ranks(0, 1, torch.device("cpu")))
    return judge(pairs, config, records)


def test_both_orders_are_asked_and_ties_counted(server, tmp_path):
    found = ask(server, tmp_path, comparisons((LONG, SHORT), (SHORT, LONG), ("equal", "sized"), ("same", "same")))
    assert found.wins == {"f:0": 1.0, "f:1": 0.0, "f:2": 0.5, "f:3": 0.5}
    assert found.counts == {"ties": 1, "same answer": 1}
    assert len(server.requests) == 6
    assert all(request["model"] == "the-judge" and request["temperature"] == 0.0 for request in server.requests)
    first, second = (request["messages"][0]["content"] for request in server.requests[:2])
    assert "Question 0?" in first and f"<answer_a>\n{LONG}\n" in first and f"<answer_a>\n{SHORT}\n" in second


def test_a_judge_that_likes_a_place_decides_nothing(server, tmp_path):
    server.always = "A"
    found = ask(server, tmp_path, comparisons((LONG, SHORT), (SHORT, LONG)))
    assert found.wins == {"f:0": 0.5, "f:1": 0.5}
    assert found.counts == {"undecided": 2}


def test_a_judge_reads_calls_of_tools(server, tmp_path):
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    [pair] = comparisons((LONG, SHORT))
    called = Message(role="assistant", content="", tool_calls=[call])
    ask(server, tmp_path, [pair._replace(messages=[*pair.messages, called, Message(role="tool", content="Sunny")])])
    read = server.requests[0]["messages"][0]["content"]
    assert '{"name": "weather", "arguments": {"city": "Oslo"}}\n\nTool:\nSunny' in read


def test_what_may_pass_is_tried_again(server, tmp_path):
    server.script = ["slow", "limit", "", "broken", "limit", "limit"]
    found = ask(server, tmp_path, comparisons((LONG, SHORT), (SHORT, LONG)), timeout=1.0)
    assert found.wins == {"f:0": 1.0, "f:1": 0.0}
    assert len(server.requests) >= 4 + 5


@pytest.mark.parametrize("nonsense", ["html", "half", "empty", "chatter"])
def test_nonsense_is_counted(server, tmp_path, nonsense):
    server.script = ["", nonsense]
    found = ask(server, tmp_path, comparisons((LONG, SHORT), (SHORT, LONG)))
    assert found.wins == {"f:1": 0.0}
    assert found.counts == {"unreadable": 1}
    assert len(server.requests) == 4  # asked once: it would say the same


def test_what_was_asked_is_not_asked_again(server, tmp_path):
    pairs = comparisons((LONG, SHORT), (SHORT, LONG), (LONG, "x"))
    server.script = ["", "", *["broken"] * 2]
    found = ask(server, tmp_path, pairs, retries=1)
    assert found.wins.keys() == {"f:0", "f:2"} and found.counts == {"unanswered": 1}
    before = len(server.requests)
    assert ask(server, tmp_path, pairs).wins == {"f:0": 1.0, "f:1": 0.0, "f:2": 1.0}
    assert len(server.requests) == before + 1
    ask(
        server,
        tmp_path,
        pairs,
        instruction="{prompt} {answer_a} {answer_b} <answer_a>\nx\n</answer_a><answer_b>\ny\n</answer_b>",
    )
    assert len(server.requests) == before + 1 + 6  # another instruction is another judge


def test_requests_are_bounded_in_number_and_at_a_time(server, tmp_path):
    pairs = comparisons(*[(LONG, f"{i}") for i in range(10)])
    found = ask(server, tmp_path, pairs, max_requests=6, parallel=3)
    assert len(server.requests) == 6 and server.most_under_way <= 3
    assert len(found.wins) == 3 and found.counts == {"not asked": 7}
    assert len(ask(server, tmp_path, pairs, parallel=5).wins) == 10
    assert len(server.requests) == 20 and server.most_under_way <= 5


@pytest.mark.parametrize(
    ("act", "message"),
    [
        ("refuse", "refuses the key in JUDGE_KEY; set another"),
        ("unknown", "has no model the-judge"),
        ("broken", "10 requests in a row failed, the last one: the judge at"),
        ("slow", "10 requests in a row failed, the last one: the judge at"),
    ],
)
def test_a_judge_that_does_not_come_back(server, tmp_path, act, message):
    server.always = act
    pairs = comparisons(*[(LONG, f"{i}") for i in range(20)])
    with pytest.raises(PrefkdError, match=message) as caught:
        ask(server, tmp_path, pairs, retries=0, parallel=5, timeout=0.2)
    assert "sk-secret" not in f"{caught.value} {caught.value.__cause__!r}"
    assert len(server.requests) <= 20


def test_no_server(server, tmp_path):
    server.server_close()
    with pytest.raises(PrefkdError, match="cannot be reached"):
        ask(server, tmp_path, comparisons((LONG, SHORT)), retries=1)


def test_the_key_is_sent_and_kept_nowhere(server, tmp_path):
    ask(server, tmp_path, comparisons((LONG, SHORT)))
    assert server.keys == {"Bearer sk-secret"}
    assert all("sk-secret" not in file.read_text() for file in tmp_path.iterdir())


def test_an_address_with_a_password_or_a_key_is_refused_without_showing_it(server):
    addresses = (server.url.replace("://", "://me:sk-secret@"), f"{server.url}?key=sk-secret", "host:8000")
    for address in addresses:
        [problem] = JudgeConfig(address, "j", api_key_variable="JUDGE_KEY").problems()
        assert problem.startswith("base_url: ") and "is not an address" in problem and "secret" not in problem


def test_the_key_may_lie_in_a_file(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JUDGE_KEY")
    config = JudgeConfig(server.url, "j", api_key_variable="JUDGE_KEY")
    assert list(config.problems()) == [
        "api_key_variable: JUDGE_KEY is neither in the environment nor in .env; set it, or use null for an endpoint "
        "without keys"
    ]
    (tmp_path / ".env").write_text("JUDGE_KEY=from-a-file\n")
    assert list(config.problems()) == []
    ask(server, tmp_path, comparisons((LONG, SHORT)))
    assert server.keys == {"Bearer from-a-file"}


def test_texts_that_look_like_places_are_left_alone(server, tmp_path):
    ask(server, tmp_path, comparisons(("{answer_b} and {prompt}", SHORT)))
    assert "<answer_a>\n{answer_b} and {prompt}\n</answer_a>" in server.requests[0]["messages"][0]["content"]


def test_verdicts():
    assert parse_verdict("[[A]] would be wrong.\n[[b]]") == "B"
    assert parse_verdict("[[ tie ]]") == "tie"
    assert parse_verdict("A is better") is None
    assert combine("A", "B") == 1 and combine("B", "A") == 0
    assert combine("A", "A") == combine("tie", "tie") == combine("A", "tie") == combine("tie", "A") == 0.5
