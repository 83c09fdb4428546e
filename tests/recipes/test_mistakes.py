"""What a user sees after a mistake in paths, models, rows or settings of the real recipe: a clear line, exit code 2."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefkd.cli.main import main
from prefkd.errors import PrefkdError
from prefkd.ranks import join_ranks
from prefkd.training.settings import folder_problems
from tests.tiny import make_model, write_pairs


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_model(folder / "student", "qwen2", "metaspace", seed=1)
    make_model(folder / "teacher", "llama", "byte_level", seed=2)
    return folder


@pytest.fixture
def folder(models, tmp_path, monkeypatch) -> Path:
    """The current folder: two models and pairs, in which a test breaks something."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(models / "student", "student")
    shutil.copytree(models / "teacher", "teacher")
    write_pairs(Path("pairs.jsonl"), 6)
    Path("void.jinja").touch()
    Path("config.yaml").write_text(
        "output_dir: out\nstudent: {path: student}\nteacher: {path: teacher}\n"
        "data: {source: pairs.jsonl, held_out_fraction: 0.3}\n"
    )
    return tmp_path


def errors(capsys, *overrides: str) -> list[str]:
    """The error lines of a run that ends with exit code 2."""
    assert main(["run", "tis_dpo_distill", "--config", "config.yaml", *overrides]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    return [line.removeprefix("error: ") for line in printed.splitlines() if line.startswith("error: ")]


def set_row(number: int, row: object) -> None:
    lines = Path("pairs.jsonl").read_text().splitlines()
    lines[number - 1] = row if isinstance(row, str) else json.dumps(row)
    Path("pairs.jsonl").write_text("\n".join(lines) + "\n")


SETTINGS = {
    "teacher.path=techer": "teacher.path: no folder techer; fetch the model with `prefkd download`, "
    "or name a Hub id owner/name",
    "student.path=pairs.jsonl": "student.path: pairs.jsonl is a file; name the folder that holds it",
    "data.source=pears.jsonl": "data.source: pears.jsonl does not exist; did you mean pairs.jsonl?",
    "output_dir=pairs.jsonl": "output_dir: pairs.jsonl is a file; name a folder",
    "training.batch_size=0": "training.batch_size: 0 is too small; use 1 or more",
    "training.max_grad_norm=0": "training.max_grad_norm: 0.0 would stop all learning; use a positive number, "
    "such as 1.0",
    "training.precision=half": "training.precision: 'half' is not one of float32, bfloat16",
    "data.max_length=100": "data.max_length: 100 leaves no room for an answer after 256 tokens of prompt; raise it or "
    "lower max_prompt_length",
    "weights.positive=Be good.": "weights.positive: 'Be good.' lacks {prompt}; put it where the user's message belongs",
    "weights.parameters.hi=2": "weights.parameters.hi: unknown to method exp; did you mean high?",
    "weights.parameters={low: 2, high: 1}": "weights.parameters: low is 2, but must be below high, which is 1",
    "weights.parameters={low: abc}": "weights.parameters.low: 'abc' is not a number",
    "reference=techer": "reference: 'techer' is not one of teacher, student",
    "loss.bta=0.2": "loss.bta: prefkd.method.preference.tis_dpo_loss has no such argument; did you mean beta?",
    "loss.beta=-1": "loss: beta is -1, but must be above 0, below which a loss teaches the opposite",
    "loss.beta=.inf": "loss.beta: inf is not a number to compute with; use a finite one",
    "loss.alpha=0.5": "loss.alpha: weighs a position KL, which two vocabularies do not have; leave it out",
    "loss.label_smoothing=0.9": "loss: label_smoothing is 0.9, but must be at least 0 and below 0.5",
    "optimizer=torch.optim.AdanW": "optimizer._component_: torch.optim.AdanW: torch.optim has no AdanW; did you mean "
    "AdamW?",
    "optimizer.maximize=true": "optimizer: a step of torch.optim.AdamW maximizes the loss, which teaches the opposite; "
    "remove maximize, or use other settings",
    "lr_schedule.num_warmup_steps=-5": "lr_schedule.num_warmup_steps: -5 is negative; use 0 for none",
    "nll_weight=.inf": "nll_weight: inf leaves nothing to the loss of the pairs; use a number",
    "student.template={path: 3}": "student.template.path: 3 is not a path; name a file",
    "student.template={path: void.jinja}": "student.template.path: void.jinja is empty; write a chat template into it",
    "trainig.epochs=2": "trainig: unknown key; did you mean training?",
}


@pytest.mark.parametrize("override", SETTINGS)
def test_settings(folder, capsys, override):
    assert errors(capsys, override) == [SETTINGS[override]]
    assert not Path("out").exists()


def test_several_mistakes_are_told_at_once(folder, capsys):
    lines = errors(capsys, "training.epochs=0", "reference=me", "student.path=nowhere")
    assert sorted(line.partition(":")[0] for line in lines) == ["reference", "student.path", "training.epochs"]


ROWS = {
    "field missing": ({"prompt": "Hi", "chosen": "Hello"}, "rejected"),
    "empty answer": ({"prompt": "Hi", "chosen": "", "rejected": "Go away."}, "chosen"),
    "wrong type": ({"prompt": "Hi", "chosen": 3, "rejected": "Go away."}, "chosen"),
    "not JSON": ('{"prompt": "Hi", ', "JSON"),
    "equal answers": ({"prompt": "Hi", "chosen": "Hello", "rejected": "Hello"}, "rejected"),
}


@pytest.mark.parametrize("case", ROWS)
def test_rows(folder, capsys, case):
    row, culprit = ROWS[case]
    set_row(4, row)
    (line,) = errors(capsys)
    assert line.startswith("row 4 of pairs.jsonl: ") and culprit in line and "on_bad_row: skip" in line


def test_bad_rows_can_be_skipped_and_are_reported(folder, capsys):
    set_row(4, {"prompt": "Hi", "chosen": "", "rejected": "Go away."})
    set_row(5, {"prompt": "Hi", "chosen": "Hello.", "rejected": "Go away.", "critique": "Rude.", "score": 3})
    assert main(["run", "tis_dpo_distill", "--config", "config.yaml", "data.on_bad_row=skip"]) == 0
    assert "1 bad rows skipped, not read: critique (1 row)" in " ".join(capsys.readouterr().out.split())
    report = json.loads(Path("out/alignment_report.json").read_text())
    assert len(report["skipped_rows"]) == 1 and "row 4" in report["skipped_rows"][0]
    assert report["unread_fields"] == {"critique": 1}


def test_weights_that_are_not_safetensors(folder, capsys):
    Path("student/model.safetensors").rename("student/pytorch_model.bin")
    assert errors(capsys) == [
        "student.path: student holds no *.safetensors weights; convert the checkpoint or download it again"
    ]


def test_truncated_weights(folder, capsys):
    weights = Path("student/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    (line,) = errors(capsys)
    assert line.startswith("cannot load the model of student: ")


def test_what_one_process_finds_ends_the_others(folder, capsys):
    """The main one alone reads the weights, for which the other waits."""
    weights = Path("student/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    (line,) = errors(capsys, "--nproc-per-node=2")
    assert line.startswith("cannot load the model of student: ")


def test_a_file_of_weights_that_is_missing(folder, capsys):
    """As an interrupted download leaves it."""
    model = AutoModelForCausalLM.from_pretrained("student")
    Path("student/model.safetensors").unlink()
    model.save_pretrained("student", max_shard_size="20KB")
    lost, *_ = sorted(Path("student").glob("model-*.safetensors"))
    lost.unlink()
    assert errors(capsys) == [f"student.path: student lacks {lost.name}, which its index lists; download it again"]


def test_quantisation_that_cannot_be_split(folder, capsys):
    assert errors(capsys, "teacher.placement=shard", "teacher.quantization=int8") == [
        "teacher.placement: weights of quantization: int8 cannot be split; use replicate, or nf4"
    ]
    assert errors(capsys, "teacher.cpu_offload=true") == [
        "teacher.cpu_offload: goes with placement: shard only, and placement is auto; change one of them"
    ]


def test_a_world_without_torchrun(folder, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert errors(capsys) == [
        "WORLD_SIZE is in the environment, but LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT is not: start "
        "several processes with --nproc-per-node, or unset WORLD_SIZE"
    ]


def test_more_processes_than_gpus(monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "8")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(PrefkdError, match=r"^8 processes on a machine with 2 GPU\(s\); use --nproc-per-node gpu$"):
        join_ranks("cuda").__enter__()


def test_a_folder_that_may_not_be_written_to(folder, capsys, monkeypatch):
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, *how: str(path) != str(folder) and access(path, *how))
    assert errors(capsys, "output_dir=new/out") == [
        f"output_dir: {folder} may not be written to; change its permissions, or name another folder"
    ]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("file/out", "file is a file; name a folder"),
        ("link", "link is a link to nowhere, which does not exist; remove it, or name another folder"),
        ("link/out", "link is a link to nowhere, which does not exist; remove it, or name another folder"),
        ("loop/out", "loop is a link to loop, which does not exist; remove it, or name another folder"),
    ],
)
def test_a_folder_that_cannot_be_made(tmp_path, path, said):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    assert [problem.text for problem in folder_problems(tmp_path / path)] == [f"{tmp_path}/{said}"]


def test_a_checkpoint_of_another_model(folder, capsys):
    killer = "metric_logger={_component_: tests.faults.killing.Killer, step: 1, name: SIGTERM}"
    with pytest.raises(SystemExit):
        main(["run", "tis_dpo_distill", "--config", "config.yaml", "training.batch_size=2", killer])
    make_model(folder / "student", "qwen2", "metaspace", hidden_size=16)
    assert errors(capsys, "training.batch_size=2") == [
        "out/checkpoints/step_00000001 was made with other student, shapes; restore that, or name another output_dir"
    ]


def test_model_without_tokenizer(folder, capsys):
    for file in Path("teacher").glob("*token*"):
        file.unlink()
    (line,) = errors(capsys)
    assert line.startswith("teacher.path: cannot load the tokenizer of teacher: ")


def test_tokenizer_without_end(folder, capsys):
    settings = json.loads(Path("student/tokenizer_config.json").read_text())
    Path("student/tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": None}))
    (line,) = errors(capsys)
    assert line == "student.path: student: neither its tokenizer nor its template has a token that ends an answer"


def test_a_finished_run_is_not_overwritten(folder, capsys):
    assert main(["run", "tis_dpo_distill", "--config", "config.yaml", "training.max_steps=1"]) == 0
    before = Path("out/metrics.jsonl").read_text()
    assert errors(capsys) == ["output_dir: out holds an earlier run; name another folder or remove that one"]
    assert Path("out/metrics.jsonl").read_text() == before


def test_answers_longer_than_the_limit(folder, capsys):
    rows = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    # The first character of each chosen answer takes several tokens, but there is room for one.
    texts = [json.dumps(row | {"chosen": f"𝒳 {row['chosen']}"}) for row in rows]
    Path("pairs.jsonl").write_text("\n".join(texts) + "\n")
    assert errors(capsys, "data.max_length=4", "data.max_prompt_length=3") == [
        "no pair is left after truncation; raise data.max_length"
    ]


def add_tokens(folder: str, *, special: Sequence[str] = (), text: Sequence[str] = (), end: str = "<|end|>") -> None:
    """Add tokens to a model's tokenizer for which its embedding has no rows; with one of them its template may end."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)}, replace_extra_special_tokens=False)
    tokenizer.add_tokens(list(text))
    if tokenizer.chat_template:
        tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>", end)
    tokenizer.save_pretrained(folder)


def embeddings(folder: str) -> int:
    return json.loads(Path(folder, "config.json").read_text())["vocab_size"]


def test_a_template_with_tokens_that_the_model_has_no_embedding_for(folder, capsys):
    add_tokens("teacher", special=["<|im_start|>", "<|im_end|>"], end="<|im_end|>")
    size = embeddings("teacher")
    said = (
        f"teacher.path: the token '<|im_end|>' of teacher has the id {size + 1}, but the model has embeddings for "
        f"{size} tokens (vocab_size in its config.json); give it the tokenizer that it was trained with, or resize its "
        "embeddings"
    )
    assert errors(capsys) == [said]
    assert main(["validate", "tis_dpo_distill", "--config", "config.yaml"]) == 2
    assert capsys.readouterr().err == f"error: {said}\n"


def test_added_tokens_that_nothing_uses_are_no_mistake(folder):
    for model in ("student", "teacher"):
        add_tokens(model, special=["<|im_start|>", "<|im_end|>"])
    assert main(["run", "tis_dpo_distill", "--config", "config.yaml", "training.max_steps=1"]) == 0


@pytest.mark.parametrize("model", ["student", "teacher"])
@pytest.mark.parametrize("field", ["prompt", "chosen"])
def test_a_row_with_a_token_that_a_model_has_no_embedding_for(folder, capsys, model, field):
    add_tokens(model, text=["zyzzyva"])
    set_row(3, {"prompt": "Hi", "chosen": "Hello there.", "rejected": "Go away."} | {field: "A zyzzyva?"})
    (line,) = errors(capsys)
    assert line.startswith(f"row 3 of pairs.jsonl: the token 'zyzzyva' of {model} has the id ")
    skipping = ("data.on_bad_row=skip", "training.max_steps=1")
    assert main(["run", "tis_dpo_distill", "--config", "config.yaml", *skipping]) == 0


@pytest.mark.parametrize("text", ["not JSON", "[1, 2]", '{"model_type": "nothing"}', '{"model_type": "llama"'])
def test_a_config_json_that_tells_no_model(folder, capsys, text):
    Path("teacher/config.json").write_text(text)
    (line,) = errors(capsys)
    assert line.startswith("teacher.path: cannot ") and "teacher" in line
