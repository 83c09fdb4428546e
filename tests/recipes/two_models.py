"""What the tests of the distillation recipes share: a student, a teacher of another kind, and a run."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from tests.recipes.runs import answer_logprobs, assert_same_metrics, assert_same_weights, read_rows, start, train
from tests.tiny import make_model, write_pairs

__all__ = ["assert_same_metrics", "read_rows"]


def make_world(folder: Path) -> Path:
    """Models and pairs."""
    make_model(folder / "student", "qwen2", "metaspace", seed=1)
    make_model(folder / "teacher", "llama", "byte_level", seed=2)
    write_pairs(folder / "pairs.jsonl", 12)
    write_pairs(folder / "held_out.jsonl", 5)
    return folder


def run(recipe: str, world: Path, out: Path, *overrides: str, options: tuple[str, ...] = (), code: int = 0):
    """Run a recipe and return its metrics, one dictionary for each step."""
    settings = f"""
        {models_and_pairs(world)}
        optimizer: {{_component_: torch.optim.SGD, lr: 0.1}}
        lr_schedule: {{_component_: transformers.get_constant_schedule_with_warmup, num_warmup_steps: 1}}
        training:
          {{batch_size: 4, microbatch_size: 4, precision: float32, evaluate_every: 2, max_grad_norm: 1000.0,
            sample_answers: 0}}
        """
    return train(recipe, settings, out, *overrides, options=options, code=code)


def score(world: Path, out: Path, *overrides: str, options: tuple[str, ...] = (), code: int = 0) -> Path:
    """Run recipe score and return the folder of scores."""
    settings = f"""
        {models_and_pairs(world)}
        pairs_per_shard: 5
        microbatch_size: 2
        """
    start("score", settings, out, *overrides, options=options, code=code)
    return out / "scores"


def models_and_pairs(world: Path) -> str:
    return f"""student: {{path: {world}/student}}
        teacher: {{path: {world}/teacher, dtype: float32}}
        data: {{source: {world}/pairs.jsonl, held_out_source: {world}/held_out.jsonl}}"""


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "student" / "model.safetensors")


def assert_same_run(one: tuple[Path, list[dict]], other: tuple[Path, list[dict]], tolerance: float) -> None:
    assert_same_metrics(one[1], other[1], tolerance)
    assert_same_weights(weights(one[0]), weights(other[0]), tolerance)


def student_logprob(world: Path, lm: torch.nn.Module, prompt: str, answer: str) -> torch.Tensor:
    """log pi(y|x) of the student from whole logits, without anything of prefkd; its tokenizer has no chat template."""
    tokenizer = AutoTokenizer.from_pretrained(world / "student")
    heading = f"User:\n{prompt}\n\nAssistant:\n"
    before = [tokenizer.bos_token_id, *tokenizer(heading, add_special_tokens=False)["input_ids"]]
    after = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return answer_logprobs(lm, before, after).sum()


def teacher_logprobs(world: Path, lm: torch.nn.Module, prompt: str, answer: str) -> torch.Tensor:
    """log-prob of each token of an answer under the teacher, in whose chat template it stands."""
    tokenizer = AutoTokenizer.from_pretrained(world / "teacher")
    before = tokenizer(f"<|user|>{prompt}<|end|><|assistant|>", add_special_tokens=False)["input_ids"]
    after = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return answer_logprobs(lm, before, after)
