"""Adapters: they start as nothing, switch off without a trace, go through peft's format, and fit no other base."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM, PreTrainedModel

from prefkd.errors import PrefkdError
from prefkd.models.load import ModelConfig, TeacherConfig, load_causal_lm, load_tokenizer
from prefkd.models.lora import LoraConfig, adapters_off, add_adapter, load_adapter, use_adapter
from prefkd.ranks import Ranks
from prefkd.training.export import save_trained
from prefkd.training.settings import TrainingConfig
from tests.tiny import make_model

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 90, 17, 33, 8, 120]])


@pytest.fixture
def base(tmp_path) -> Path:
    return make_model(tmp_path / "base", "llama", "byte_level", seed=1)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return load_causal_lm(ModelConfig(str(folder)), dtype=dtype, device=CPU)


@torch.no_grad()
def logits(lm) -> torch.Tensor:
    return lm(IDS).logits


def make_adapter(base: Path, folder: Path, seed: int) -> torch.Tensor:
    """Write an adapter that changes its base; returns the logits of the two together."""
    lm = load(base)
    add_adapter(lm, LoraConfig(rank=4), seed=seed)
    disturb(lm, seed)
    save(lm, base, folder)
    return logits(lm)


@torch.no_grad()
def disturb(lm, seed: int) -> None:
    """Give everything that learns other weights."""
    for parameter in lm.parameters():
        if parameter.requires_grad:
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(seed))


def save(lm, base: Path, folder: Path) -> None:
    start, tokenizer = ModelConfig(str(base)), load_tokenizer(ModelConfig(str(base)))
    save_trained(lm, tokenizer, folder, start=start, training=TrainingConfig(), ranks=Ranks(0, 1, CPU))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma3_text", "phi3", "gpt2"])
def test_new_adapters_are_on_all_linear_layers_but_the_head_and_change_nothing(tmp_path, model_type, dtype):
    settings = {"phi3": {"num_key_value_heads": 4}, "gemma3_text": {"layer_types": ["full_attention"] * 2}}
    folder = make_model(tmp_path / "base", model_type, "byte_level", **settings.get(model_type, {}))
    lm = load(folder, dtype)
    start, linear = (
        logits(lm),
        {name for name, module in lm.named_modules() if type(module).__name__ in ("Linear", "Conv1D")},
    )
    add_adapter(lm, LoraConfig(rank=4), seed=0)
    assert {name for name, module in lm.named_modules() if isinstance(module, BaseTunerLayer)} == linear - {"lm_head"}
    assert torch.equal(logits(lm), start)
    for name, parameter in lm.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        assert parameter.dtype == (torch.float32 if "lora_" in name else dtype)


def test_the_seed_decides_where_an_adapter_starts(base):
    drawn = []
    for seed in (0, 0, 1):
        lm = load(base)
        torch.rand(seed + len(drawn))  # whatever was drawn before
        add_adapter(lm, LoraConfig(rank=4), seed=seed)
        drawn.append(lm.get_parameter("model.layers.0.self_attn.q_proj.lora_A.default.weight"))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_target_modules_are_named(base):
    lm = load(base)
    add_adapter(lm, LoraConfig(target_modules=["q_proj", "up_proj"]), seed=0)
    assert {name.rpartition(".")[2] for name, module in lm.named_modules() if isinstance(module, BaseTunerLayer)} == {
        "q_proj",
        "up_proj",
    }


def test_off_is_the_base_and_on_again_is_as_before(base, tmp_path):
    together = make_adapter(base, tmp_path / "adapter", seed=3)
    lm = load(base)
    start = logits(lm)
    add_adapter(lm, LoraConfig(rank=4), seed=0)
    for name, parameter in lm.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    learns, changed = [parameter.requires_grad for parameter in lm.parameters()], logits(lm)
    with adapters_off(lm):
        assert torch.equal(logits(lm), start)
        assert [parameter.requires_grad for parameter in lm.parameters()] == learns
    assert torch.equal(logits(lm), changed) and not torch.equal(changed, start)
    assert [parameter.requires_grad for parameter in lm.parameters()] == learns
    assert not torch.equal(together, start)


def test_a_saved_adapter_loads_here_and_in_peft(base, tmp_path):
    together = make_adapter(base, tmp_path / "adapter", seed=3)
    teacher = TeacherConfig(str(base), dtype="float32", adapter=str(tmp_path / "adapter"))
    assert not list(teacher.problems())
    lm = load_causal_lm(teacher, dtype=torch.float32, device=CPU)
    assert torch.equal(logits(lm), together)
    assert not any(parameter.requires_grad for name, parameter in lm.named_parameters() if "lora_" in name)
    by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter")
    torch.testing.assert_close(logits(by_peft), together)
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(base) and written["r"] == 4
    assert not (tmp_path / ".adapter.unfinished").exists()


def test_an_adapter_of_peft_loads_here(base, tmp_path):
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    by_peft = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        PeftLoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    by_peft.save_pretrained(tmp_path / "adapter")
    lm = load(base)
    load_adapter(lm, str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(lm), logits(by_peft.eval()))


def test_two_adapters_stand_on_one_base(base, tmp_path):
    together = [make_adapter(base, tmp_path / name, seed) for seed, name in enumerate(("one", "two"))]
    lm = load(base)
    start = logits(lm)
    for name in ("one", "two"):
        load_adapter(lm, str(tmp_path / name), name=name)
    for name, expected in (("one", together[0]), ("two", together[1]), ("one", together[0])):
        use_adapter(lm, name)
        assert torch.equal(logits(lm), expected)
        with adapters_off(lm):
            assert torch.equal(logits(lm), start)
        assert torch.equal(logits(lm), expected)


@pytest.mark.parametrize("layer", ["lm_head", "embed_tokens"])
def test_off_is_the_base_where_an_adapter_has_a_whole_layer_of_its_own(tmp_path, layer):
    """One of two adapters on a base, by peft. The head is also read as a weight."""
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    base = make_model(tmp_path / "base", "llama", "byte_level", seed=1, tie_word_embeddings=False)
    expected = {"plain": make_adapter(base, tmp_path / "plain", seed=3)}
    settings = PeftLoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM", modules_to_save=[layer])
    by_peft: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings).eval()
    disturb(by_peft, seed=4)
    by_peft.save_pretrained(tmp_path / "more")
    expected["more"] = logits(by_peft)

    lm = load(base)
    start, head = logits(lm), lm.get_output_embeddings().weight.clone()
    for name in expected:
        load_adapter(lm, str(tmp_path / name), name=name)
    for name in ("more", "plain", "more"):
        use_adapter(lm, name)
        torch.testing.assert_close(logits(lm), expected[name])
        with adapters_off(lm):
            assert torch.equal(logits(lm), start)
            assert torch.equal(lm.get_output_embeddings().weight, head)
        torch.testing.assert_close(logits(lm), expected[name])
        assert torch.equal(lm.get_output_embeddings().weight, head) == (name == "plain" or layer != "lm_head")


def problems(base: Path, adapter: Path) -> list[str]:
    return list(map(str, TeacherConfig(str(base), adapter=str(adapter)).problems()))


def test_an_adapter_of_a_model_of_another_size_names_both(base, tmp_path):
    other = make_model(tmp_path / "other", "llama", "byte_level", hidden_size=64, num_attention_heads=8)
    make_adapter(other, tmp_path / "adapter", seed=0)
    [problem] = problems(base, tmp_path / "adapter")
    assert problem.startswith(f"adapter: {tmp_path}/adapter was trained on {other} and does not fit {base}: ")
    assert problem.endswith(f"; name {other} as path, or another adapter")
    with pytest.raises(PrefkdError, match=f"trained on {other}, does not fit {base}: size mismatch"):
        load_adapter(load(base), str(tmp_path / "adapter"))


def test_an_adapter_of_a_model_with_more_layers_does_not_load(base, tmp_path):
    other = make_model(tmp_path / "other", "llama", "byte_level", num_hidden_layers=3)
    make_adapter(other, tmp_path / "adapter", seed=0)
    with pytest.raises(PrefkdError, match=rf"trained on {other}, does not fit {base}: model\.layers\.2.* in only one"):
        load_adapter(load(base), str(tmp_path / "adapter"))


def test_an_adapter_of_a_model_of_the_same_size_but_other_weights_is_found(base, tmp_path):
    """A base before and after fine-tuning: nothing else would tell."""
    other = make_model(tmp_path / "other", "llama", "byte_level", seed=2)
    make_adapter(other, tmp_path / "adapter", seed=0)
    [problem] = problems(base, tmp_path / "adapter")
    assert str(other) in problem and f"the weights of {base} are others" in problem
    shutil.copytree(other, tmp_path / "copy")
    assert not problems(tmp_path / "copy", tmp_path / "adapter")
    shutil.rmtree(other)  # then the sizes must do
    assert not problems(base, tmp_path / "adapter")


def test_what_is_no_adapter_is_one_line(base, tmp_path):
    assert problems(base, tmp_path / "none") == [
        f"adapter: no folder {tmp_path}/none; name one that holds adapter_config.json"
    ]
    assert "holds no adapter_config.json" in problems(base, base)[0]
    make_adapter(base, tmp_path / "adapter", seed=0)
    assert "is an adapter; give its base here" in str(next(ModelConfig(str(tmp_path / "adapter")).problems()))
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-9])
    assert not problems(base, tmp_path / "adapter")  # reading it tells
    with pytest.raises(PrefkdError, match="does not fit"):
        load_adapter(load(base), str(tmp_path / "adapter"))
    (tmp_path / "adapter" / "adapter_config.json").write_text("{")
    assert "adapter_config.json is damaged" in problems(base, tmp_path / "adapter")[0]


def test_an_adapter_on_the_head_is_refused(base, tmp_path):
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, PeftLoraConfig(target_modules=["q_proj", "lm_head"])).save_pretrained(tmp_path / "adapter")
    with pytest.raises(PrefkdError, match="changes the output layer"):
        load_adapter(load(base), str(tmp_path / "adapter"))
    with pytest.raises(PrefkdError, match="lm_head is the output layer"):
        add_adapter(load(base), LoraConfig(target_modules=["lm_head"]), seed=0)


def test_a_half_written_adapter_is_not_there(base, tmp_path, monkeypatch):
    lm = load(base)
    add_adapter(lm, LoraConfig(rank=4), seed=0)
    monkeypatch.setattr(
        "prefkd.training.export.save_file", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        save(lm, base, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
