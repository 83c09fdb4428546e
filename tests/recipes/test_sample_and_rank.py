"""Recipes sample and rank: candidates of models here and behind a server, and the pairs that rankers make of them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from prefkd.candidates.sampling import distinct
from prefkd.cli.main import main
from prefkd.data.pairs import DataConfig, load_pairs
from prefkd.evaluation import checkpoints as checkpoints_module
from prefkd.evaluation.prompts import Prompt
from prefkd.evaluation.reward_model import RewardModel
from tests.data.tool_templates import TOOL_TEMPLATES
from tests.evaluation.judge_server import judge_server
from tests.models.text_server import text_server
from tests.processes import run_processes
from tests.recipes import two_models
from tests.recipes.runs import write_config
from tests.recipes.test_served_teacher import SECRET, assert_no_secret
from tests.recipes.two_models import make_world, teacher_logprobs
from tests.tiny import make_tokenizer

INSTRUCTIONS = ("Give a helpful, honest and harmless answer.", "Give an unhelpful, dishonest and harmful answer.")
ROWS = [{"prompt": f"Question {i}: what would you say{' about this' * (i % 3)}?"} for i in range(5)]


def length(answer: str, references: list[str]) -> float:
    """A ranker that likes long answers."""
    return float(len(answer))


def brevity(answer: str, references: list[str]) -> float:
    """A ranker that likes short ones."""
    return -float(len(answer))


def nothing(answer: str, references: list[str]) -> float:
    return float("nan")


def fails(answer: str, references: list[str]) -> float:
    return max(len(text) for text in references)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = make_world(tmp_path_factory.mktemp("world"))
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    tokenizer = make_tokenizer("byte_level")
    torch.manual_seed(5)
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_labels": 1, "pad_token_id": tokenizer.pad_token_id}
    reward = AutoModelForSequenceClassification.from_config(CONFIG_MAPPING["llama"](**sizes, initializer_range=0.3))
    reward.save_pretrained(folder / "reward")
    tokenizer.save_pretrained(folder / "reward")
    return folder


def sample(world: Path, out: Path, *overrides: str, options: tuple[str, ...] = (), code: int = 0) -> Path:
    config = write_config(
        out,
        f"""
        output_dir: {out}
        prompts: {{source: {world}/prompts.jsonl}}
        models:
          student: {{path: {world}/student, dtype: float32}}
          teacher: {{path: {world}/teacher, dtype: float32}}
        answers: 3
        sampling: {{max_new_tokens: 10, temperature: 1.0, batch_size: 4}}
        """,
    )
    assert main(["run", *options, "sample", "--config", str(config), *overrides]) == code
    return out / "candidates"


def candidates(folder: Path) -> dict[str, dict[str, dict]]:
    return {file.stem: {row["key"]: row for row in read_lines(file)} for file in sorted(folder.glob("*.jsonl"))}


def rank(candidates: Path, out: Path, *overrides: str, options: tuple[str, ...] = (), code: int = 0) -> list[dict]:
    config = write_config(out, f"{{output_dir: {out}, candidates: {candidates}}}")
    assert main(["run", *options, "rank", "--config", str(config), *overrides]) == code
    return read_lines(out / "pairs.jsonl") if code == 0 and (out / "pairs.jsonl").is_file() else []


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def function(name: str) -> str:
    return f"functions.{name}={{_component_: tests.recipes.test_sample_and_rank.{name}}}"


@pytest.fixture(scope="module")
def sampled(world, tmp_path_factory) -> Path:
    return sample(world, tmp_path_factory.mktemp("sampled") / "out")


@pytest.fixture(scope="module")
def ended(sampled, tmp_path_factory) -> Path:
    """The same, as if each answer had come to its end; models this small never end one."""
    folder = tmp_path_factory.mktemp("ended") / "candidates"
    shutil.copytree(sampled, folder)
    for file in folder.glob("*.jsonl"):
        file.write_text(file.read_text().replace('"finish": "length"', '"finish": "stop"'))
    return folder


def write_candidates(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps({"prompt": "Why?"} | row) + "\n" for row in rows))
    return path


def test_candidates(sampled):
    found = candidates(sampled)
    assert found.keys() == {"student", "teacher"}
    for name, rows in found.items():
        assert len(rows) == 15
        for key, row in rows.items():
            assert key == f"{row['key'].partition('#')[0]}#{row['number']}" and row["model"] == name
            assert row["prompt"][0]["content"] in {one["prompt"] for one in ROWS}
            assert row["finish"] in ("stop", "length") and 0 < row["tokens"] <= 10
            assert row["tokens"] == 10 or row["finish"] == "stop"
        assert len({row["seed"] for row in rows.values()}) == 15
    assert {row["answer"] for row in found["student"].values()} != {row["answer"] for row in found["teacher"].values()}
    report = json.loads((sampled.parent / "sample_report.json").read_text())
    cut = sum(row["finish"] == "length" for row in found["student"].values())
    assert (report["student"]["answers"], report["student"]["prompts"], report["student"]["cut"]) == (15, 5, cut)


def test_long_prompts_are_counted(world, sampled, tmp_path):
    cut = sample(world, tmp_path / "out", "sampling.max_prompt_length=48", "answers=1")
    longer = {row["prompt"][0]["content"] for row in candidates(cut)["student"].values() if row["prompt_cut"]}
    assert 0 < len(longer) < 5 and min(map(len, longer)) >= max(
        len(row["prompt"]) for row in ROWS if row["prompt"] not in longer
    )
    report = json.loads((tmp_path / "out/sample_report.json").read_text())
    assert report["student"]["prompts_cut"] == len(longer)
    assert not any(row["prompt_cut"] for row in candidates(sampled)["student"].values())


def test_a_batch_changes_nothing_and_neither_do_two_processes(world, sampled, tmp_path):
    one = candidates(sampled)
    assert candidates(sample(world, tmp_path / "larger", "sampling.batch_size=7")) == one
    two, _ = run_processes(lambda: sample(world, tmp_path / "two"))
    assert candidates(two) == one


def test_a_killed_run_resumes(world, sampled, tmp_path, monkeypatch):
    out = sample(world, tmp_path / "out")
    file = out / "student.jsonl"
    settings = file.with_suffix(".settings.json")
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:5]) + '{"key": "half a li')
    settings.write_text(settings.read_text().replace('"finished": true', '"finished": false'))
    loaded, load = [], checkpoints_module.load_causal_lm
    monkeypatch.setattr(
        checkpoints_module, "load_causal_lm", lambda config, **how: loaded.append(config.path) or load(config, **how)
    )
    assert candidates(sample(world, tmp_path / "out")) == candidates(sampled)
    assert loaded == [f"{world}/student"]


def test_a_server_answers_in_the_place_of_a_model(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BIG_KEY", SECRET)
    with text_server({"big": world / "teacher"}) as server:
        named = f"{{url: '{server.url}', model: big, key_env: BIG_KEY}}"
        there = f"models={{big: {{tokenizer: {world}/teacher, server: {named}}}}}"
        found = candidates(sample(world, tmp_path / "there", there, "sampling.temperature=0", "answers=1"))
    here = f"models={{big: {{path: {world}/teacher, dtype: float32}}}}"
    expected = candidates(sample(world, tmp_path / "here", here, "sampling.temperature=0", "answers=1"))
    assert found == expected
    assert_no_secret(tmp_path, *capsys.readouterr())


def test_mistakes_of_sample(world, sampled, tmp_path, capsys):
    shutil.copytree(sampled.parent, tmp_path / "before")
    before = candidates(sample(world, tmp_path / "before", "answers=2", code=2))
    assert before == candidates(sampled)
    sample(world, tmp_path / "before", "~models.teacher", code=2)
    sample(world, tmp_path / "out", "models={}", "sampling.temperature=0", "answers=0", "prompts.source=nofile", code=2)
    sample(world, tmp_path / "out", "sampling.temperature=0", f"models.third.path={world}/nowhere", code=2)
    sample(world, tmp_path / "out", "sampling.max_new_tokens=510", code=2)
    printed = capsys.readouterr().err
    for line in (
        f"{tmp_path}/before/candidates/student.jsonl holds answers that were sampled with other settings (answers)",
        f"models: {tmp_path}/before/candidates/teacher.jsonl is of a model that is not one of these; ",
        "models: there are none",
        "answers: 0 ",
        "prompts.source: nofile does not exist",
        "sampling.temperature: 0 gives the same answer 3 times",
        f"models.third.path: no folder {world}/nowhere",
        "tokens and an answer of 510 are more than the 512 positions of",
    ):
        assert line in printed
    assert "Traceback" not in printed


def test_a_prompt_that_occurs_twice_is_answered_once():
    one, other = ([{"role": "user", "content": text}] for text in "ab")
    rows = [("f:1", one, ["x"]), ("f:2", other, []), ("f:3", one, ["x", "y"])]
    found = distinct([Prompt(*row) for row in rows])
    assert found == [Prompt("f:1", one, ["x", "y"]), Prompt("f:2", other, [])]


def test_pairs_by_a_function(ended, tmp_path, capsys):
    pairs = rank(ended, tmp_path / "out", function("length"))
    answers: dict[str, set[str]] = {}
    for rows in candidates(ended).values():
        for row in rows.values():
            answers.setdefault(row["prompt"][0]["content"], set()).add(row["answer"])
    assert len(pairs) == 5
    for pair in pairs:
        texts = sorted(filter(None, answers[pair["prompt"]]), key=len)
        assert len(pair["chosen"]) == len(texts[-1]) and len(pair["rejected"]) == len(texts[0])
        assert pair["margin"] == pair["chosen_score"] - pair["rejected_score"] == len(texts[-1]) - len(texts[0])
        assert {pair["chosen_model"], pair["rejected_model"]} <= {"student", "teacher"}
    report = json.loads((tmp_path / "out/rank_report.json").read_text())
    assert report["pairs"] == 5 and report["score_and_length"] == pytest.approx(1.0)
    assert report["characters"]["chosen_is_longer"] == 1.0
    assert sum(own["chosen"] for own in report["models"].values()) == 5
    page = (tmp_path / "out/rank_report.html").read_text()
    assert page.startswith("<!doctype html>") and "smallest gap" in page
    assert "5 of 5 prompts" in capsys.readouterr().out


def test_pairs_are_read_by_every_training_recipe(world, ended, tmp_path):
    rank(ended, tmp_path / "out", function("length"))
    read = load_pairs(DataConfig(f"{tmp_path}/out/pairs.jsonl", held_out_fraction=0.2))
    assert read.formats == {"standard": 5} and not read.unread
    two_models.run("tis_dpo_distill", world, tmp_path / "run", f"data.source={tmp_path}/out/pairs.jsonl")


@pytest.mark.parametrize("per", ["sum", "character"])
def test_the_contrast_is_that_of_the_teacher(world, ended, tmp_path, per):
    contrast = f"contrast={{teacher: {{path: {world}/teacher, dtype: float32}}, per: {per}}}"
    pairs = rank(ended, tmp_path / "out", contrast)
    teacher = AutoModelForCausalLM.from_pretrained(world / "teacher", dtype=torch.float32)
    assert pairs
    for pair in pairs:
        for name in ("chosen", "rejected"):
            with torch.no_grad():
                plus, minus = (
                    teacher_logprobs(world, teacher, f"{pair['prompt']}\n\n{text}", pair[name].strip()).sum().item()
                    for text in INSTRUCTIONS
                )
            expected = (plus - minus) / (len(pair[name]) if per == "character" else 1)
            assert pair[f"{name}_score"] == pytest.approx(expected, abs=1e-3)


def contrast_scores(world: Path, file: Path, out: Path, *settings: str) -> list[dict]:
    teacher = f"teacher: {{path: {world}/teacher, dtype: float32}}"
    rank(file, out, f"contrast={{{', '.join([teacher, *settings])}}}", "pairing.drop_cut=false")
    return sorted(read_lines(out / "scores/contrast.jsonl"), key=lambda row: row["key"])


def test_the_end_of_a_cut_answer_has_no_score(world, tmp_path):
    rows = {"answer": "Because it is so."}, {"answer": "Nobody could"}, {"answer": "Yes."}
    whole = write_candidates(tmp_path / "whole.jsonl", *rows)
    cut = write_candidates(tmp_path / "cut.jsonl", rows[0], rows[1] | {"finish": "length"}, rows[2])
    first, second = (contrast_scores(world, file, tmp_path / file.stem) for file in (whole, cut))
    assert first[0]["sum"] == pytest.approx(second[0]["sum"], abs=1e-4)
    lm = AutoModelForCausalLM.from_pretrained(world / "teacher", dtype=torch.float32)
    with torch.no_grad():
        plus, minus = (
            teacher_logprobs(world, lm, f"Why?\n\n{text}", "Nobody could")[:-1].sum().item() for text in INSTRUCTIONS
        )
    assert second[1]["sum"] == pytest.approx(plus - minus, abs=1e-3) != first[1]["sum"]


def test_a_score_per_character_counts_the_characters_that_were_read(world, tmp_path):
    file = write_candidates(tmp_path / "c.jsonl", {"answer": "Boil them for a while. " * 20}, {"answer": "No."})
    first, _ = contrast_scores(world, file, tmp_path / "out", "per: character, max_length: 60, max_prompt_length: 40")
    pair = read_lines(tmp_path / "out/pairs.jsonl")[0]
    score = pair["chosen_score"] if pair["chosen"].startswith("Boil") else pair["rejected_score"]
    assert 0 < first["characters"] < 100 and score == pytest.approx(first["sum"] / first["characters"])
    report = json.loads((tmp_path / "out/rank_report.json").read_text())
    assert report["read_in_part"] == {"contrast": 1}


def test_a_candidate_that_cannot_be_read_costs_no_other_its_score(world, tmp_path):
    texts = ["same " * 30 + "one", "same " * 30 + "other", "yes", "no"]
    file = write_candidates(tmp_path / "c.jsonl", *({"answer": text} for text in texts))
    rows = contrast_scores(world, file, tmp_path / "out", "max_length: 40, max_prompt_length: 20")
    assert [row["key"] for row in rows] == ["0:0", "0:1", "0:2", "0:3"]
    assert rows[0]["sum"] == pytest.approx(rows[1]["sum"], abs=1e-4)


def test_scores_are_kept_and_two_processes_are_one(world, ended, tmp_path, monkeypatch):
    contrast = f"contrast={{teacher: {{path: {world}/teacher, dtype: float32}}, microbatch_size: 2}}"
    reward = f"reward_model.path={world}/reward"
    pairs = rank(ended, tmp_path / "one", contrast, reward)
    run_processes(lambda: rank(ended, tmp_path / "two", contrast, reward))
    two = read_lines(tmp_path / "two" / "pairs.jsonl")
    for one, other in zip(pairs, two, strict=True):
        assert one["chosen"] == other["chosen"] and one["margin"] == pytest.approx(other["margin"], abs=1e-4)
    report = json.loads((tmp_path / "one/rank_report.json").read_text())
    assert 0 <= report["agreement"]["contrast, reward_model"] <= 1
    monkeypatch.setattr("prefkd.models.teacher.load_frozen", None)
    monkeypatch.setattr("prefkd.candidates.rankers.RewardModel", None)
    again = rank(ended, tmp_path / "one", contrast, reward, "pairing.kind=best_random")
    assert {pair["prompt"] for pair in again} <= {row["prompt"] for row in ROWS}


def test_conversations_that_a_reward_model_reads_in_part_are_counted(world, ended, tmp_path):
    rank(ended, tmp_path / "out", f"reward_model={{path: {world}/reward, max_length: 30}}")
    report = json.loads((tmp_path / "out/rank_report.json").read_text())
    assert 0 < report["read_in_part"]["reward_model"] <= report["candidates"]
    assert "candidates read in part by reward_model" in (tmp_path / "out/rank_report.html").read_text()


def test_a_judge_ranks(ended, tmp_path):
    with judge_server() as server:
        judge = f"judge={{base_url: '{server.url}', model: j, api_key_variable: null}}"
        pairs = rank(ended, tmp_path / "out", judge)
        asked = len(server.requests)
        rank(ended, tmp_path / "out", judge)
        assert len(server.requests) == asked
    by_length = rank(ended, tmp_path / "length", function("length"))
    assert [len(pair["chosen"]) for pair in pairs] == [len(pair["chosen"]) for pair in by_length]
    assert all(pair["chosen_score"] > pair["rejected_score"] for pair in pairs)


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TOLD = [
    {"role": "user", "content": "How is the weather?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "Sunny"},
]


def test_a_history_with_calls_of_tools_is_ranked(world, tmp_path):
    rows = [{"prompt": TOLD, "answer": answer} for answer in ("It is sunny.", "I do not know.")]
    (tmp_path / "told.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "calls.jinja").write_text(TOOL_TEMPLATES["qwen2.5"])
    teacher = f"contrast.teacher={{path: {world}/teacher, dtype: float32, template: {{path: {tmp_path}/calls.jinja}}}}"
    [pair] = rank(tmp_path / "told.jsonl", tmp_path / "out", teacher)
    assert pair["prompt"][1]["tool_calls"][0]["function"] == CALL["function"]


def test_rankers_that_disagree_give_no_pair(ended, tmp_path, capsys):
    rank(ended, tmp_path / "out", function("length"), function("brevity"), code=2)
    printed = capsys.readouterr().err
    assert "no prompt gives a pair (" in printed and "Traceback" not in printed


def leaves(answer: str, references: list[str]) -> float:
    raise SystemExit(3)


def test_mistakes_of_rank(world, ended, tmp_path, capsys, monkeypatch):
    rank(tmp_path / "nowhere", tmp_path / "out", code=2)
    rank(ended, tmp_path / "out", "functions.judge={_component_: math.sqrt}", "functions.x=3", code=2)
    rank(ended, tmp_path / "out", function("length"), "pairing.kind=above_threshold", code=2)
    rank(
        ended,
        tmp_path / "out",
        function("length"),
        "pairing={threshold: 1.0, minimum_gap: -1.0, length_ratio: 0.5}",
        code=2,
    )
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n')
    rank(tmp_path / "bad.jsonl", tmp_path / "out", function("length"), code=2)
    contrast = f"contrast={{teacher: {{path: {world}/teacher}}, contrast: {{kind: none}}, max_length: 5}}"
    rank(ended, tmp_path / "out", contrast, code=2)
    rank(ended, tmp_path / "out", function("length"), "answer_temperature=0", code=2)
    for name in ("nothing", "fails", "leaves"):
        rank(ended, tmp_path / "out", function(name), code=2)
    begun = tmp_path / "begun"
    shutil.copytree(ended, begun)
    settings = begun / "student.settings.json"
    settings.write_text(settings.read_text().replace('"finished": true', '"finished": false'))
    rank(begun, tmp_path / "out", function("length"), code=2)
    rank(ended, tmp_path / "out", f"reward_model.path={world}/student", code=2)
    monkeypatch.setattr(RewardModel, "score", lambda model, conversations: [float("nan")] * len(conversations))
    rank(ended, tmp_path / "out", f"reward_model.path={world}/reward", code=2)
    printed = capsys.readouterr().err
    for line in (
        f"candidates: {tmp_path}/nowhere does not exist; write it with recipe sample",
        "contrast: there is no ranker",
        "functions.judge: is the name of another ranker",
        "functions.x: 3 is not a component",
        "pairing.threshold: missing",
        "pairing.threshold: goes with kind: above_threshold",
        "pairing.minimum_gap: -1.0 ",
        "pairing.length_ratio: 0.5 ",
        f"row 1 of {tmp_path}/bad.jsonl: field 'answer' is missing or not text",
        "contrast.contrast.kind: none leaves nothing to rank by",
        "contrast.max_length: 5 leaves no room",
        "answer_temperature: 0.0 is not a temperature",
        "test_sample_and_rank.nothing returns nan for an answer to “Question ",
        "test_sample_and_rank.fails fails for an answer to “Question ",
        "; the prompt has no references",
        "test_sample_and_rank.leaves fails for an answer to “Question ",
        "/reward: a reward is not a finite number; use dtype: float32",
        f"{begun}/student.jsonl is not finished; run recipe sample again with the same command",
        "it has no weights for score.weight, so its rewards would be random",
    ):
        assert line in printed, line
    assert "Traceback" not in printed
