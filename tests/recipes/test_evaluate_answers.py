"""Answers through the command line: kept, scored again without the models, compared by a reward model and a judge."""

import json
import shutil
from pathlib import Path

import pytest

from prefkd.evaluation import records
from tests.evaluation.test_answers import make_reward_model
from tests.processes import run_processes
from tests.recipes.evaluations import pick, run_evaluation, table
from tests.recipes.two_models import read_rows
from tests.tiny import make_model, write_pairs


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Two models, a reward model, prompts with references and prompts of pairs."""
    folder = tmp_path_factory.mktemp("world")
    make_model(folder / "one", "llama", "byte_level", seed=1)
    make_model(folder / "two", "qwen2", "metaspace", seed=2)
    make_reward_model(folder / "reward", chat=True)
    write_pairs(folder / "pairs.jsonl", 6)
    rows = [{"prompt": f"What is {i}?", "references": ["It is.", str(i)]} for i in range(6)]
    (folder / "bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "my_scorer.py").write_text(
        "def length(answer: str, references: list[str], scale: float = 1.0) -> float:\n"
        "    return len(answer) * scale\n\n\n"
        "def broken(answer: str, references: list[str]) -> float:\n    raise RuntimeError('out of order')\n"
    )
    return folder


def evaluate(world: Path, out: Path, *overrides: str, **how) -> dict:
    settings = f"""
        checkpoints:
          one: {{path: {world}/one, dtype: float32}}
          two: {{path: {world}/two, dtype: float32}}
        baseline: one
        answers:
          bench:
            prompts: {{source: {world}/bench.jsonl}}
            sampling: {{max_new_tokens: 12, batch_size: 2, temperature: 1.0}}
            scorers:
              contains: {{_component_: prefkd.evaluation.scorers.contains}}
              rouge_l: {{_component_: prefkd.evaluation.scorers.rouge_l}}
              words: {{_component_: prefkd.evaluation.scorers.words}}
            reward_model: {{path: {world}/reward}}
        """
    return run_evaluation(settings, out, *overrides, **how)


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "finished"
    evaluate(world, out)
    return out


def answers(out: Path, checkpoint: str, task: str = "bench") -> dict[str, dict]:
    return {row["key"]: row for row in read_rows(out / f"answers/{task}/answers/{checkpoint}.jsonl")}


def test_what_is_kept_and_what_is_made_of_it(finished):
    rows = answers(finished, "two")
    assert sorted(rows) == [f"bench.jsonl:{number}" for number in range(1, 7)]
    row = rows["bench.jsonl:3"]
    assert row["prompt"] == [{"role": "user", "content": "What is 2?"}] and row["checkpoint"] == "two"
    assert row["settings"]["sampling.temperature"] == 1.0 and row["settings"]["sampling.seed"] == 0
    found = table(finished)
    texts = {name: [row["answer"] for row in answers(finished, name).values()] for name in ("one", "two")}
    count = sum(len("".join(c if c.isalnum() or c == "_" else " " for c in text).split()) for text in texts["two"])
    assert pick(found, metric="words", checkpoint="two")["value"] == pytest.approx(count / 6)
    rewards = {
        name: {row["key"]: row["reward"] for row in read_rows(finished / f"answers/bench/rewards/{name}.jsonl")}
        for name in ("one", "two")
    }
    wins = sum(rewards["two"][key] > rewards["one"][key] for key in rewards["one"]) / 6
    assert pick(found, metric="reward_win_rate", checkpoint="two")["value"] == pytest.approx(wins)
    reward = pick(found, metric="reward", checkpoint="two")
    assert reward["value"] == pytest.approx(sum(rewards["two"].values()) / 6)
    assert reward["difference"] == pytest.approx(reward["value"] - sum(rewards["one"].values()) / 6)


def test_scoring_repeats_without_generating(world, finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "out")
    for target in ("prefkd.evaluation.checkpoints.load_causal_lm", "prefkd.evaluation.answers.RewardModel"):
        monkeypatch.setattr(target, lambda *args, **kwargs: pytest.fail("loaded"))
    monkeypatch.chdir(world)
    scorer = "answers.bench.scorers.length={_component_: my_scorer.length, scale: 0.5}"
    found = evaluate(world, tmp_path / "out", scorer)
    lengths = [len(row["answer"]) / 2 for row in answers(finished, "one").values()]
    assert pick(found, metric="length", checkpoint="one")["value"] == pytest.approx(sum(lengths) / 6)
    assert [row for row in found["rows"] if row["metric"] != "length"] == table(finished)["rows"]


def test_an_interrupted_run_goes_on(world, finished, tmp_path, monkeypatch):
    add, calls = records.Records.add, []

    def killed(self, rows):
        calls.append(self.path.stem)
        if len(calls) == 5:
            raise KeyboardInterrupt
        add(self, rows)

    monkeypatch.setattr(records.Records, "add", killed)
    evaluate(world, tmp_path / "out", code=130)
    evaluate(world, tmp_path / "out")
    for name in ("one", "two"):
        assert answers(tmp_path / "out", name) == answers(finished, name)
    assert table(tmp_path / "out") == table(finished)


def test_what_is_read_in_part_is_noted(world, tmp_path):
    limits = ("answers.bench.sampling.max_prompt_length=6", "answers.bench.reward_model.max_length=6")
    for _ in range(2):  # and once more from what is on disk
        notes = evaluate(world, tmp_path / "out", *limits)["notes"]
        assert "bench, one: 6 of 6 prompts have more than 6 tokens; only their end was read" in notes
        reward = "bench, one: 6 of 6 conversations have more than 6 tokens; the reward model read only their end"
        assert reward in notes


def test_two_processes_are_one(world, finished, tmp_path):
    run_processes(lambda: evaluate(world, tmp_path / "out"))
    assert table(tmp_path / "out")["rows"] == table(finished)["rows"]


def test_a_scorer_that_fails_does_not_lose_the_others(world, finished, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished, tmp_path / "out")
    shutil.copytree(world / "reward", tmp_path / "reward")
    (tmp_path / "reward/model.safetensors").write_bytes(b"damaged")
    monkeypatch.chdir(world)
    found = evaluate(
        world,
        tmp_path / "out",
        "answers.bench.scorers.broken={_component_: my_scorer.broken}",
        f"answers.bench.reward_model.path={tmp_path}/reward",
        code=2,
    )
    assert {failure["task"]: failure["reason"] for failure in found["failures"]}["bench, broken"] == (
        "RuntimeError: out of order"
    )
    assert "cannot load the reward model" in found["failures"][-1]["reason"]
    kept = [row for row in table(finished)["rows"] if not row["metric"].startswith("reward")]
    assert found["rows"] == kept


def test_a_judge_compares_with_the_baseline(world, finished, tmp_path, monkeypatch, capsys):
    pytest.importorskip("openai", reason="needs the extra judge: pip install 'prefkd[judge]'")
    from tests.evaluation.judge_server import judge_server

    shutil.copytree(finished, tmp_path / "out")
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    judge = "answers.bench.judge={base_url: %s, model: j, api_key_variable: JUDGE_KEY}"
    with judge_server() as server:
        server.script = ["chatter"]
        found = evaluate(world, tmp_path / "out", judge % server.url)
        asked = len(server.requests)
        assert evaluate(world, tmp_path / "out", judge % server.url)["rows"] == found["rows"]
        assert len(server.requests) == asked <= 12
    lengths = {
        name: {key: len(row["answer"]) for key, row in answers(finished, name).items()} for name in ("one", "two")
    }
    row = pick(found, metric="judge_win_rate", checkpoint="two")
    assert row["count"] == 5
    assert any("1 unreadable" in note for note in found["notes"])
    pairs = [(lengths["two"][key], lengths["one"][key]) for key in lengths["one"]]
    wins = sum((own > other) + (own == other) / 2 for own, other in pairs)
    assert wins - 1 <= row["value"] * 5 <= wins
    printed = capsys.readouterr()
    assert "sk-secret" not in printed.out + printed.err
    assert all(b"sk-secret" not in file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("answers.bench.scorers.rouge_l=prefkd.evaluation.scorers.rouge",),
            "answers.bench.scorers.rouge_l._component_: prefkd.evaluation.scorers.rouge: prefkd.evaluation.scorers "
            "has no rouge; did you mean rouge_l?",
        ),
        (("answers.bench.scorers.words.answer=x",), "answers.bench.scorers.words.answer: the recipe itself passes it"),
        (("answers.bench.scorers.words=3",), "answers.bench.scorers.words: 3 is not a component"),
        (("answers.bench.prompts.source=nowhere.jsonl",), "answers.bench.prompts.source: nowhere.jsonl does not exist"),
        (("answers.bench.sampling.temperature=-1",), "answers.bench.sampling.temperature: -1.0 is not a temperature"),
        (("answers.bench.reward_model.path=nowhere",), "answers.bench.reward_model.path: no folder nowhere"),
        (
            ("answers.bench.judge={base_url: 'http://localhost:1', model: j, api_key_variable: null}", "baseline=null"),
            "answers.bench.judge: compares with the baseline, and there is none",
        ),
        (
            ("answers.bench.judge={base_url: localhost, model: j, api_key_variable: null}",),
            "answers.bench.judge.base_url: localhost is not an address",
        ),
        (("answers.bench.prompt=x",), "answers.bench.prompt: unknown key; did you mean prompts?"),
    ],
)
def test_mistakes_are_one_line(world, tmp_path, capsys, overrides, message):
    evaluate(world, tmp_path / "out", *overrides, code=2)
    printed = capsys.readouterr().err
    assert f"error: {message}" in printed and "Traceback" not in printed
    assert not (tmp_path / "out").exists()


def test_prompts_without_references(world, tmp_path, capsys):
    (tmp_path / "bare.jsonl").write_text('{"prompt": "Hi"}\n')
    evaluate(world, tmp_path / "out", f"answers.bench.prompts.source={tmp_path}/bare.jsonl", code=2)
    assert "answers.bench.scorers.contains: bare.jsonl:1 has no references to compare with" in capsys.readouterr().err


def test_answers_are_written_as_alpaca_eval_and_arena_hard_read_them(world, tmp_path):
    own = {"dataset": "d", "output": "It.", "generator": "other"}
    alpaca = [{"instruction": f"What is {i}?", **own} for i in range(2)]
    (tmp_path / "alpaca.json").write_text(json.dumps(alpaca))
    arena = [
        {"uid": f"q{i}", "category": "hard_prompt", "subcategory": "s", "prompt": f"What is {i}?"} for i in range(2)
    ]
    (tmp_path / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in arena))
    settings = f"""
        checkpoints:
          one: {{path: {world}/one, dtype: float32}}
        answers:
          alpaca:
            prompts: {{source: {tmp_path}/alpaca.json}}
            sampling: {{max_new_tokens: 6}}
            write_for: [alpaca_eval]
          arena:
            prompts: {{source: {tmp_path}/question.jsonl}}
            sampling: {{max_new_tokens: 6}}
            write_for: [arena_hard, alpaca_eval]
        """
    out = tmp_path / "out"
    run_evaluation(settings, out)
    given = {row["prompt"][-1]["content"]: row["answer"] for row in answers(out, "one", "alpaca").values()}
    assert list(given) and json.loads((out / "answers" / "alpaca" / "alpaca_eval" / "one.json").read_text()) == [
        {"instruction": row["instruction"], "output": given[row["instruction"]], "generator": "one"} for row in alpaca
    ]
    rows = read_rows(out / "answers" / "arena" / "arena_hard" / "one.jsonl")
    assert [(row["uid"], row["model"]) for row in rows] == [("q0", "one"), ("q1", "one")]
    for row in rows:
        asked, answered = row["messages"]
        assert answered == {"role": "assistant", "content": {"answer": given[asked["content"]]}}
    assert len({row["ans_id"] for row in rows}) == 2


def test_arena_hard_needs_uids_and_formats_have_names(world, tmp_path, capsys):
    evaluate(world, tmp_path / "out", "answers.bench.write_for=[arena_hard]", code=2)
    assert "has no uid, by which Arena-Hard finds its question" in capsys.readouterr().err
    evaluate(world, tmp_path / "out", "answers.bench.write_for=[alpaca]", code=2)
    assert "write_for: there is no format alpaca; did you mean alpaca_eval?" in capsys.readouterr().err


def test_a_file_in_the_layout_of_reward_bench_has_an_accuracy_for_each_subset(world, tmp_path):
    rows = [
        {
            "prompt": f"What is {i}?",
            "chosen": f"It is {i}.",
            "chosen_model": "a",
            "rejected": "Who knows?",
            "rejected_model": "b",
            "subset": "easy" if i < 2 else "hard",
            "id": i,
        }
        for i in range(5)
    ]
    (tmp_path / "bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = f"""
        checkpoints:
          one: {{path: {world}/one, dtype: float32}}
        preferences:
          data:
            bench: {{source: {tmp_path}/bench.jsonl, by: subset}}
        """
    found = run_evaluation(settings, tmp_path / "out")
    counts = {row["subset"]: row["count"] for row in found["rows"] if row["metric"] == "logprob_accuracy"}
    assert counts == {"": 5, "easy": 2, "hard": 3}
