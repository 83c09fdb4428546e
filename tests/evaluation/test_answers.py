"""Answers are those of the model alone whatever shares the batch; scorers, reward models and judges on tiny models."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from prefkd.data.formats import Message
from prefkd.data.sides import ModelSide
from prefkd.errors import DataError, PrefkdError
from prefkd.evaluation.generation import (
    FiniteLogits,
    SamplingConfig,
    SeededDraws,
    answer_batch,
    plan_batches,
    sample_batch,
)
from prefkd.evaluation.prompts import Prompt, PromptsConfig, read_prompts
from prefkd.evaluation.reward_model import RewardModel, RewardModelConfig
from prefkd.models.served import Answer
from tests.tiny import make_model, make_tokenizer

CPU = torch.device("cpu")
PROMPTS = [
    Prompt(f"f:{i}", [Message(role="user", content=f"Say {'more and ' * (i * 2 % 5)}more, {i}!")], []) for i in range(7)
]


@pytest.fixture(scope="module", params=["byte_level", "metaspace"])
def model(request, tmp_path_factory) -> tuple[torch.nn.Module, ModelSide]:
    """With a chat template, and without one."""
    kind = "llama" if request.param == "byte_level" else "qwen2"
    folder = make_model(tmp_path_factory.mktemp("model"), kind, request.param, seed=1)
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return lm, ModelSide(AutoTokenizer.from_pretrained(folder))


def answers(model, config: SamplingConfig) -> dict[str, str]:
    lm, side = model
    return {
        prompt.key: text
        for batch in plan_batches(PROMPTS, side, config)
        for prompt, text in zip(batch.prompts, answer_batch(lm, side, batch, config), strict=True)
    }


def test_greedy_answers_are_those_of_the_likeliest_token_each_time(model):
    lm, side = model
    found = answers(model, SamplingConfig(max_new_tokens=12, batch_size=3))
    for prompt in PROMPTS:
        if side.uses_chat_template:
            ids = side.tokenizer(f"<|user|>{prompt.messages[0]['content']}<|end|><|assistant|>")["input_ids"]
        else:
            ids = side.tokenizer(f"User:\n{prompt.messages[0]['content']}\n\nAssistant:\n", add_special_tokens=False)
            ids = [side.bos_id, *ids["input_ids"]]
        new: list[int] = []
        while len(new) < 12 and side.eos_id not in new:
            new.append(int(lm(torch.tensor([ids + new])).logits[0, -1].argmax()))
        assert found[prompt.key] == side.tokenizer.decode(new, skip_special_tokens=True).strip()


def test_batches_are_of_like_length_and_hold_every_prompt_once(model):
    batches = plan_batches(PROMPTS, model[1], SamplingConfig(batch_size=3))
    lengths = [len(ids) for batch in batches for ids in batch.ids]
    assert lengths == sorted(lengths, reverse=True)
    assert sorted(prompt.key for batch in batches for prompt in batch.prompts) == [prompt.key for prompt in PROMPTS]


def test_long_prompts_keep_their_end(model):
    for batch in plan_batches(PROMPTS, model[1], SamplingConfig(max_prompt_length=6)):
        assert all(len(ids) <= 6 for ids in batch.ids)
        assert all(batch.is_cut)
    assert not any(is_cut for batch in plan_batches(PROMPTS, model[1], SamplingConfig()) for is_cut in batch.is_cut)


def test_samples_depend_on_the_seed_alone(model):
    config = SamplingConfig(max_new_tokens=8, temperature=1.0, batch_size=3, seed=1)
    one = answers(model, config)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert answers(model, config) == one
    assert (torch.get_rng_state() == state).all()
    assert answers(model, SamplingConfig(max_new_tokens=8, temperature=1.0, batch_size=3, seed=2)) != one
    assert answers(model, SamplingConfig(max_new_tokens=8, batch_size=3)) != one
    assert answers(model, SamplingConfig(max_new_tokens=8, temperature=1.0, batch_size=7, seed=1)) == one


def test_bad_rows_are_left_out_where_that_is_wanted(tmp_path, caplog):
    rows = [{"prompt": "a", "chosen": "b", "rejected": "b"}, {"prompt": "c", "chosen": "d", "rejected": "e"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"row 1 of .*leave such rows out with on_bad_row: skip"):
        read_prompts(PromptsConfig(str(path)))
    assert [prompt.references for prompt in read_prompts(PromptsConfig(str(path), on_bad_row="skip"))] == [["d"]]
    assert "1 rows are left out" in caplog.text


def test_each_answer_to_a_prompt_is_another_draw(model):
    lm, side = model
    config = SamplingConfig(max_new_tokens=8, temperature=1.0, batch_size=4)
    found: dict[tuple[str, int], Answer] = {}
    for batch in plan_batches(PROMPTS[:2], side, config, answers=3):
        keys = [(prompt.key, number) for prompt, number in zip(batch.prompts, batch.numbers, strict=True)]
        found |= zip(keys, sample_batch(lm, side, batch, config), strict=True)
    assert len(found) == 6 and len({answer.text for answer in found.values()}) > 4
    assert {answer.finish for answer in found.values()} <= {"stop", "length"}
    assert all(answer.tokens == 8 for answer in found.values() if answer.finish == "length")
    one = {(prompt, 0): text for prompt, text in answers(model, config).items()}
    assert all(answer.text == one[key] for key, answer in found.items() if key[1] == 0)


@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_draws_have_the_probabilities_of_the_model(top_p):
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    rows = 20_000
    draws = SeededDraws([*range(rows)], 0.7, top_p, CPU)(torch.zeros(rows, 1), logits.repeat(rows, 1)).argmax(-1)
    expected = (logits / 0.7).softmax(-1)
    if top_p < 1:
        expected = torch.tensor([1.0, 0.0, 0.0, 0.0])  # the likeliest has 0.76 by itself
    found = draws.bincount(minlength=4) / rows
    assert (found - expected).abs().max() < 4 * (0.25 / rows) ** 0.5


def test_settings_of_the_checkpoint_do_not_change_answers(model):
    lm, _ = model
    before = answers(model, SamplingConfig(max_new_tokens=8))
    lm.generation_config.repetition_penalty = 5.0
    assert answers(model, SamplingConfig(max_new_tokens=8)) == before


def prompts_of(tmp_path: Path, *rows: object, **settings) -> list[Prompt]:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_prompts(PromptsConfig(str(path), **settings))


@pytest.mark.parametrize("setting", [{"split": "test"}, {"subset": "x"}], ids=str)
def test_a_part_of_a_source_that_has_none_is_refused(setting, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n')
    [(name, value)] = setting.items()
    [problem] = PromptsConfig(str(path), **setting).problems()
    assert str(problem) == f"{name}: {value} means nothing to a file; leave it out"
    if name == "split":
        [problem] = PromptsConfig(str(tmp_path), **setting).problems()
        assert "no file is named after the split test" in str(problem)


def test_prompts_come_in_several_forms(tmp_path):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    found = prompts_of(
        tmp_path,
        {"prompt": "One?", "references": ["1", "one"]},
        {"prompt": "Two?", "reference": "2"},
        {"prompt": turns},
        {"prompt": "Three?", "chosen": "Good.", "rejected": "Bad."},
        {"chosen": "\n\nHuman: Four?\n\nAssistant: Yes.", "rejected": "\n\nHuman: Four?\n\nAssistant: No."},
    )
    assert [prompt.key for prompt in found] == [f"prompts.jsonl:{number}" for number in range(1, 6)]
    assert [prompt.references for prompt in found] == [["1", "one"], ["2"], [], ["Good."], ["Yes."]]
    assert found[2].messages == turns
    assert found[4].messages == [{"role": "user", "content": "Four?"}]


def test_blank_text_is_no_reference(tmp_path):
    """A CSV file fills what is absent with it, and every answer contains it."""
    (tmp_path / "prompts.csv").write_text("prompt,reference\nOne?,1\nTwo?,\n")
    assert [one.references for one in read_prompts(PromptsConfig(f"{tmp_path}/prompts.csv"))] == [["1"], []]
    [prompt] = prompts_of(tmp_path, {"prompt": "Three?", "references": ["3", " "]})
    assert prompt.references == ["3"]


def test_prompts_of_every_layout_are_read(tmp_path):
    talk = "Hi\n<extra_id_1>Assistant\nYo.\n<extra_id_1>User\nWhy?"
    tie = {"prompt": talk, "response_1": "a", "response_2": "b", "preference_strength": 0}
    found = prompts_of(
        tmp_path,
        tie,
        tie | {"preference_strength": 2},
        {"history": "Why?", "human_ref_A": "a", "human_ref_B": "b", "labels": 1},
        {"prompt": "\n\nHuman: Why?\n\nAssistant:"},
        {"prompt": "Why?", "answers": ["4"]},
    )
    assert [prompt.messages[-1]["content"] for prompt in found] == ["Why?"] * 5
    assert [len(prompt.messages) for prompt in found] == [3, 3, 1, 1, 1]
    assert [prompt.references for prompt in found] == [[], ["b"], ["a"], [], []]


def test_a_model_that_says_no_number_does_not_write():
    finite = FiniteLogits("m")
    ids, logits = torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 3)
    assert finite(ids, logits) is logits
    with pytest.raises(PrefkdError, match="m: its logits are not numbers"):
        FiniteLogits("m")(ids, logits / 0)


def test_a_smaller_limit_takes_a_part_of_a_larger_one(tmp_path):
    rows = [{"prompt": f"{i}?"} for i in range(20)]
    few, many = ({prompt.key for prompt in prompts_of(tmp_path, *rows, limit=limit)} for limit in (5, 9))
    assert len(few) == 5 and few < many


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Hi"}, "row 2 of prompts.jsonl: field 'prompt' is missing"),
        ({"prompt": " "}, "the prompt is empty"),
        ({"prompt": "a\ud83d"}, "field 'prompt' is broken: half a character"),
        ({"prompt": [{"role": "user"}]}, "message 1 of field 'prompt' has no 'content'"),
        ({"prompt": "Hi", "references": 4}, "field 'references' is neither"),
        ([1], "it is of type list"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        prompts_of(tmp_path, {"prompt": "Fine?"}, row)


def make_reward_model(folder: Path, *, chat: bool, labels: int = 1) -> Path:
    tokenizer = make_tokenizer("byte_level")
    if not chat:
        tokenizer.chat_template = None
    settings = CONFIG_MAPPING["llama"](
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_labels=labels, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(3)
    AutoModelForSequenceClassification.from_config(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("chat", [True, False])
def test_rewards_are_those_of_the_classifier_one_at_a_time(tmp_path, chat):
    folder = make_reward_model(tmp_path / "reward", chat=chat, labels=2)
    texts = ["Yes.", "No, and here is why.", "Perhaps."]
    model = RewardModel(RewardModelConfig(str(folder), label=1), CPU)
    found = model.score([(PROMPTS[i].messages, text) for i, text in enumerate(texts)])
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for i, text in enumerate(texts):
        question = PROMPTS[i].messages[0]["content"]
        ids = tokenizer(f"<|user|>{question}<|end|><|assistant|>{text}<|end|>")["input_ids"] if chat else (
            tokenizer(question, text)["input_ids"]
        )  # fmt: skip
        with torch.no_grad():
            assert found[i] == pytest.approx(plain(torch.tensor([ids])).logits[0, 1].item(), abs=1e-5)


def test_a_reward_model_reads_what_its_template_refuses_another_way_or_says_so(tmp_path):
    folder = make_reward_model(tmp_path / "reward", chat=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for role in ("system", "tool"):
        refused = "{% if messages | selectattr('role', 'equalto', '" + role + "') | list %}"
        tokenizer.chat_template = refused + "{{ raise_exception('No!') }}{% endif %}" + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    model = RewardModel(RewardModelConfig(str(folder)), CPU)
    user, system = Message(role="user", content="Hi"), Message(role="system", content="Be kind.")
    joined = Message(role="user", content="Be kind.\n\nHi")
    assert model.score([([system, user], "Hello.")]) == model.score([([joined], "Hello.")])
    with pytest.raises(DataError, match=r"the chat template of reward model .*reward refuses the conversation: No!"):
        model.score([([user, Message(role="tool", content="1")], "Hello.")])


def test_a_reward_model_that_is_none(tmp_path):
    folder = make_reward_model(tmp_path / "reward", chat=True)
    with pytest.raises(PrefkdError, match="it has 1 outputs; lower label"):
        RewardModel(RewardModelConfig(str(folder), label=1), CPU)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(PrefkdError, match="cannot load the reward model"):
        RewardModel(RewardModelConfig(str(folder)), CPU)
    for path in ("nowhere", "/nowhere", "./nowhere"):
        assert f"no folder {path};" in str(next(RewardModelConfig(path).problems()))
