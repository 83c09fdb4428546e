"""Shrunk models keep what surprises in the real ones, and prefkd reads them as they read themselves."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from prefkd.data.collate import collate_pairs
from prefkd.data.pairs import DataConfig, load_pairs
from prefkd.data.sides import ModelSide
from prefkd.data.steps import Microbatch
from prefkd.data.tokenizing import align_pairs
from prefkd.models.checks import check_model
from prefkd.models.load import ModelConfig, load_causal_lm, load_tokenizer
from prefkd.models.logprob_model import LogprobModel
from tests.configs.real_models import REAL
from tests.configs.shrunk import MISTRAL_TEMPLATE, QWEN_2_5_TEMPLATE, QWEN_3_TEMPLATE, WINDOW, make_shrunk
from tests.tiny import write_pairs

CPU = torch.device("cpu")
EOS = {"mistral": "</s>", "phi3": "<|end|>", "qwen2": "<|im_end|>", "qwen3": "<|im_end|>", "llama": "<|eot_id|>"}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Dataset:
    return load_pairs(DataConfig(str(write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl")))).train


def align(pairs: Dataset, student: ModelSide, teacher: ModelSide) -> Dataset:
    return align_pairs(pairs, student, teacher, config=DataConfig("pairs.jsonl"))


@pytest.mark.parametrize("hub_id", REAL)
def test_log_probs_are_those_of_the_models_own_logits(hub_id, pairs, tmp_path):
    """To float32: behind sliding windows, scaled positions and rows of the head that belong to no token."""
    tokens, real = REAL[hub_id]
    config = ModelConfig(str(make_shrunk(hub_id, tmp_path / "model")))
    lm, tokenizer = load_causal_lm(config, dtype=torch.float32, device=CPU), load_tokenizer(config)
    assert [type(lm).__name__] == real["architectures"]
    assert lm.config.vocab_size - len(tokenizer) == real["vocab_size"] - tokens
    assert lm.config.tie_word_embeddings == real["tie_word_embeddings"]
    side = ModelSide(tokenizer)
    assert tokenizer.convert_ids_to_tokens(side.eos_id) == EOS[real["model_type"]]

    model, aligned = LogprobModel(lm), align(pairs, side, side)
    for share_prompt in (True, False):
        batch = collate_pairs(aligned, Microbatch(list(range(4))), share_prompt=(share_prompt, share_prompt))
        assert batch.student.input_ids.shape[1] > WINDOW
        check_model(model, batch.student, hub_id)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        (("tokenizer-qwen", QWEN_2_5_TEMPLATE), ("tokenizer-mistral-v3", MISTRAL_TEMPLATE)),
        (("tokenizer-qwen", QWEN_3_TEMPLATE), ("tokenizer-qwen", QWEN_3_TEMPLATE)),
    ],
    ids=["mistral_to_qwen2.5", "qwen3_to_qwen3"],
)
def test_real_tokenizers_in_templates_of_these_shapes(student, teacher, real_models, pairs):
    sides = [real_side(real_models / name, template) for name, template in (student, teacher)]
    aligned = align(pairs, *sides)
    assert len(aligned) == len(pairs)
    for row, pair in zip(aligned, pairs, strict=True):
        for side, name in zip(sides, ("student", "teacher"), strict=True):
            ids = row[f"{name}_chosen"]
            assert ids[-1] == side.eos_id
            chat = [*pair["prompt"], {"role": "assistant", "content": pair["chosen"]}]
            whole = side.tokenizer.apply_chat_template(chat, return_dict=False)
            assert [*row[f"{name}_prompt"], *ids] == whole[: len(row[f"{name}_prompt"]) + len(ids)]
        if student == teacher:  # but where a character takes several tokens, every token is a parent
            assert row["student_chosen"] == row["teacher_chosen"]
            assert row["chosen_parents"] == len(set(row["student_chosen_parents"]))


def real_side(folder: Path, template: str) -> ModelSide:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    return ModelSide(tokenizer)
