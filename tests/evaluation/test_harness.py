"""lm-eval through the recipe gives what lm-eval itself gives, on task files made here, without a network."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="needs the extra lm-eval: pip install 'prefkd[lm-eval]'")

from prefkd.cli.main import main
from prefkd.evaluation.checkpoints import CheckpointConfig
from prefkd.evaluation.harness import OWN_TASKS, HarnessConfig, _model_args
from tests.recipes import single_model
from tests.recipes.evaluations import pick, run_evaluation, table
from tests.tiny import TEXTS, make_model, write_pairs

CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Q: {{{{question}}}}\\nA:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
metadata: {{version: 1}}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A model, an adapter on it, and two task files of which one is in a group."""
    folder = single_model.make_world(tmp_path_factory.mktemp("world"))
    write_pairs(folder / "pairs.jsonl", 8)
    single_model.run("dpo", folder, folder / "lora", "lora={}", "optimizer.lr=3.0", "training.max_steps=2")
    (folder / "tasks").mkdir()
    for name in ("first", "second"):
        rows = [
            {"question": f"{name} {i}?", "choices": [f" {text}" for text in TEXTS[i % 5 : i % 5 + 3]], "label": i % 3}
            for i in range(12)
        ]
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        target = folder / f"{name}.yaml" if name == "first" else folder / "tasks" / "second.yaml"
        target.write_text(CHOICE.format(name=name, data=data))
    (folder / "tasks" / "both.yaml").write_text(
        "group: both\ntask: [second]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    return folder


def evaluate(world: Path, out: Path, *overrides: str, **how) -> dict:
    settings = f"""
        checkpoints:
          base: {{path: {world}/model, dtype: float32}}
          lora: {{path: {world}/model, adapter: {world}/lora/adapter, dtype: float32}}
        baseline: base
        device: cpu
        lm_eval:
          tasks: [{world}/first.yaml, both]
          task_folders: [{world}/tasks]
          batch_size: 4
        """
    return run_evaluation(settings, out, *overrides, **how)


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "finished"
    evaluate(world, out)
    return out


def test_scores_are_those_of_lm_eval_itself(world, finished):
    import lm_eval
    from lm_eval.tasks import TaskManager

    theirs = lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={world}/model,dtype=float32,peft={world}/lora/adapter",
        tasks=[f"{world}/first.yaml", "both"],
        batch_size=4,
        device="cpu",
        task_manager=TaskManager(include_path=str(world / "tasks"), include_defaults=False),
    )["results"]
    for task, metric in (("first", "acc"), ("first", "acc_norm"), ("second", "acc"), ("both", "acc")):
        row = pick(table(finished), task=task, metric=metric, checkpoint="lora")
        assert row["value"] == pytest.approx(theirs[task][f"{metric},none"], abs=1e-12)
        error = theirs[task][f"{metric}_stderr,none"]
        assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * error, rel=0.25)


def test_scores_of_a_real_model_are_those_of_lm_eval(real_models, tmp_path):
    import lm_eval
    from lm_eval.tasks import TaskManager

    facts = {"France": "Paris", "Japan": "Tokyo", "Italy": "Rome", "Egypt": "Cairo"}
    rows = [
        {
            "question": f"What is the capital of {country}?",
            "choices": [f" {city}" for city in facts.values()],
            "label": i,
        }
        for i, country in enumerate(facts)
    ]
    (tmp_path / "capitals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = tmp_path / "capitals.yaml"
    task.write_text(CHOICE.format(name="capitals", data=tmp_path / "capitals.jsonl"))
    model = {"path": str(real_models / "smollm2-135m-instruct"), "dtype": "float32"}
    config = {"output_dir": str(tmp_path / "out"), "checkpoints": {"real": model}, "lm_eval": {"tasks": [str(task)]}}
    (tmp_path / "config.yaml").write_text(json.dumps(config | {"device": "cpu"}))
    assert main(["run", "evaluate", "--config", str(tmp_path / "config.yaml"), "lm_eval.batch_size=8"]) == 0
    theirs = lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={model['path']},dtype=float32",
        tasks=[str(task)],
        device="cpu",
        task_manager=TaskManager(include_defaults=False),
    )["results"]["capitals"]
    for metric in ("acc", "acc_norm"):
        assert pick(table(tmp_path / "out"), metric=metric)["value"] == pytest.approx(theirs[f"{metric},none"])
    assert theirs["acc,none"] > 0.5  # it knows some, so that the comparison is one


def test_results_are_kept_as_lm_eval_writes_them(finished):
    for checkpoint in ("base", "lora"):
        (results,) = (finished / "lm_eval" / checkpoint).rglob("results*.json")
        assert json.loads(results.read_text())["config"]["model"] == "hf"
        assert len(list((finished / "lm_eval" / checkpoint).rglob("samples_*.jsonl"))) == 2


def test_differences_are_paired_by_question(finished):
    values = {
        name: next(
            row["values"]
            for row in map(json.loads, (finished / f"lm_eval/{name}.jsonl").read_text().splitlines())
            if row["key"] == "first/acc,none"
        )
        for name in ("base", "lora")
    }
    difference = np.mean([values["lora"][key] - values["base"][key] for key in values["base"]])
    row = pick(table(finished), task="first", metric="acc", checkpoint="lora")
    assert row["count"] == 12 and row["difference"] == pytest.approx(difference)
    assert pick(table(finished), task="both", metric="acc", checkpoint="lora")["count"] is None


def test_what_is_finished_is_not_run_again(world, finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "out")
    monkeypatch.setattr("lm_eval.simple_evaluate", lambda **arguments: pytest.fail("run"))
    assert evaluate(world, tmp_path / "out", "lm_eval.batch_size=2")["rows"] == table(finished)["rows"]


def test_a_killed_run_goes_on_with_what_was_answered(world, finished, tmp_path, monkeypatch):
    from lm_eval.models.huggingface import HFLM

    call, calls = HFLM._model_call, []

    def killed_at_the_fourth(lm, *arguments, **named):
        calls.append(len(arguments[0]))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return call(lm, *arguments, **named)

    monkeypatch.setattr(HFLM, "_model_call", killed_at_the_fourth)
    only_base = ("~checkpoints.lora", "lm_eval.tasks=[second]")
    evaluate(world, tmp_path / "out", *only_base, code=130)
    assert list((tmp_path / "out/lm_eval").glob(".base-*.db"))
    found = evaluate(world, tmp_path / "out", *only_base)
    assert sum(calls[4:]) == 12 * 3 - sum(calls[:3])
    assert found["rows"] == [
        row for row in table(finished)["rows"] if (row["task"], row["checkpoint"]) == ("second", "base")
    ]
    assert not list((tmp_path / "out/lm_eval").glob(".base-*.db"))


def test_a_limit_is_told_and_a_missing_model_is_no_end(world, tmp_path):
    make_model(tmp_path / "other", "llama", "byte_level", seed=3)
    found = evaluate(
        world,
        tmp_path / "out",
        "lm_eval.limit=3",
        "lm_eval.tasks=[second]",
        "checkpoints.lora={path: nowhere}",
        f"checkpoints.small={{path: {world}/model, quantization: int8}}",
        code=2,
    )
    assert pick(found, task="second", metric="acc", checkpoint="base")["count"] == 3
    assert found["notes"] == ["lm-eval: 3 questions of each task; not to be compared with published numbers"]
    assert "no folder nowhere" in found["failures"][0]["reason"]
    assert "use quantization: none" in found["failures"][1]["reason"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lm_eval.tasks=[nowhere.yaml]", "lm_eval.tasks: no file nowhere.yaml"),
        ("lm_eval.tasks=[]", "lm_eval.tasks: names none"),
        ("lm_eval.task_folders=[nowhere]", "lm_eval.task_folders: no folder nowhere"),
        ("lm_eval.backend=vlm", "lm_eval.backend: 'vlm' is not one of hf, vllm"),
        ("lm_eval.limit=0", "lm_eval.limit: 0 is too small"),
    ],
)
def test_mistakes_are_one_line(world, tmp_path, capsys, override, message):
    evaluate(world, tmp_path / "out", override, code=2)
    printed = capsys.readouterr().err
    assert f"error: {message}" in printed and "Traceback" not in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("template", ["plain", "{arguments: {enable_thinking: false}}"])
def test_lm_eval_asks_in_the_template_of_the_tokenizer_alone(world, tmp_path, capsys, template):
    settings = (f"checkpoints.base.template={template}", "lm_eval.apply_chat_template=true")
    evaluate(world, tmp_path / "out", *settings, code=2)
    assert "error: checkpoints.base.template: lm_eval.apply_chat_template takes " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_pinned_revision_reaches_the_backend():
    checkpoint = CheckpointConfig("me/mine", revision="v2")
    assert _model_args(checkpoint, HarnessConfig())["revision"] == "v2"
    of_vllm = _model_args(checkpoint, HarnessConfig(backend="vllm"))
    assert of_vllm["revision"] == of_vllm["tokenizer_revision"] == "v2"
    assert "revision" not in _model_args(CheckpointConfig("model"), HarnessConfig())


def test_tasks_are_those_of_lm_eval_and_of_the_paper(world, tmp_path, capsys, monkeypatch):
    import yaml
    from lm_eval import tasks

    managers, make = [], tasks.TaskManager
    monkeypatch.setattr(tasks, "TaskManager", lambda **arguments: managers.append(make(**arguments)) or managers[-1])
    evaluate(world, tmp_path / "out", "lm_eval.tasks=[hellaswg]", code=2)
    assert "lm_eval.tasks: lm-eval knows no task hellaswg; did you mean hellaswag?" in capsys.readouterr().err
    listed = yaml.safe_load((OWN_TASKS / "ctpd.yaml").read_text())["task"]
    assert {"ctpd", "leaderboard"} <= set(managers[-1].all_groups)
    assert {task["task"] for task in listed} <= set(managers[-1].all_tasks)
    assert len(listed) == 6
