"""What a trained model takes with it: a model card that a reader and the Hub understand, and the way to the Hub."""

import hashlib
import json
import logging
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard
from transformers import AutoModelForCausalLM, GenerationConfig

from prefkd.training.publish import _without_folders, public_name
from tests.recipes import single_model, two_models
from tests.recipes.single_model import run

TOKEN = "hf_a_secret"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return single_model.make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def uploads(monkeypatch, tmp_path) -> list[tuple]:
    """The calls of huggingface_hub that would change something there."""
    calls: list[tuple] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("prefkd.training.publish.get_token", lambda: None)
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo, **kw: calls.append(("create", self.token, repo, kw)))
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **kw: calls.append(("upload", self.token, kw)))
    return calls


def test_the_card_of_a_student(tmp_path, uploads):
    world = two_models.make_world(tmp_path)
    out = tmp_path / "out"
    metrics = two_models.run("tis_dpo_distill", world, out)
    card = ModelCard.load(out / "student" / "README.md")
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["prefkd", "tis_dpo_distill"],
    }
    text = card.text
    digest = hashlib.sha256((world / "pairs.jsonl").read_bytes()).hexdigest()[:12]
    assert "**Teacher**: `teacher`, float32" in text and f"**Pairs**: `pairs.jsonl (sha256 {digest})`" in text
    assert f"source: pairs.jsonl (sha256 {digest})" in text and str(tmp_path) not in text
    before, after = metrics[0]["held_out/loss"], metrics[-1]["written/loss"]
    assert f"| loss | {before:.4f} | {after:.4f} | {metrics[-1]['held_out/loss']:.4f} |" in text
    assert "lr: 0.1" in text and "output_dir" not in text
    GenerationConfig.from_pretrained(out / "student")
    code = text.split("```python\n")[1].split("```")[0].replace("this folder", str(out / "student"))
    names: dict = {}
    exec(code, names)
    assert len(names["written"]) > 0
    assert isinstance(names["model"], AutoModelForCausalLM.from_pretrained(out / "student").__class__)
    assert not uploads


def test_the_card_of_an_adapter(world, tmp_path, uploads):
    run("dpo", world, tmp_path / "out", "lora={}", "data.reverse=true", "training.max_steps=1")
    card = ModelCard.load(tmp_path / "out" / "adapter" / "README.md")
    assert card.data.to_dict()["library_name"] == "peft" and "chosen and rejected swapped" in card.text
    assert str(tmp_path) not in card.text and str(world) not in card.text
    code = card.text.split("```python\n")[1].split("```")[0].replace("this folder", str(tmp_path / "out/adapter"))
    names: dict = {}
    exec(code.replace("path of model", str(world / "model")), names)
    assert names["model"].peft_config
    assert names["model"].generation_config.eos_token_id == names["tokenizer"].eos_token_id


@pytest.mark.parametrize(("overrides", "private"), [((), True), (("push_to_hub.private=false",), False)])
def test_push(world, tmp_path, uploads, capsys, caplog, overrides, private):
    caplog.set_level(logging.DEBUG)
    Path(".env").write_text(f"HF_TOKEN={TOKEN}\n")
    run("sft", world, tmp_path / "out", "push_to_hub.repo_id=me/mine", "training.max_steps=1", *overrides)
    create, upload = uploads
    assert create == ("create", TOKEN, "me/mine", {"private": private, "exist_ok": True})
    assert upload[1] == TOKEN and upload[2]["folder_path"] == tmp_path / "out" / "model"
    printed = capsys.readouterr()
    assert "https://huggingface.co/me/mine" in printed.out
    written = (
        "".join(path.read_text() for path in (tmp_path / "out").rglob("*.md"))
        + (tmp_path / "out" / "config.yaml").read_text()
    )
    assert TOKEN not in printed.out + printed.err + caplog.text + written


def test_a_pushed_adapter_does_not_tell_where_its_base_lay(world, tmp_path, uploads, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    files = {}
    monkeypatch.setattr(
        HfApi, "upload_file", lambda _, **kw: files.update({kw["path_in_repo"]: json.loads(kw["path_or_fileobj"])})
    )
    run("sft", world, tmp_path / "out", "push_to_hub.repo_id=me/mine", "training.max_steps=1", "lora={}")
    name = "adapter_config.json"
    here = json.loads((tmp_path / "out" / "adapter" / name).read_text())
    assert uploads[1][2]["ignore_patterns"] == [name]
    assert here["base_model_name_or_path"] == str(world / "model")
    assert files == {name: here | {"base_model_name_or_path": "model"}}


def test_addresses_on_a_card_tell_no_secrets():
    assert public_name("https://me:hunter2@host/p.jsonl?key=hunter2") == "https://host/p.jsonl"
    assert public_name("s3://bucket/p.jsonl") == "s3://bucket/p.jsonl"
    settings = {"win_rate": {"base_url": "http://10.0.0.7/v1", "model": "j"}, "own": ["http://me:hunter2@host/v1"]}
    assert _without_folders(settings) == {"win_rate": {"model": "j"}, "own": ["http://host/v1"]}


def test_a_hub_that_says_no(world, tmp_path, uploads, capsys, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise ConnectionError("401 Client Error\nRequest ID: 1")

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(HfApi, "create_repo", refuse)
    run("sft", world, tmp_path / "out", "push_to_hub.repo_id=me/mine", "training.max_steps=1", code=2)
    folder = tmp_path / "out" / "model"
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: me/mine does not take {folder}: 401 Client Error; `hf upload me/mine {folder}` tries once more"
    )
    assert (folder / "model.safetensors").is_file()


def test_mistakes_are_told_before_training(world, tmp_path, uploads, capsys):
    run("sft", world, tmp_path / "out", "push_to_hub.repo_id=mine", code=2)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert lines == [
        "error: push_to_hub.repo_id: mine is not the id of a repository; write owner/name",
        "error: push_to_hub.repo_id: there is no token to write with; put one into HF_TOKEN or .env",
    ]
    assert not (tmp_path / "out").exists()
