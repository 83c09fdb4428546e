"""The best weights, stopping early, exports on the way, sampled answers, and the page of a run."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefkd.evaluation.judge import Comparison
from prefkd.evaluation.reward_model import RewardModel, RewardModelConfig
from prefkd.evaluation.win_rate import ByJudge
from prefkd.training.samples import changed_answers
from tests.evaluation.judge_server import judge_server
from tests.evaluation.test_answers import make_reward_model
from tests.processes import run_processes
from tests.recipes import single_model, two_models
from tests.recipes.test_resume import killer, without_speed

# At this rate the held-out loss falls first and rises then.
ROUGH = ("optimizer.lr=0.5", "training.epochs=4", "training.evaluate_every=1", "training.export_every=1")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    single_model.make_world(folder)
    return two_models.make_world(folder)


def run(world: Path, out: Path, *overrides: str, recipe: str = "dpo", code: int = 0) -> list[dict]:
    return (single_model if recipe in ("sft", "dpo") else two_models).run(recipe, world, out, *overrides, code=code)


def losses(metrics: list[dict]) -> dict[int, float]:
    """Held-out loss by step, without that of the start."""
    return {row["step"]: row["held_out/loss"] for row in metrics if row["step"]}


def exported(out: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(out / "exports" / f"step_{step:08}" / "model.safetensors")


@pytest.fixture(scope="module")
def kept(world, tmp_path_factory) -> tuple[Path, list[dict]]:
    """A run that keeps its best weights, and exports those of each step."""
    out = tmp_path_factory.mktemp("runs") / "kept"
    return out, run(world, out, *ROUGH, "training.keep_best=loss")


def test_the_best_weights_are_saved_and_reported(kept):
    out, metrics = kept
    found = losses(metrics)
    best = min(found, key=found.__getitem__)
    assert best < max(found), "the last step is the best, and the test shows nothing"
    for name, value in single_model.saved_weights(out).items():
        assert torch.equal(value, exported(out, best)[name]), name
    assert metrics[-1]["written/loss"] == pytest.approx(found[best])
    assert not (out / "best").exists()


def test_without_keep_best_the_last_weights_are_saved(kept, world, tmp_path):
    out = tmp_path / "out"
    metrics = run(world, out, *ROUGH)
    assert losses(metrics) == losses(kept[1])
    last = exported(out, max(losses(metrics)))
    assert all(torch.equal(value, last[name]) for name, value in single_model.saved_weights(out).items())


def test_it_stops_when_nothing_has_improved(kept, world, tmp_path, capsys):
    found = losses(kept[1])
    metrics = run(world, tmp_path / "out", *ROUGH, "training.keep_best=loss", "training.stop_after=2")
    expected, best, since = [], float("inf"), 0
    for step, value in found.items():
        if since == 2:
            break
        expected.append(step)
        best, since = (value, 0) if value < best else (best, since + 1)
    assert list(losses(metrics)) == expected
    assert len(expected) < len(found)
    assert f"stopped after step {expected[-1]}: loss has not improved 2 times" in " ".join(
        capsys.readouterr().out.split()
    )


@pytest.mark.parametrize("step", [3, 6])
def test_a_killed_run_resumes_with_the_best_that_it_knew(kept, world, tmp_path, step):
    out = tmp_path / "out"
    settings = (*ROUGH, "training.keep_best=loss", "training.checkpoint_every=2")
    with pytest.raises(SystemExit):
        run(world, out, *settings, killer(step, "SIGTERM"))
    assert (out / "best").is_dir()
    assert without_speed(run(world, out, *settings)) == without_speed(kept[1])
    expected = single_model.saved_weights(kept[0])
    assert all(torch.equal(value, expected[name]) for name, value in single_model.saved_weights(out).items())


def test_two_processes_keep_their_best_and_sample_nothing(world, tmp_path):
    out = tmp_path / "out"
    settings = (*ROUGH, "training.keep_best=loss", "training.microbatch_size=2", "training.sample_answers=2")
    metrics, _ = run_processes(lambda: run(world, out, *settings))
    found = losses(metrics)
    assert metrics[-1]["written/loss"] == pytest.approx(min(found.values()), rel=1e-5)
    assert found[max(found)] > min(found.values())
    assert not (out / "samples.jsonl").exists()
    assert "None were sampled" in (out / "report.html").read_text(encoding="utf-8")


def test_an_adapter_and_a_student_keep_their_best(world, tmp_path):
    rough = ("training.epochs=3", "training.evaluate_every=1", "training.keep_best=loss")
    metrics = run(world, tmp_path / "adapter", *rough, "lora={rank: 4}", "optimizer.lr=0.5")
    assert metrics[-1]["written/loss"] == pytest.approx(min(losses(metrics).values()), rel=1e-5)
    metrics = run(world, tmp_path / "student", *rough, "optimizer.lr=0.2", recipe="tis_dpo_distill")
    assert metrics[-1]["written/loss"] == pytest.approx(min(losses(metrics).values()), rel=1e-5)


@pytest.mark.parametrize("recipe", ["sft", "dpo"])
def test_exports_are_ordinary_folders(recipe, world, tmp_path):
    out = tmp_path / "out"
    run(world, out, "training.export_every=2", recipe=recipe)
    (folder,) = (out / "exports").iterdir()
    assert folder.name == "step_00000002"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer)


def greedy(world: Path, folder: Path, prompt: str, tokens: int) -> str:
    """The likeliest answer, with transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer(f"<|user|>{prompt}<|end|><|assistant|>", add_special_tokens=False, return_tensors="pt")["input_ids"]
    for _ in range(tokens):
        following = model(ids).logits[0, -1].argmax()
        if following == tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, following[None, None]], dim=1)
    return tokenizer.decode(ids[0], skip_special_tokens=False).rpartition("<|assistant|>")[2]


def test_answers_before_and_after_are_those_of_the_start_and_of_the_saved_folder(world, tmp_path, capsys):
    out = tmp_path / "out"
    metrics = run(world, out, "training.sample_answers=2", "training.sample_tokens=5", "training.epochs=3")
    shown = capsys.readouterr().out
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    evaluated = [row["step"] for row in metrics if "held_out/loss" in row]
    assert [row["step"] for row in rows] == [step for step in evaluated for _ in range(2)]
    assert all(row["samples/words"] > 0 for row in metrics if row["step"] in evaluated)
    for answer in changed_answers(out):
        before, after = (greedy(world, folder, answer.prompt, 5) for folder in (world / "model", out / "model"))
        assert (answer.before, answer.after) == (before.strip(), after.strip())
        assert answer.prompt in shown
    assert any(answer.before != answer.after for answer in changed_answers(out))


def test_answers_win_against_those_before_training(world, tmp_path, capsys):
    """By a reward model, and by the same verdicts written down; the page shows the curve."""
    out, reward = tmp_path / "out", make_reward_model(tmp_path / "reward", chat=True)
    judge = f"{{_component_: prefkd.evaluation.win_rate.ByRewardModel, path: {reward}}}"
    asked = ("training.sample_answers=3", "training.sample_tokens=5", f"training.win_rate={judge}")
    metrics = run(world, out, *asked, "training.epochs=3", "training.evaluate_every=100")
    measured = [row["samples/win_rate"] for row in metrics if "held_out/loss" in row]
    model = RewardModel(RewardModelConfig(str(reward)), torch.device("cpu"))
    expected = 0.0
    for answer in changed_answers(out):
        before, after = model.score(
            [([{"role": "user", "content": answer.prompt}], text) for text in (answer.before, answer.after)]
        )
        expected += 0.5 if after == before else float(after > before)
    assert measured == [0.5, pytest.approx(expected / 3)]
    assert f"the saved model: answers better than before training {expected / 3:.1%}" in capsys.readouterr().out
    assert "samples/win_rate" in (out / "report.html").read_text(encoding="utf-8")


def test_a_judge_that_falls_silent_does_not_end_the_training(world, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("JUDGE_KEY", "key")
    with judge_server() as server:
        judge = (
            f"{{_component_: prefkd.evaluation.win_rate.ByJudge, base_url: {server.url}, model: judge, "
            "api_key_variable: JUDGE_KEY, retries: 0}"
        )
        asked = ("training.sample_answers=2", "training.sample_tokens=5", f"training.win_rate={judge}")
        by_judge = ByJudge(server.url, "judge", "JUDGE_KEY")
        longer = Comparison("one", [{"role": "user", "content": "Hi!"}], "Hello there!", "Hi")
        wins = [by_judge.wins([longer], folder=tmp_path / "judged", device=torch.device("cpu")) for _ in range(2)]
        assert wins == [[1.0], [1.0]] and len(server.requests) == 2  # in both orders, and once
        server.always = "refuse"
        metrics = run(world, tmp_path / "silent", *asked, "training.epochs=3", "training.evaluate_every=100")
    assert metrics[0]["samples/win_rate"] == 0.5 and "samples/win_rate" not in metrics[-1]
    assert "no win rate: the judge at" in caplog.text


def test_sampling_changes_nothing_else(world, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    metrics = [
        run(world, out, f"training.sample_answers={n}", "lora={dropout: 0.2}") for n, out in enumerate((one, other))
    ]
    for left, right in zip(*map(without_speed, metrics), strict=True):
        assert left == {name: value for name, value in right.items() if name != "samples/words"}
    left, right = map(single_model.saved_weights, (one, other))
    assert all(torch.equal(left[name], right[name]) for name in left)
    for name in ("generation_config.json", "tokenizer_config.json"):
        assert (one / "adapter" / name).read_text() == (other / "adapter" / name).read_text()


@pytest.mark.parametrize("recipe", ["sft", "dpo", "dpo_distill", "tis_dpo_distill", "dskd_distill"])
def test_every_training_recipe_writes_a_page(recipe, world, tmp_path):
    out = tmp_path / "out"
    objective = ("objective=[{_component_: prefkd.training.terms.cross_entropy}]",) if recipe == "dskd_distill" else ()
    metrics = run(world, out, "training.sample_answers=1", "training.sample_tokens=3", *objective, recipe=recipe)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert f"{metrics[0]['held_out/loss']:,.4f}".replace("-", "−") in page
    assert f"{metrics[-1]['written/loss']:,.4f}".replace("-", "−") in page
    assert changed_answers(out)[0].prompt in page
    assert 'class="curves"' in page
    assert ("<h2>Parents</h2>" in page) == (recipe not in ("sft", "dpo"))
    assert "output_dir: " in page


def test_the_page_colours_parents_by_the_weights_of_a_live_teacher(world, tmp_path):
    run(world, tmp_path / "out", "weights.contrast=prompt_pair", recipe="tis_dpo_distill")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "weight of a parent:" in page and "counts more" in page
    own = ("weights.contrast=prompt_pair", "reference=student")
    run(world, tmp_path / "own", *own, recipe="tis_dpo_distill")
    assert "weight of a parent:" in (tmp_path / "own" / "report.html").read_text(encoding="utf-8")
    run(world, tmp_path / "uniform", "weights.contrast=uniform", recipe="tis_dpo_distill")
    page = (tmp_path / "uniform" / "report.html").read_text(encoding="utf-8")
    assert "tokens of a parent, on its longer side:" in page


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.stop_after=2", "stop_after: goes with keep_best, which is missing"),
        ("training.export_every=0", "export_every: 0 is too small"),
        ("training.sample_answers=1000", "sample_answers: 1000 is too large"),
        (
            "training.win_rate={_component_: prefkd.evaluation.win_rate.ByRewardModel, path: nowhere}",
            "no folder nowhere; fetch",
        ),
        ("training.win_rate={_component_: prefkd.evaluation.win_rate.ByReward}", "did you mean ByRewardModel?"),
        ("training.win_rate={_component_: builtins.dict}", "win_rate: builtins.dict has no method wins"),
        ("training.keep_best=bleu", "keep_best: 'bleu' is not"),
        ("training.keep_best=perplexity", "this run does not measure perplexity: it measures loss"),
    ],
)
def test_mistakes_are_a_line(override, message, world, tmp_path, capsys):
    run(world, tmp_path / "out", override, code=2)
    assert message in capsys.readouterr().err


def test_keep_best_without_held_out_pairs_is_told(world, tmp_path, capsys):
    settings = ("~data.held_out_source", "data.held_out_fraction=0.0", "training.keep_best=loss")
    run(world, tmp_path / "out", *settings, code=2)
    assert "no pair is held out" in capsys.readouterr().err
