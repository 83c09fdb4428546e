"""What the tests of sft and dpo share: a tiny world, a run through the command line, and log-probs by other means."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefkd.cli.main import main
from tests.tiny import make_model, write_pairs


def make_world(folder: Path) -> Path:
    """A model, pairs, held-out pairs."""
    make_model(folder / "model", "llama", "byte_level", seed=1)
    write_pairs(folder / "pairs.jsonl", 12)
    write_pairs(folder / "held_out.jsonl", 5)
    return folder


def run(
    recipe: str, world: Path, out: Path, *overrides: str, options: tuple[str, ...] = (), code: int = 0
) -> list[dict]:
    """Run a recipe and return its metrics, one dictionary for each step."""
    config = out.parent / f"{out.name}.yaml"
    config.write_text(
        f"""
        output_dir: {out}
        model: {{path: {world}/model}}
        data: {{source: {world}/pairs.jsonl, held_out_source: {world}/held_out.jsonl}}
        optimizer: {{_component_: torch.optim.SGD, lr: 0.1}}
        lr_schedule: {{_component_: transformers.get_constant_schedule_with_warmup, num_warmup_steps: 0}}
        training:
          {{batch_size: 4, microbatch_size: 4, precision: float32, evaluate_every: 2, max_grad_norm: 1000.0,
            sample_answers: 0}}
        """,
        encoding="utf-8",
    )
    assert main(["run", *options, recipe, "--config", str(config), *overrides]) == code
    if code:
        return []
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def saved_weights(out: Path) -> dict[str, torch.Tensor]:
    """What a run has saved, a model or an adapter."""
    (path,) = (*out.glob("model/*.safetensors"), *out.glob("adapter/*.safetensors"))
    return load_file(path)


def assert_same_run(one: tuple[Path, list[dict]], other: tuple[Path, list[dict]], tolerance: float) -> None:
    for left, right in zip(one[1], other[1], strict=True):
        assert left.keys() == right.keys()
        for name in left.keys() - {"tokens_per_second"}:
            assert left[name] == pytest.approx(right[name], rel=tolerance, abs=tolerance), name
    left, right = saved_weights(one[0]), saved_weights(other[0])
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=tolerance, atol=tolerance, msg=name)


def load_model(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def read_rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def encode(world: Path, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """Prompt and answer as token ids, without anything of prefkd."""
    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    text = f"<|user|>{prompt}<|end|><|assistant|>"
    # The chat template trims the answer.
    before, after = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (text, answer.strip()))
    return before, [*after, tokenizer.eos_token_id]


def answer_logprobs(lm: torch.nn.Module, before: list[int], after: list[int]) -> torch.Tensor:
    """Log-prob of each token of an answer, from whole logits."""
    logits = lm(torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(after)[:, None])[:, 0]
