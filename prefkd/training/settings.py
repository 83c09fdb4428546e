"""Settings that every training recipe has, with the defaults of the papers."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from prefkd.config import Component, build
from prefkd.config.components import component_problems
from prefkd.config.hints import LARGEST_SEED, size_problems
from prefkd.errors import Problem
from prefkd.models.compiled import compile_obstacle
from prefkd.models.varlen import Attention

# More passes over the data than this are planned ahead for minutes, and never end.
MOST_EPOCHS = 10_000
# More answers than this are an evaluation of their own (recipe evaluate).
MOST_SAMPLES = 100

LOWER_IS_BETTER = ("loss", "perplexity", "cross_entropy")

# Of the GPUs that flash attention runs on.
LEAST_CAPABILITY = (8, 0)

Recomputed = Literal["none", "selective", "full", "auto"]
Export = Literal["auto", "bfloat16", "float32", "checkpoint"]


@dataclass
class TrainingConfig:
    """How long, on what, and in which portions a recipe trains.

    Attributes:
        epochs: Passes over the training pairs.
        max_steps: End after this many optimizer steps, whatever `epochs` says.
        batch_size: Pairs of one optimizer step, over all ranks together.
        microbatch_size: Pairs of one forward pass on one rank. It changes memory and speed, never the result.
        microbatch_tokens: Maximum tokens of one forward pass, padding not counted, instead of a number of pairs. A pass
            takes many short pairs or a few long ones, so no pass needs much more memory than another.
        max_grad_norm: Gradients are scaled so that their joint norm is at most this; projectors are clipped separately.
        precision: Type in which the student computes.
        weights: Type of the weights that learn. Those in float32 are cast to `precision` for each layer. Steps are far
            smaller than a unit of bfloat16, so bfloat16 needs an optimizer that rounds stochastically:
            `torchao.optim.AdamW8bit` and its like with `bf16_stochastic_round: true`. It halves weights and gradients.
        export: How the trained weights are saved. `bfloat16` rounds them stochastically, so that steps smaller than a
            unit of bfloat16 are kept on average, `float32` does not round them, `checkpoint` rounds to the nearest
            number of the checkpoint's own type, which loses small steps. `auto` is bfloat16 for checkpoints in half
            precision and float32 for others. Adapters are always float32.
        attention: How tokens attend. `mask`: in padded rows under a mask; `varlen`: in packed rows without padding and
            mask, by torch's kernel for GPUs (on a CPU by a stand-in for tests); `auto`: varlen on a GPU where it passes
            its check on the first pair, else mask. The teacher's too.
        compile: Whether torch compiles each layer, for all lengths at one time: `true`, `false`, or `auto`, on a GPU
            where that passes its check on the first pair. The teacher's too.
        activation_checkpointing: Activations that the backward pass computes again instead of keeping them: `none`;
            `selective`, all but those of products and attention, which costs little time; `full`, all of each layer,
            which costs a forward pass. `auto` is none on a CPU, and on a GPU the first of the three whose plan
            (`prefkd plan`) fits.
        chunk_size: Target tokens whose logits exist at one time; null = as many as the device has room for.
        shard_over: With several processes (FSDP2), `all` splits the model over all of them, `node` over those of a
            node, so that each node has all of it and only gradients travel between nodes.
        sync_once: With several processes, gather weights and sum gradients once for all microbatches of a step. Until
            it is over, each rank holds all weights in `precision`, and the whole gradient in float32.
        cpu_offload: The student's weights, gradients and optimizer states wait in main memory; with --nproc-per-node.
        evaluate_every: Optimizer steps between evaluations on the held-out pairs; also before and after training.
        keep_best: The held-out metric by which the best of all evaluations is found; its weights are saved at the end.
            null = those of the last step. `loss` and `perplexity` are best where they are lowest, the others where they
            are highest.
        stop_after: End after this many evaluations without a better `keep_best`.
        export_every: Optimizer steps between exports of the whole model or adapter, as at the end, to
            exports/step_... in the output folder; they stay.
        sample_answers: Number of held-out prompts that are answered at each evaluation, for samples.jsonl and
            report.html; in a run of one process.
        sample_tokens: Maximum tokens of such an answer.
        win_rate: Who says whether each of these answers is better than the one before training, for samples/win_rate in
            the metrics: `prefkd.evaluation.win_rate.ByRewardModel` or `ByJudge`, with settings; null = nobody.
        checkpoint_every: Optimizer steps between checkpoints (`prefkd.training.checkpoint`), from which a run that was
            ended resumes exactly; null = only when a signal ends it.
        keep_checkpoints: Number of the newest checkpoints to keep. When the run is finished, all are removed.
        async_checkpoints: Whether a checkpoint is copied to main memory first, and written during the next steps:
            `true`, `false`, or `auto`, on a GPU.
        profile: Write a trace of steps 3 to 5 into the folder `profile` of the run, for https://ui.perfetto.dev.
        resume: `auto` resumes in an output folder that holds an unfinished run with these settings, and begins
            otherwise; `none` never resumes, and a folder with an unfinished run is an error; the path of a checkpoint
            resumes from that one.
        seed: Seed of shuffling and of every random choice.
        device: `auto` takes the GPU where there is one.
    """

    epochs: int = 1
    max_steps: int | None = None
    batch_size: int = 16
    microbatch_size: int = 4
    microbatch_tokens: int | None = None
    max_grad_norm: float = 1.0
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    weights: Literal["float32", "bfloat16"] = "float32"
    export: Export = "auto"
    attention: Attention = "auto"
    compile: bool | Literal["auto"] = "auto"
    activation_checkpointing: Recomputed = "auto"
    chunk_size: int | None = None
    shard_over: Literal["all", "node"] = "all"
    sync_once: bool = False
    cpu_offload: bool = False
    evaluate_every: int = 100
    keep_best: Literal["loss", "perplexity", "accuracy", "logprob_accuracy", "margin"] | None = None
    stop_after: int | None = None
    export_every: int | None = None
    sample_answers: int = 3
    sample_tokens: int = 64
    win_rate: Component | None = None
    checkpoint_every: int | None = 200
    keep_checkpoints: int = 2
    async_checkpoints: bool | Literal["auto"] = "auto"
    profile: bool = False
    resume: str = "auto"
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @property
    def reading(self) -> dict[str, Any]:
        """What `prefkd.models.logprob_model.LogprobModel` is told of every model of a run."""
        return {"chunk_size": self.chunk_size, "attention": self.attention, "compile": self.compile}

    @property
    def compute_dtype(self) -> torch.dtype:
        """`precision` as torch names it."""
        return getattr(torch, self.precision)

    def problems(self) -> Iterator[Problem | str]:
        sizes = ("max_steps", "batch_size", "microbatch_size", "chunk_size", "evaluate_every")
        yield from size_problems(self, *sizes, "microbatch_tokens", "checkpoint_every", "keep_checkpoints")
        yield from size_problems(self, "stop_after", "export_every", "sample_tokens")
        yield from size_problems(self, "sample_answers", least=0, most=MOST_SAMPLES)
        if self.stop_after is not None and self.keep_best is None:
            yield "stop_after: goes with keep_best, which is missing; name a metric there, for example loss"
        yield from self._win_rate_problems()
        yield from size_problems(self, "epochs", most=MOST_EPOCHS)
        yield from size_problems(self, "seed", least=0, most=LARGEST_SEED)
        if self.max_grad_norm <= 0:
            yield f"max_grad_norm: {self.max_grad_norm} would stop all learning; use a positive number, such as 1.0"
        if self.sync_once and self.cpu_offload:
            yield "sync_once: keeps on the GPU what cpu_offload moves to main memory; remove one of the two"
        if self.weights == "bfloat16" and self.precision != "bfloat16":
            yield f"weights: bfloat16 goes with precision: bfloat16, and it is {self.precision}; change one of the two"
        if self.device == "cuda" and not torch.cuda.is_available():
            yield Problem("device", "cuda is not available here; use auto or cpu", about="device")
        yield from kernel_problems(self, self.precision)

    def _win_rate_problems(self) -> Iterator[Problem | str]:
        if self.win_rate is None or list(component_problems(self.win_rate)):
            return  # what is wrong with a component is said of it
        if not self.sample_answers:
            yield "win_rate: no answers are sampled; set sample_answers to 16, say, or use null"
        judge = build(self.win_rate)
        if not hasattr(judge, "wins"):
            yield f"win_rate: {self.win_rate['_component_']} has no method wins; use ByRewardModel or ByJudge"
        elif hasattr(judge, "problems"):
            yield from (Problem.of(problem).under("win_rate") for problem in judge.problems())


def kernel_problems(config: Any, precision: str) -> Iterator[Problem]:
    """What a device or a machine cannot do that is demanded of it, as far as that is known before a model is loaded.

    Args:
        config: A section with `attention`, `compile` and `device`.
        precision: Type in which the model computes.
    """
    has_gpu = torch.cuda.is_available()
    if config.attention == "varlen" and has_gpu and config.device != "cpu":
        if precision == "float32":
            yield Problem("attention", "varlen has no float32; use auto, or bfloat16")
        elif torch.cuda.get_device_capability() < LEAST_CAPABILITY:
            card = torch.cuda.get_device_name()
            yield Problem("attention", f"varlen needs an NVIDIA GPU from Ampere on, and this is {card}; use auto")
    if config.compile is True and (obstacle := compile_obstacle()):
        yield Problem("compile", f"{obstacle}; install one, or use auto or false")


def output_problems(output_dir: Path) -> Iterator[Problem]:
    """What stands in the way of writing a new run to a folder."""
    if (output_dir / "metrics.jsonl").exists():
        yield output_problem(output_dir, f"{output_dir} holds an earlier run; name another folder or remove that one")
    else:
        yield from folder_problems(output_dir)


def folder_problems(output_dir: Path) -> Iterator[Problem]:
    """What stands in the way of writing to a folder, which need not be there."""
    folders = (output_dir, *output_dir.absolute().parents)
    there = next(folder for folder in folders if folder.exists() or folder.is_symlink())
    if not there.exists():
        text = f"{there} is a link to {there.readlink()}, which does not exist; remove it, or name another folder"
        yield output_problem(output_dir, text)
    elif not there.is_dir():
        yield output_problem(output_dir, f"{there} is a file; name a folder")
    elif not os.access(there, os.W_OK | os.X_OK):
        text = f"{there} may not be written to; change its permissions, or name another folder"
        yield output_problem(output_dir, text)


def output_problem(output_dir: Path, text: str) -> Problem:
    """A problem of the folder of a run."""
    return Problem("output_dir", text, about="output", paths=(output_dir,))
