"""What the tests of sft and dpo share: a tiny world, a run through the command line, and log-probs by other means."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.recipes.runs import answer_logprobs, assert_same_metrics, assert_same_weights, read_rows, train
from tests.tiny import make_model, write_pairs

__all__ = ["answer_logprobs", "read_rows"]


def make_world(folder: Path) -> Path:
    """A model, pairs, held-out pairs."""
    make_model(folder / "model", "llama", "byte_level", seed=1)
    write_pairs(folder / "pairs.jsonl", 12)
    write_pairs(folder / "held_out.jsonl", 5)
    return folder


def run(recipe: str, world: Path, out: Path, *overrides: str, options: tuple[str, ...] = (), code: int = 0):
    """Run a recipe and return its metrics, one dictionary for each step."""
    settings = f"""
        model: {{path: {world}/model}}
        data: {{source: {world}/pairs.jsonl, held_out_source: {world}/held_out.jsonl}}
        optimizer: {{_component_: torch.optim.SGD, lr: 0.1}}
        lr_schedule: {{_component_: transformers.get_constant_schedule_with_warmup, num_warmup_steps: 0}}
        training:
          {{batch_size: 4, microbatch_size: 4, precision: float32, evaluate_every: 2, max_grad_norm: 1000.0,
            sample_answers: 0}}
        """
    return train(recipe, settings, out, *overrides, options=options, code=code)


def saved_weights(out: Path) -> dict[str, torch.Tensor]:
    """What a run has saved, a model or an adapter."""
    (path,) = (*out.glob("model/*.safetensors"), *out.glob("adapter/*.safetensors"))
    return load_file(path)


def assert_same_run(one: tuple[Path, list[dict]], other: tuple[Path, list[dict]], tolerance: float) -> None:
    assert_same_metrics(one[1], other[1], tolerance)
    assert_same_weights(saved_weights(one[0]), saved_weights(other[0]), tolerance)


def load_model(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def encode(world: Path, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """Prompt and answer as token ids, without anything of prefkd."""
    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    text = f"<|user|>{prompt}<|end|><|assistant|>"
    # The chat template trims the answer.
    before, after = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (text, answer.strip()))
    return before, [*after, tokenizer.eos_token_id]
