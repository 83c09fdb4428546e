"""Every shipped config of a full-size pair runs as its header says, on its models shrunk and a Hub that is played."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from prefkd import catalog
from prefkd.catalog import load_recipe
from prefkd.cli.main import main
from prefkd.config import load_config
from tests.configs.headers import header, runs
from tests.configs.pairs import PAIRS, RECIPES
from tests.configs.shrunk import make_shrunk
from tests.tiny import TEXTS, write_pairs

# What is smaller here than in the files. All else is as it is shipped.
SHORT = ["training.max_steps=2", "training.batch_size=4", "training.microbatch_size=2", "training.evaluate_every=2"]
SHORT += ["training.sample_answers=0"]
ADAPTED = {"score": [], "sft": SHORT, "dpo": SHORT}


def ultrafeedback(source: str, *, name: str | None, split: str, revision: str | None) -> Dataset:
    """Rows as HuggingFaceH4/ultrafeedback_binarized has them, one of them with two equal answers."""
    assert (source, name, revision) == ("HuggingFaceH4/ultrafeedback_binarized", None, None)
    count = {"train_prefs": 10, "test_prefs": 4}[split]
    rows = []
    for i in range(count):
        prompt = f"{split} {i}: {TEXTS[i % 7]}"
        chosen, rejected = TEXTS[(i + 1) % 7], TEXTS[(i + (1 if i == 3 else 2)) % 7]
        answers = {"chosen": chosen, "rejected": rejected}
        messages = {
            side: [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            for side, answer in answers.items()
        }
        scores = {"score_chosen": 8.0, "score_rejected": 5.0}
        rows.append({"prompt": prompt, "prompt_id": str(i), **messages, "messages": messages["chosen"], **scores})
    return Dataset.from_list(rows)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> Path:
    """A folder for each pair, with its models where `prefkd download` writes them, and with pairs of one's own."""
    folder = tmp_path_factory.mktemp("worlds")
    for pair, ids in PAIRS.items():
        for hub_id in ids:
            make_shrunk(hub_id, folder / pair / "models" / hub_id.rpartition("/")[2])
        write_pairs(folder / pair / "mine.jsonl", 8)
    return folder


@pytest.fixture
def world(worlds, pair, monkeypatch) -> Path:
    monkeypatch.chdir(worlds / pair)
    monkeypatch.setattr("prefkd.data.sources.load_dataset", ultrafeedback)
    return worlds / pair


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("pair", PAIRS)
def test_two_steps(pair, recipe, world):
    name = f"{pair}/{recipe}"
    assert main(["run", recipe, "--config", name, *ADAPTED.get(recipe, SHORT)]) == 0
    out = Path("runs") / pair / recipe
    if recipe == "score":
        assert len(list((out / "scores").glob("*/*.parquet"))) == 2
        return
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["step"] == 2
    assert all(math.isfinite(value) for line in metrics for value in line.values())
    assert metrics[-1]["gradient_norm"] > 0
    if recipe == "dpo":
        assert (out / "adapter" / "adapter_model.safetensors").is_file()
    else:
        teacher, student = (Path("models") / hub_id.rpartition("/")[2] for hub_id in PAIRS[pair])
        start, written = (teacher, out / "model") if recipe == "sft" else (student, out / "student")
        assert_same_model(start, written)


@pytest.mark.parametrize("recipe", ["dpo", "score", "dskd_distill"])
@pytest.mark.parametrize("pair", PAIRS)
def test_a_node_of_gpus_is_planned(pair, recipe, world):
    command = ["plan", recipe, "--config", f"{pair}/{recipe}", "--nproc-per-node", "8", "--gpu", "H100"]
    assert main([*command, "--json", "plan.json"]) == 0
    plan = json.loads(Path("plan.json").read_text())
    assert plan["fits"]
    models = {model["name"]: model["trained"] + model["frozen"] for model in plan["models"]}
    teacher, student = (
        AutoModelForCausalLM.from_pretrained(Path("models") / hub_id.rpartition("/")[2]).num_parameters()
        for hub_id in PAIRS[pair]
    )
    if recipe == "dpo":
        assert models["model"] == teacher
    else:
        assert models["teacher"] == teacher
        assert recipe == "score" or models["student"] == student


def assert_same_model(start: Path, written: Path) -> None:
    """Two steps at a low learning rate leave a model what it was: its class, its settings, nearly its weights."""
    before, after = (
        AutoConfig.from_pretrained(folder).to_dict() | {"_name_or_path": ""} for folder in (start, written)
    )
    # The end that was trained is among those at which generation stops.
    ends = before.pop("eos_token_id"), after.pop("eos_token_id")
    assert ends[0] == ends[1] or ends[0] in ends[1]
    assert {key: value for key, value in after.items() if before.get(key, value) != value} == {}
    assert after["dtype"] == "bfloat16"
    names = [set(load_file(folder / "model.safetensors")) for folder in (start, written)]
    assert names[0] == names[1]  # a tied head is not written a second time
    ids = torch.arange(3, 60)[None]
    logits = [
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits for folder in (start, written)
    ]
    torch.testing.assert_close(*logits, rtol=0.05, atol=0.1)
    chat = [{"role": "user", "content": TEXTS[1]}, {"role": "assistant", "content": TEXTS[2]}]
    texts = [AutoTokenizer.from_pretrained(folder).apply_chat_template(chat) for folder in (start, written)]
    assert texts[0]["input_ids"] == texts[1]["input_ids"]


@pytest.mark.parametrize("pair", ["mistral_7b_to_qwen2.5_1.5b"])
def test_pairs_of_own_answers(pair, world):
    """One of the rows is a tie, which is left out."""
    few = ["answers=3", "sampling.max_new_tokens=6", "models.student.dtype=float32"]
    assert main(["run", "sample", "--config", f"{pair}/sample", *few]) == 0
    answers = Path(f"runs/{pair}/sample/candidates/student.jsonl")  # which models this small never end
    answers.write_text(answers.read_text().replace('"finish": "length"', '"finish": "stop"'))
    loose = ["pairing.length_ratio=null", "contrast.teacher.dtype=float32"]
    assert main(["run", "rank", "--config", f"{pair}/rank", *loose]) == 0
    lines = Path(f"runs/{pair}/rank/pairs.jsonl").read_bytes().splitlines()
    assert 0 < len(lines) <= 9
    assert main(["pipeline", f"{pair}/on_policy", "--dry-run"]) == 0


@pytest.mark.parametrize("pair", PAIRS)
def test_every_command_of_a_header_is_sound(pair, world):
    """Once the commands have run that it builds on."""
    adapter = Path("runs") / pair / "dpo" / "adapter"
    assert adapter.is_dir(), "test_two_steps writes it"
    Path(adapter.parent.parent / "dpo_reversed").mkdir(exist_ok=True)
    if not (adapter.parent.parent / "dpo_reversed" / "adapter").exists():
        (adapter.parent.parent / "dpo_reversed" / "adapter").symlink_to(adapter.resolve())
    for command in runs(header(pair)):
        module = load_recipe(catalog.find_recipe(command.recipe))
        load_config(module.Config, command.path, [*command.overrides, "output_dir=elsewhere"])


@pytest.mark.parametrize("pair", PAIRS)
def test_the_chain_is_sound(pair, world, capfd):
    for command in re.findall(r"^#   prefkd pipeline (.+)$", header(pair), re.MULTILINE):
        words = [word for word in command.split() if word not in ("--nproc-per-node", "8", "--dry-run")]
        assert main(["pipeline", *words, "--dry-run"]) == 0, capfd.readouterr().err
