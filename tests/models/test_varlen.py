"""Packed rows without a mask say what padded rows under a mask say: log-probs and gradients, on a CPU's stand-in.

The kernel itself runs on GPUs only. What is tested here is all that surrounds it: packing, positions, keys, windows.
"""

import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from prefkd.data.batches import Segment, TokenBatch
from prefkd.data.collate import collate_answers, collate_pairs, collate_tokens
from prefkd.data.pairs import DataConfig, load_pairs
from prefkd.data.rows import Reading
from prefkd.data.steps import Microbatch
from prefkd.data.tokens import tokenize_pairs
from prefkd.errors import PrefkdError
from prefkd.models import checks, varlen
from prefkd.models.attention import shared_prompt_mask
from prefkd.models.checks import check_model
from prefkd.models.load import ModelConfig, load_causal_lm, read_side
from prefkd.models.logprob_model import LogprobModel
from prefkd.models.lora import LoraConfig, add_adapter
from tests.models.architectures import ARCHITECTURES, random_pairs
from tests.tiny import make_model, write_pairs

CPU = torch.device("cpu")
OBSTACLES = {"gemma2": "caps its attention scores"}


def make(folder, architecture: str, attention: str, **settings) -> LogprobModel:
    # Larger weights would make more of rounding.
    settings = ARCHITECTURES[architecture] | {"initializer_range": 0.1} | settings
    make_model(folder, architecture.split("-")[0], "byte_level", **settings)
    lm = load_causal_lm(ModelConfig(str(folder)), dtype=torch.float32, device=CPU)
    return LogprobModel(lm, attention=attention)  # pyright: ignore[reportArgumentType]


def tokens_of(rows: list[int], share: bool = True) -> TokenBatch:
    return collate_pairs(random_pairs(100, seed=1), Microbatch(rows), share_prompt=(share, share)).student


def results(model: LogprobModel, tokens: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs, and the gradient of all weights in one vector."""
    logprobs = model(tokens)
    weights = torch.linspace(-1, 1, len(logprobs))
    learning = [value for value in model.parameters() if value.requires_grad]
    gradients = torch.autograd.grad((weights * logprobs).sum(), learning)
    return logprobs, torch.cat([gradient.flatten() for gradient in gradients])


def assert_same(one: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]) -> None:
    for left, right in zip(one, other, strict=True):
        assert ((left - right).norm() / right.norm()).item() < 1e-6


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES.keys() - OBSTACLES.keys()))
def test_packed_rows_are_masked_rows(tmp_path, architecture):
    model = make(tmp_path, architecture, "varlen")
    for share in (True, False):
        tokens = tokens_of([0, 1, 2], share)  # 7 + 5 + 9, 1 + 1 + 3, 12 + 8 + 2 tokens
        model.packs = False
        masked = results(model, tokens)
        check_model(model, tokens_of([0], share), "student")
        assert model.packs
        assert_same(results(model, tokens), masked)


@limits(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.tuples(*[st.integers(1, 6)] * 3), min_size=1, max_size=4),
    shares=st.booleans(),
    window=st.none() | st.integers(1, 5),
)
def test_each_token_sees_what_the_mask_lets_it_see(sizes, shares, window):
    made = collate_tokens(tokenized(sizes), Microbatch([*range(len(sizes))]), share_prompt=shares).tokens
    packing, segments, positions = made.packing, made.segments.flatten(), made.position_ids.flatten()
    width = made.input_ids.shape[1]
    if shares:
        allowed = shared_prompt_mask(made, window)[:, 0]
    else:
        order = torch.arange(width)
        distance = order[:, None] - order
        allowed = ((distance >= 0) & (distance < (window or width))).expand(len(made.input_ids), -1, -1)
    assert segments[packing.places].max() < Segment.PADDING and len(packing.places) == (segments < 3).sum()
    keys = torch.arange(len(packing.places)) if packing.keys is None else packing.keys
    for (q, q_end), (k, k_end) in zip(
        pairwise(packing.query_starts.tolist()), pairwise(packing.key_starts.tolist()), strict=True
    ):
        for query in range(q, q_end):
            last = k_end - (q_end - 1 - query)  # causal to the bottom right
            first = max(k, last - window) if window else k
            seen = packing.places[keys[first:last]]
            place = packing.places[query]
            assert (
                seen.tolist()
                == (allowed[place // width, place % width].nonzero()[:, 0] + place // width * width).tolist()
            )
            assert positions[seen].tolist() == list(range(positions[place] - len(seen) + 1, positions[place] + 1))
    torch.testing.assert_close(packing.places[packing.predictors], made.predictors)


def tokenized(sizes: list[tuple[int, int, int]]) -> Dataset:
    """Pairs of random tokens, of one model."""
    draw, rows = random.Random(0), []
    for row, own in enumerate(sizes):
        prompt, chosen, rejected = ([draw.randrange(100) for _ in range(size)] for size in own)
        reading = Reading(prompt, (chosen, rejected), (range(len(chosen)), range(len(rejected))))
        rows.append({"file": "made", "row": row, **reading.columns()})
    return Dataset.from_list(rows)


@pytest.mark.parametrize("recompute", [False, True])
def test_adapters_and_recomputed_layers(tmp_path, recompute):
    model = make(tmp_path, "mistral", "varlen")
    add_adapter(model.lm, LoraConfig(rank=4), seed=0)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.02)
    masked = results(model, tokens_of([0, 1, 2]))
    if recompute:
        model.lm.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    check_model(model, tokens_of([0]), "student")
    assert_same(results(model, tokens_of([0, 1, 2])), masked)


def test_single_answers(tmp_path):
    model = make(tmp_path, "gemma3_text", "varlen")
    pairs = tokenized([(7, 5, 9), (1, 1, 3), (12, 8, 2)])
    tokens = collate_answers(pairs, Microbatch([2, 1, 0]), answer="rejected").tokens
    masked = results(model, tokens)
    check_model(model, tokens_of([0], share=False), "model")
    assert_same(results(model, tokens), masked)


def test_a_model_reads_and_is_saved_as_before(tmp_path):
    """Without a packing, for generation say, a model attends as it did; and nothing of it is in its folder."""
    model = make(tmp_path / "one", "mistral", "varlen").freeze()
    ids = torch.arange(20)[None]
    before = model.lm(input_ids=ids).logits, model.lm.generate(ids, max_new_tokens=8, do_sample=False)
    check_model(model, tokens_of([0]), "model")
    assert model.packs
    torch.testing.assert_close(model.lm(input_ids=ids).logits, before[0])
    assert model.lm.generate(ids, max_new_tokens=8, do_sample=False).tolist() == before[1].tolist()
    model.lm.save_pretrained(tmp_path / "two")
    assert varlen.NAME not in (tmp_path / "two" / "config.json").read_text()


def test_a_kernel_that_is_wrong_is_seen_before_the_model(tmp_path, monkeypatch):
    kernel, model = varlen.varlen_on_cpu, make(tmp_path, "llama", "varlen")
    halves = (model.lm, torch.bfloat16, CPU)
    assert varlen.kernel_fault(*halves) is None
    broken = {"window_size": (-1, 0)}  # as if it knew no windows

    def ignorant(query, *where, **how):
        return kernel(query, *where, **how | (broken if query.dtype == torch.bfloat16 else {}))

    monkeypatch.setattr(varlen, "varlen_on_cpu", ignorant)
    assert "differs from plain attention" in (varlen.kernel_fault(*halves) or "")


@pytest.mark.parametrize("way", ["raises", "ignored"])
def test_what_does_not_work_is_not_used(tmp_path, monkeypatch, caplog, way):
    def broken(*where, **how):
        raise RuntimeError("no kernel image is available")

    if way == "ignored":  # the model itself, not the kernel
        monkeypatch.setattr(checks, "kernel_fault", lambda *_: None)
        monkeypatch.setattr(varlen, "_attend", lambda query, key, value, **_: query)
    else:
        monkeypatch.setattr(varlen, "varlen_on_cpu", broken)
    expected = {"raises": "no kernel image", "ignored": "log-probs are off"}[way]
    model = make(tmp_path, "llama", "varlen")
    masked = model(tokens_of([0, 1]))
    with pytest.raises(PrefkdError, match=f"student: attention: varlen cannot be used: .*{expected}.*use auto or mask"):
        check_model(model, tokens_of([0]), "student")
    # On a GPU `auto` tries it as well, and goes on without.
    model.attention = "auto"
    monkeypatch.setattr(checks, "tries_varlen", lambda attention, device: True)
    check_model(model, tokens_of([0]), "student")
    (line,) = caplog.messages
    assert line.startswith("student: attention under a mask, since varlen cannot be used: ") and expected in line
    torch.testing.assert_close(model(tokens_of([0, 1])), masked)


def test_attention_of_another_kind(tmp_path):
    model = make(tmp_path, "gemma2", "varlen")
    with pytest.raises(PrefkdError, match=r"gemma2 (has an attention of its own|caps its attention scores)"):
        check_model(model, tokens_of([0]), "student")


def test_a_cpu_keeps_the_mask(tmp_path):
    model = make(tmp_path, "llama", "auto")
    check_model(model, tokens_of([0]), "student")
    assert not model.packs


def test_a_target_outside_the_vocabulary(tmp_path):
    model = make(tmp_path, "llama", "mask")
    tokens = tokens_of([0])
    with pytest.raises(ValueError, match="target 5000 is outside the vocabulary"):
        model(replace(tokens, largest_target=5000))


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma-3-270m"])
def test_real_models(real_models, tmp_path, name):
    """Heads are grouped in both; of the second, most layers have a window of 512 positions."""
    config = ModelConfig(str(real_models / name))
    model = LogprobModel(load_causal_lm(config, dtype=torch.float32, device=CPU)).freeze()
    pairs = load_pairs(DataConfig(str(write_pairs(tmp_path / "pairs.jsonl", 2)), held_out_fraction=0.0)).train
    rows = tokenize_pairs(pairs, read_side(config), config=DataConfig("pairs.jsonl"))
    batch = collate_tokens(rows, Microbatch([0, 1]), share_prompt=True)
    masked = model(batch.tokens)
    varlen.use_varlen(model.lm)
    model.packs = True
    assert ((model(batch.tokens) - masked).norm() / masked.norm()).item() < 1e-5
