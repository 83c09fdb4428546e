"""The folder is the result: what it holds, what is said of it, and what another program makes of it."""

import itertools
import json
import os
import shlex
import stat
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from prefkd.catalog import shipped_file
from prefkd.data.sides import ModelSide
from prefkd.data.templates import HELLO, PlainTemplate
from prefkd.models.load import ModelConfig, TeacherConfig, base_dtype, load_causal_lm
from prefkd.ranks import Ranks
from prefkd.training.display import Display
from prefkd.training.export import _save_tokenizer, export_dtype, exported
from prefkd.training.metrics import HeldOut
from prefkd.training.publish import public_name, try_it
from prefkd.training.written import is_beyond_noise, measure_written
from tests.processes import run_processes
from tests.recipes import single_model, two_models
from tests.recipes.test_sft import transformers_loss
from tests.tiny import CHAT_TEMPLATE, make_model, make_tokenizer, write_pairs

# Steps so small that rounding to the nearest bfloat16 takes nearly all of them back.
SMALL = ("optimizer={_component_: torch.optim.AdamW, lr: 2e-5}", "training.max_steps=3")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """As of the other tests, but the checkpoint is in bfloat16."""
    folder = single_model.make_world(tmp_path_factory.mktemp("world"))
    AutoModelForCausalLM.from_pretrained(folder / "model").bfloat16().save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def small(world, tmp_path_factory) -> tuple[Path, list[dict]]:
    out = tmp_path_factory.mktemp("runs") / "small"
    return out, single_model.run("sft", world, out, *SMALL)


def kept(metrics: list[dict]) -> float:
    start, memory, written = (
        metrics[i][f"{name}/loss"] for i, name in ((0, "held_out"), (-1, "held_out"), (-1, "written"))
    )
    return (written - start) / (memory - start)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_the_type_of_an_export(stored):
    auto = torch.float32 if stored == torch.float32 else torch.bfloat16
    assert [export_dtype(export, stored) for export in ("auto", "bfloat16", "float32", "checkpoint")] == [
        auto, torch.bfloat16, torch.float32, stored,
    ]  # fmt: skip
    value = torch.full((64, 64), 1 / 3)
    assert exported("a", value, export="checkpoint", stored=stored, seed=0).equal(value.to(stored))
    one, again, other, reseeded = (
        exported(name, value, export="bfloat16", stored=stored, seed=seed)
        for name, seed in (("a", 0), ("a", 0), ("b", 0), ("a", 1))
    )
    assert one.equal(again) and not one.equal(other) and not one.equal(reseeded)
    counts = torch.arange(3)
    assert exported("a", counts, export="bfloat16", stored=stored, seed=0) is counts


def test_the_base_of_an_adapter_is_held_exactly(world, tmp_path):
    config, full = ModelConfig(str(world / "model")), ModelConfig(str(make_model(tmp_path, "llama", "byte_level")))
    assert base_dtype(config, torch.bfloat16) == torch.bfloat16 and base_dtype(full, torch.bfloat16) == torch.float32
    assert base_dtype(config, torch.float32) == torch.float32


def test_what_did_not_learn_is_the_same_to_the_bit(world, tmp_path):
    single_model.run("sft", world, tmp_path / "out", *SMALL, "lr_schedule.num_warmup_steps=2", "training.max_steps=1")
    before, after = load_file(world / "model" / "model.safetensors"), single_model.saved_weights(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(before[name].view(torch.int16).equal(after[name].view(torch.int16)) for name in before)


def test_what_is_reported_is_what_the_folder_holds(world, small):
    out, metrics = small
    stored = AutoModelForCausalLM.from_pretrained(out / "model")
    assert stored.dtype == torch.bfloat16 and "lm_head.weight" not in single_model.saved_weights(out)
    loss = transformers_loss(stored.float(), world, "held_out.jsonl").item()
    assert metrics[-1]["written/loss"] == pytest.approx(loss, rel=1e-5)
    assert metrics[-1]["written/loss"] != metrics[-1]["held_out/loss"]
    assert f"| {loss:.4f} | {metrics[-1]['held_out/loss']:.4f} |" in (out / "model" / "README.md").read_text()


def test_small_steps_are_kept_by_default_and_their_loss_is_said(world, small, tmp_path, capsys):
    assert kept(small[1]) == pytest.approx(1, abs=0.3)
    nearest = single_model.run("sft", world, tmp_path / "nearest", *SMALL, "training.export=checkpoint")
    printed = " ".join(capsys.readouterr().out.split())
    assert kept(nearest) < 0.5
    assert "the saved folder is not the model that was trained" in printed and "training.export=float32" in printed
    exact = single_model.run("sft", world, tmp_path / "exact", *SMALL, "training.export=float32")
    assert exact[-1]["written/loss"] == exact[-1]["held_out/loss"] == small[1][-1]["held_out/loss"]
    assert "is not the model" not in capsys.readouterr().out
    assert single_model.saved_weights(tmp_path / "exact")["model.norm.weight"].dtype == torch.float32
    assert AutoConfig.from_pretrained(tmp_path / "exact" / "model").dtype == torch.float32


def test_a_repeated_export_and_two_processes_write_the_same_weights(world, small, tmp_path):
    single_model.run("sft", world, tmp_path / "again", *SMALL)
    left, right = single_model.saved_weights(small[0]), single_model.saved_weights(tmp_path / "again")
    assert left.keys() == right.keys() and all(left[name].equal(right[name]) for name in left)
    two, _ = run_processes(lambda: single_model.run("sft", world, tmp_path / "two", *SMALL))
    assert two[-1]["written/loss"] == pytest.approx(small[1][-1]["written/loss"], rel=1e-4)
    loss = transformers_loss(
        AutoModelForCausalLM.from_pretrained(tmp_path / "two" / "model").float(), world, "held_out.jsonl"
    )
    assert two[-1]["written/loss"] == pytest.approx(loss.item(), rel=1e-5)
    # The weights before rounding differ in their last bits, and so does here and there a rounding.
    other = single_model.saved_weights(tmp_path / "two")
    same = sum((left[name] == other[name]).sum() for name in left) / sum(value.numel() for value in left.values())
    assert same > 0.99


def test_an_adapter_is_trained_on_its_base_as_stored(tmp_path):
    """A float32 base that is rounded for training is not the base that its user puts the adapter on."""
    world = single_model.make_world(tmp_path)
    settings = ("lora={}", "training.precision=bfloat16", "training.max_steps=1")
    one = single_model.run("dpo", world, tmp_path / "one", *settings)
    assert one[-1]["written/loss"] == one[-1]["held_out/loss"]
    two, _ = run_processes(lambda: single_model.run("dpo", world, tmp_path / "two", *settings))
    assert two[-1]["written/loss"] == two[-1]["held_out/loss"]
    trained = PeftModel.from_pretrained(single_model.load_model(world / "model"), tmp_path / "one" / "adapter")
    exact = single_model.run("dpo", world, tmp_path / "exact", "lora={}", "training.max_steps=1")
    assert trained.base_model.model.model.norm.weight.dtype == torch.float32
    assert one[0]["held_out/logprob_accuracy"] == exact[0]["held_out/logprob_accuracy"]


@pytest.mark.parametrize("recipe", ["dpo_distill", "tis_dpo_distill", "dskd_distill"])
def test_distillations_report_the_folder(tmp_path, recipe, capsys):
    world = two_models.make_world(tmp_path)
    before = os.umask(0o027)
    try:
        metrics = two_models.run(recipe, world, tmp_path / "out", "training.max_steps=1", "training.export=bfloat16")
    finally:
        os.umask(before)
    assert metrics[-1]["written/loss"] != metrics[-1]["held_out/loss"]
    printed = " ".join(capsys.readouterr().out.split())
    first, last = metrics[0]["held_out/loss"], metrics[-1]["written/loss"]
    assert f"held_out/loss {first:.4f} -> {last:.4f}" in printed
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == 0o640, path
    for path in (tmp_path / "out" / "student").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path


def test_a_resumed_run_without_losses_of_pairs_is_reported_too(world, small, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    (tmp_path / "model").symlink_to(small[0] / "model")
    asked, ranks = [], Ranks(0, 1, torch.device("cpu"))

    def evaluate() -> HeldOut:
        asked.append(1)
        return HeldOut({"held_out/loss": 1.5})

    class Model:
        lm = AutoModelForCausalLM.from_pretrained(small[0] / "model", dtype=torch.float32)

    outcome = measure_written(
        tmp_path / "model", {"held_out/loss": 2.0}, {"held_out/loss": 1.0}, evaluate,
        model=Model, ranks=ranks, display=Display(ranks),  # pyright: ignore
    )  # fmt: skip
    assert len(asked) == 2 and outcome.kept("held_out/loss") == 0.5
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "written/loss": 1.5}


@pytest.mark.parametrize(
    ("differences", "beyond"),
    [([0.1, 0.1, 0.1], True), ([0.1, -0.1, 0.05], False), ([0.0, 0.0], False), ([9.0], False), ([0.2, 0.3, 0.1], True)],
)
def test_what_is_beyond_noise(differences, beyond):
    assert is_beyond_noise(torch.tensor(differences), Ranks(0, 1, torch.device("cpu"))) is beyond


def test_reading_a_float32_folder_in_bfloat16_is_said(world, tmp_path, caplog):
    AutoModelForCausalLM.from_pretrained(world / "model").float().save_pretrained(tmp_path)
    for folder, dtype, said in (
        (tmp_path, "bfloat16", True),
        (tmp_path, "float32", False),
        (world / "model", "bfloat16", False),
    ):
        caplog.clear()
        config = TeacherConfig(str(folder), dtype=dtype)
        load_causal_lm(config, dtype=config.torch_dtype, device=torch.device("cpu"))
        assert ("use dtype: float32" in caplog.text) is said


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> Path:
    """A base model whose tokenizer ends texts with another token than its template ends turns with, after sft."""
    folder = tmp_path_factory.mktemp("taught")
    make_model(folder / "model", "llama", "byte_level", seed=1)
    tokenizer = make_tokenizer("byte_level")
    tokenizer.eos_token = "</s>"
    tokenizer.save_pretrained(folder / "model")
    for name in ("config.json", "generation_config.json"):
        path = folder / "model" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": tokenizer.eos_token_id}))
    row = json.dumps({"prompt": "Hello there", "chosen": "Drink water, rest.", "rejected": "No."}) + "\n"
    (folder / "pairs.jsonl").write_text(row * 16)
    write_pairs(folder / "held_out.jsonl", 2)
    settings = (
        *("training.epochs=8", "training.evaluate_every=100", "training.export=bfloat16"),
        "optimizer={_component_: torch.optim.AdamW, lr: 1e-2}",
    )
    single_model.run("sft", folder, folder / "out", *settings)
    return folder / "out" / "model"


def test_generation_stops_at_the_end_that_was_trained(taught):
    tokenizer, lm = AutoTokenizer.from_pretrained(taught), AutoModelForCausalLM.from_pretrained(taught)
    own, trained = tokenizer.convert_tokens_to_ids(["</s>", "<|end|>"])
    assert GenerationConfig.from_pretrained(taught).eos_token_id == [own, trained] == lm.config.eos_token_id
    assert tokenizer.chat_template == CHAT_TEMPLATE and tokenizer.eos_token == "</s>"
    question = [{"role": "user", "content": "Hello there"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = lm.generate(**prompt, max_new_tokens=40, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "Drink water, rest.<|end|>"


def test_generation_stops_at_an_end_that_is_text(tmp_path, capsys, monkeypatch):
    make_model(tmp_path / "model", "llama", "byte_level", seed=1)
    tokenizer = make_tokenizer("byte_level")
    tokenizer.chat_template = CHAT_TEMPLATE.replace("<|end|>", "###")
    tokenizer.save_pretrained(tmp_path / "model")
    write_pairs(tmp_path / "pairs.jsonl", 8)
    write_pairs(tmp_path / "held_out.jsonl", 2)
    single_model.run("sft", tmp_path, tmp_path / "out", "training.max_steps=1")
    saved = tmp_path / "out" / "model"
    assert GenerationConfig.from_pretrained(saved).stop_strings == ["###"]
    lm, tokenizer = AutoModelForCausalLM.from_pretrained(saved), AutoTokenizer.from_pretrained(saved)
    ends = tokenizer("Yes.###", add_special_tokens=False, return_tensors="pt")["input_ids"][0]
    monkeypatch.setattr(lm, "forward", _says(ends, lm.forward))
    prompt = tokenizer("Hello", return_tensors="pt")
    written = lm.generate(**prompt, tokenizer=tokenizer, max_new_tokens=40, do_sample=False)
    assert tokenizer.decode(written[0, prompt["input_ids"].shape[1] :]) == "Yes.###"
    _, flag, code, *arguments = shlex.split(try_it(saved).removeprefix("talk to it: "))
    monkeypatch.setattr(sys, "argv", [flag, *arguments])
    exec(code, {})
    assert capsys.readouterr().out.strip()


def _says(ids, forward):
    """A model that says some tokens over and over, whatever it is asked."""
    said = itertools.cycle(ids.tolist())

    def answer(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits[:, -1] = torch.nn.functional.one_hot(torch.tensor(next(said)), output.logits.shape[-1])
        return output

    return answer


def test_an_adapter_says_where_to_stop(taught, tmp_path):
    world, out = taught.parents[1], tmp_path / "out"
    single_model.run("sft", world, out, "lora={}", "training.max_steps=1")
    ends = GenerationConfig.from_pretrained(out / "adapter").eos_token_id
    assert ends == GenerationConfig.from_pretrained(taught).eos_token_id


def test_the_last_line_is_a_command_that_works(taught, capsys, monkeypatch):
    python, flag, code, *arguments = shlex.split(try_it(taught).removeprefix("talk to it: "))
    assert (python, flag) == ("python", "-c")
    monkeypatch.setattr(sys, "argv", ["-c", *arguments])
    exec(code, {})
    assert capsys.readouterr().out.strip()


def test_a_plain_template_is_saved_as_a_chat_template(tmp_path):
    make_model(tmp_path / "model", "llama", "metaspace", seed=1)
    write_pairs(tmp_path / "pairs.jsonl", 8)
    write_pairs(tmp_path / "held_out.jsonl", 2)
    single_model.run("sft", tmp_path, tmp_path / "out", "training.max_steps=1")
    before, after = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("model", "out/model"))
    roles = ("system", "user", "assistant", "user", "assistant")
    for length, asks in itertools.product(range(2, 6), (False, True)):
        talk = [{"role": role, "content": f" Say {i}.\n"} for i, role in enumerate(roles[:length])]
        written = after.apply_chat_template(talk, tokenize=False, add_generation_prompt=asks)
        if talk[-1]["role"] == "user" and asks:
            assert written == "<s>" + PlainTemplate().write(talk)
        if talk[-1]["role"] == "assistant" and not asks:
            assert written == "<s>" + PlainTemplate().write(talk[:-1], talk[-1]["content"]) + "</s>"
    # What reads the folder next reads as before, whatever its setting.
    sides = [ModelSide(before), ModelSide(after), ModelSide(after, "plain")]
    assert len({side.fingerprint for side in sides}) == 1 and not any(side.uses_chat_template for side in sides)


def test_what_a_card_calls_files(tmp_path, monkeypatch):
    (tmp_path / "my pairs.jsonl").write_text("abc")
    assert public_name(str(tmp_path / "my pairs.jsonl")) == "my pairs.jsonl (sha256 ba7816bf8f01)"
    assert public_name(shipped_file("demo/train.jsonl")) == "demo/train.jsonl"
    assert public_name("owner/name") == "owner/name" and public_name("/gone/away/x") == "x"
    assert public_name("Which answer is better / worse? " * 20) == "Which answer is better / worse? " * 20
    names = {public_name(str(tmp_path), read_folder=True)}
    (tmp_path / "my pairs.jsonl").write_text("abd")
    names.add(public_name(str(tmp_path), read_folder=True))
    assert len(names) == 2 and all(name.startswith(f"{tmp_path.name} (sha256 ") for name in names)
    monkeypatch.chdir(tmp_path)
    assert public_name(".") == tmp_path.name == public_name(str(tmp_path))
    assert public_name("/") == "" and public_name("~no_such_user/x") == "~no_such_user/x"


def test_a_plain_template_is_saved_without_a_bos_that_was_not_trained(tmp_path):
    """Many byte-level tokenizers name a BOS and never write it."""
    tokenizer = make_tokenizer("byte_level")
    tokenizer.bos_token, tokenizer.chat_template = "<s>", None
    side = ModelSide(tokenizer)
    _save_tokenizer(side, tmp_path)
    after = AutoTokenizer.from_pretrained(tmp_path)
    asked = after.apply_chat_template(HELLO, add_generation_prompt=True, return_dict=False)
    assert side.bos_id is None and asked == side.encode_prompts([side.frame(HELLO)])[0]
    assert ModelSide(after).fingerprint == side.fingerprint
