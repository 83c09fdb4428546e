"""What the tests of the distillation recipes share: a student, a teacher of another kind, and a run."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from prefkd.cli.main import main
from tests.tiny import make_model, write_pairs


def make_world(folder: Path) -> Path:
    """Models and pairs."""
    make_model(folder / "student", "qwen2", "metaspace", seed=1)
    make_model(folder / "teacher", "llama", "byte_level", seed=2)
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
        student: {{path: {world}/student}}
        teacher: {{path: {world}/teacher, dtype: float32}}
        data: {{source: {world}/pairs.jsonl, held_out_source: {world}/held_out.jsonl}}
        optimizer: {{_component_: torch.optim.SGD, lr: 0.1}}
        lr_schedule: {{_component_: transformers.get_constant_schedule_with_warmup, num_warmup_steps: 1}}
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


def score(world: Path, out: Path, *overrides: str, options: tuple[str, ...] = (), code: int = 0) -> Path:
    """Run recipe score and return the folder of scores."""
    config = out.parent / f"{out.name}.yaml"
    config.write_text(
        f"""
        output_dir: {out}
        student: {{path: {world}/student}}
        teacher: {{path: {world}/teacher, dtype: float32}}
        data: {{source: {world}/pairs.jsonl, held_out_source: {world}/held_out.jsonl}}
        pairs_per_shard: 5
        microbatch_size: 2
        """,
        encoding="utf-8",
    )
    assert main(["run", *options, "score", "--config", str(config), *overrides]) == code
    return out / "scores"


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "student" / "model.safetensors")


def assert_same_metrics(one: list[dict], other: list[dict], tolerance: float) -> None:
    for left, right in zip(one, other, strict=True):
        for name in left.keys() - {"tokens_per_second"}:
            assert left[name] == pytest.approx(right[name], rel=tolerance, abs=tolerance), (
                name,
                left[name],
                right[name],
            )


def assert_same_run(one: tuple[Path, list[dict]], other: tuple[Path, list[dict]], tolerance: float) -> None:
    assert_same_metrics(one[1], other[1], tolerance)
    for (name, left), right in zip(weights(one[0]).items(), weights(other[0]).values(), strict=True):
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance, msg=name)


def student_logprob(world: Path, lm: torch.nn.Module, prompt: str, answer: str) -> torch.Tensor:
    """log pi(y|x) of the student from whole logits, without anything of prefkd; its tokenizer has no chat template."""
    tokenizer = AutoTokenizer.from_pretrained(world / "student")
    heading = f"User:\n{prompt}\n\nAssistant:\n"
    before = [tokenizer.bos_token_id, *tokenizer(heading, add_special_tokens=False)["input_ids"]]
    return _logprobs(lm, before, [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id])


def teacher_logprobs(world: Path, lm: torch.nn.Module, prompt: str, answer: str) -> torch.Tensor:
    """log-prob of each token of an answer under the teacher, in whose chat template it stands."""
    tokenizer = AutoTokenizer.from_pretrained(world / "teacher")
    before = tokenizer(f"<|user|>{prompt}<|end|><|assistant|>", add_special_tokens=False)["input_ids"]
    after = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return _logprobs(lm, before, after, whole=False)


def read_rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _logprobs(lm: torch.nn.Module, before: list[int], after: list[int], *, whole: bool = True) -> torch.Tensor:
    logits = lm(torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
    each = logits.log_softmax(-1).gather(-1, torch.tensor(after)[:, None])[:, 0]
    return each.sum() if whole else each
