"""Distil preferences into a student with another tokenizer: parent-token importance-weighted DPO, teacher as reference.

The student is trained on pairs of answers. Where DPO compares it with its own frozen start, here the reference is the
teacher, and every parent token (a piece of text whose borders are token borders for both models) has a weight that
says how much it tells good from bad. CTPD, arXiv 2601.11865; TIS-DPO, arXiv 2410.04350. The teacher is a model in
memory, or the scores that recipe `score` wrote down once.

    prefkd run tis_dpo_distill --config demo/tis_dpo_distill

Shapes: B pairs, P parents of the longest answer, N target tokens. Of two answers, 0 is the chosen one, 1 the rejected.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from datasets import Dataset
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedTokenizerBase, set_seed

from prefkd.config import Component, component, save_config
from prefkd.data.aligned import load_aligned_pairs
from prefkd.data.batches import Microbatch, PairBatch, collate_pairs, pair_lengths, plan_epochs, split_step
from prefkd.data.pairs import DataConfig
from prefkd.data.scores import open_scores
from prefkd.errors import Problem
from prefkd.method.preference import long_answer_weights, parent_margin
from prefkd.models.load import ModelConfig, load_causal_lm, read_side
from prefkd.models.logprob_model import LogprobModel
from prefkd.models.shard import shard
from prefkd.models.teacher import Teacher, TeacherSource, open_teacher, teacher_side
from prefkd.ranks import Ranks, join_ranks
from prefkd.training.checkpoint import Checkpoints
from prefkd.training.display import Display, parameter_count
from prefkd.training.export import save_pretrained
from prefkd.training.learning import learning_rates, require_learning, training_problems, weight_sums
from prefkd.training.losses import SUPPLIED, TWO, LossSettings, loss_problems
from prefkd.training.metrics import HeldOut, MetricsWriter, PairSums, brief, describe, require_finite
from prefkd.training.optimizer import build_optimizer, build_schedule, clip_gradients
from prefkd.training.pair_loss import PairLoss
from prefkd.training.publish import HubConfig, push, try_it, write_card
from prefkd.training.references import read_reference
from prefkd.training.settings import TrainingConfig
from prefkd.training.written import measure_written
from prefkd.weighting import WeightConfig, contrast_problems, parent_weights, weight_metrics


@dataclass
class Config(LossSettings):
    """All settings of a run; the YAML file and the key=value overrides are laid over these defaults.

    Attributes:
        output_dir: Folder of the trained student, metrics.jsonl, the resolved config and the alignment report.
        reference: The model whose log-probs the student is compared with: the teacher, or the student's frozen start.
        loss: Called with the weighted margins of chosen and rejected answers, (B,) each. A loss that takes log-probs
            gets the margins for those of the student, and 0 for those of the reference.
    """

    output_dir: Path
    student: ModelConfig
    teacher: TeacherSource
    data: DataConfig
    reference: Literal["teacher", "student"] = "teacher"
    weights: WeightConfig = field(default_factory=WeightConfig)
    loss: Component = component("prefkd.method.preference.tis_dpo_loss", supplied=(*TWO, *SUPPLIED), beta=0.1)
    optimizer: Component = component("torch.optim.AdamW", supplied=("params",), lr=1e-6, weight_decay=0.0)
    lr_schedule: Component = component(
        "transformers.get_cosine_schedule_with_warmup",
        supplied=("optimizer", "num_training_steps"),
        num_warmup_steps=10,
    )
    training: TrainingConfig = field(default_factory=TrainingConfig)
    metric_logger: Component | None = None
    push_to_hub: HubConfig | None = None

    def outputs(self) -> tuple[str, ...]:
        """What a later stage of a pipeline can build on."""
        return ("student",)

    def problems(self) -> Iterator[Problem | str]:
        yield from training_problems(self)
        yield from loss_problems(self, teacher_is_reference=self.reference == "teacher", weighted=True)
        yield from contrast_problems(self.weights, self.teacher.scores)


@dataclass
class Run:
    """What `setup` prepares and `train` uses."""

    ranks: Ranks
    display: Display
    train_pairs: Dataset
    steps: list[list[int]]
    held_out_pairs: Dataset
    held_out_rows: list[int]
    collate: Callable[[Dataset, Microbatch], PairBatch]
    student: LogprobModel
    student_tokenizer: PreTrainedTokenizerBase
    teacher: Teacher
    loss: PairLoss
    optimizer: Optimizer
    lr_schedule: LRScheduler
    checkpoints: Checkpoints


def setup(config: Config, ranks: Ranks) -> Run:
    """Load the data and the models, and say what is going to happen."""
    training, device = config.training, ranks.device
    display = Display(ranks)
    set_seed(training.seed)

    scores = open_scores(config.teacher.scores) if config.teacher.scores else None
    student_side = read_side(config.student)
    pairs = load_aligned_pairs(
        config.data,
        student=student_side,
        teacher=teacher_side(config.teacher, scores),
        scores=scores,
        instructions=config.weights.prompts,
        ranks=ranks,
    )
    train_pairs, held_out_pairs = pairs.train, pairs.held_out
    lengths, held_out_lengths = pair_lengths(train_pairs), pair_lengths(held_out_pairs)
    held_out_rows = sorted(range(len(held_out_pairs)), key=held_out_lengths.__getitem__, reverse=True)
    steps = plan_epochs(
        lengths, training.batch_size, seed=training.seed, epochs=training.epochs, max_steps=training.max_steps
    )

    lm = load_causal_lm(config.student, dtype=torch.float32, device=ranks.assembly_device)
    if training.activation_checkpointing:
        lm.gradient_checkpointing_enable({"use_reentrant": False})
    student = LogprobModel(lm, chunk_size=training.chunk_size, precision=training.compute_dtype)
    shard(student, ranks, over=training.shard_over, cpu_offload=training.cpu_offload)
    collate = partial(collate_pairs, share_prompt=(config.student.share_prompt, config.teacher.share_prompt))
    probe = collate(train_pairs, Microbatch(steps[0][:1])).to(device)
    student.check(probe.student, "student")
    teacher = open_teacher(
        config.teacher,
        is_reference=config.reference == "teacher",
        gets_instructions=config.weights.prompts is not None,
        probe=probe,
        chunk_size=training.chunk_size,
        ranks=ranks,
    )

    student.train()
    optimizer = build_optimizer(config.optimizer, student.parameters())
    lr_schedule = build_schedule(config.lr_schedule, optimizer, len(steps))
    loss = PairLoss(config, ranks, weighted=True)
    checkpoints = Checkpoints(
        config,
        model=student,
        optimizer=optimizer,
        lr_schedule=lr_schedule,
        pairs={"train": train_pairs, "held_out": held_out_pairs},
        ranks=ranks,
        display=display,
        loss=loss,
    )
    if ranks.is_main:
        config.output_dir.mkdir(parents=True, exist_ok=True)
        save_config(config, config.output_dir / "config.yaml")
        (config.output_dir / "alignment_report.json").write_text(json.dumps(pairs.report, indent=2) + "\n")
    display.table(
        "tis_dpo_distill",
        {
            "student": f"{config.student.path}  {parameter_count(lm)} parameters, {training.precision} on {device}",
            "teacher": teacher.description,
            "reference": {"teacher": "the teacher", "student": "the student's own start, read ahead"}[config.reference],
            "weights": config.weights.contrast,
            **pairs.description,
            "plan": f"{len(steps)} steps of {training.batch_size} pairs on {ranks.world_size} process(es)",
            "output": config.output_dir,
        },
    )
    if config.reference == "student":
        read = partial(
            read_reference,
            student,
            collate=collate,
            microbatch_size=training.microbatch_size,
            ranks=ranks,
            display=display,
        )
        train_pairs = read(train_pairs, [row for rows in steps for row in rows])
        held_out_pairs = read(held_out_pairs, held_out_rows)
    return Run(
        ranks=ranks,
        display=display,
        train_pairs=train_pairs,
        steps=steps,
        held_out_pairs=held_out_pairs,
        held_out_rows=held_out_rows,
        collate=collate,
        student=student,
        student_tokenizer=student_side.tokenizer,
        teacher=teacher,
        loss=loss,
        optimizer=optimizer,
        lr_schedule=lr_schedule,
        checkpoints=checkpoints,
    )


def compare(config: Config, run: Run, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of each pair of a microbatch, (B,), and what to log about each, (B,)."""
    run.loss.look_ahead(compare, config, run, batch)
    scores = run.teacher(batch)
    weights = parent_weights(config.weights, scores, batch)  # (2, B, P)
    weights = weights * long_answer_weights(batch.parent_mask, config.long_answer_weight)  # all 1 unless for LD-DPO
    token_logprobs, surplus = run.student(batch.student, run.loss.read)  # (N,)
    policy = batch.parent_sums(token_logprobs, batch.student)  # (2, B, P): l(P) = sum of l_t for t in P
    tokens = batch.parent_sums(torch.ones_like(token_logprobs), batch.student).sum(-1)
    margins = parent_margin(policy, scores.reference, weights, batch.parent_mask)  # (2, B)
    nothing = torch.zeros_like(margins)
    losses, chosen_rewards, rejected_rewards = run.loss(margins, nothing, batch, weights, surplus=surplus)
    if config.nll_weight:
        losses = losses - config.nll_weight * policy[0].sum(-1) / tokens[0]
    chosen_logprob, rejected_logprob = policy.detach().sum(-1)
    margin = chosen_rewards - rejected_rewards
    return losses, {
        "loss": losses.detach(),
        "margin": margin,
        "accuracy": (margin > 0).float(),
        "logprob_accuracy": (chosen_logprob > rejected_logprob).float(),
        "saturated": (margin.abs() > 10).float(),  # there the sigmoid is flat and a pair teaches nothing
        "chosen_reward": chosen_rewards,
        "rejected_reward": rejected_rewards,
        "tokens": tokens.sum(0),
        **run.loss.metrics(batch),
        **weight_metrics(config.weights, weights, scores, batch),
    }


@torch.no_grad()
def evaluate(config: Config, run: Run, step: int) -> HeldOut:
    """Means over the held-out pairs after a step."""
    ranks, sums = run.ranks, PairSums()
    for microbatch in split_step(run.held_out_rows, config.training.microbatch_size, ranks.rank, ranks.world_size):
        batch = run.collate(run.held_out_pairs, microbatch).to(ranks.device)
        losses, metrics = compare(config, run, batch)
        require_finite(losses, step, batch.names)
        sums.add(metrics, batch.counted)
    return sums.held_out(ranks)


def train(config: Config, run: Run) -> tuple[dict[str, float], dict[str, float]]:
    """Train the student; returns the held-out metrics before and after."""
    training, ranks = config.training, run.ranks
    start = weight_sums(run.optimizer, ranks)
    progress = run.checkpoints.resume()
    writer = MetricsWriter(config.output_dir, config.metric_logger, ranks)
    if not progress.step:
        progress.before = progress.latest = evaluate(config, run, step=0)
        writer.write(0, progress.before)
        run.display.say(f"before training: {describe(progress.before, len(run.held_out_rows))}")
    with run.display.progress(len(run.steps), progress.step) as bar, run.checkpoints.stopping():
        for step, rows in enumerate(run.steps[progress.step :], start=progress.step + 1):
            # ------------------------------------------------------------------------------------ one training step
            began, sums = time.perf_counter(), PairSums()
            for microbatch in split_step(rows, training.microbatch_size, ranks.rank, ranks.world_size):
                batch = run.collate(run.train_pairs, microbatch).to(ranks.device)
                losses, metrics = compare(config, run, batch)
                require_finite(losses, step, batch.names)
                # A mean over the pairs of the whole step; FSDP2 averages gradients over ranks, hence the world size.
                ((losses * batch.counted).sum() / len(rows) * ranks.world_size).backward()
                sums.add(metrics, batch.counted)
            gradient_norm = clip_gradients(run.optimizer, training.max_grad_norm)
            rates = learning_rates(run.optimizer)
            run.optimizer.step()
            run.optimizer.zero_grad()
            run.lr_schedule.step()
            # ------------------------------------------------------------------------------------------------------
            means = sums.means(ranks)
            means["tokens_per_second"] = means["tokens"] * len(rows) / (time.perf_counter() - began)
            means |= {"gradient_norm": gradient_norm, **rates}
            if step % training.evaluate_every == 0 or step == len(run.steps):
                progress.latest = evaluate(config, run, step)
                run.display.say(f"step {step}: {describe(progress.latest)}")
                means |= progress.latest
            writer.write(step, means)
            bar.advance(brief(means))
            run.checkpoints.save(step, progress)
    writer.close()
    require_learning(start, run.optimizer, ranks, run.display)
    return progress.before, progress.latest


def save(config: Config, run: Run) -> Path:
    """Write the student as a Hugging Face folder, in the type of `training.export`."""
    lm, start, folder = run.student.lm, config.student, config.output_dir / "student"
    save_pretrained(lm, run.student_tokenizer, folder, start=start, training=config.training, ranks=run.ranks)
    return folder


def main(config: Config) -> None:
    """Run the recipe."""
    with join_ranks(config.training.device) as ranks:
        run = setup(config, ranks)
        before, after = train(config, run)
        folder = save(config, run)
        again = partial(evaluate, config, run, len(run.steps))
        outcome = measure_written(folder, before, after, again, model=run.student, ranks=ranks, display=run.display)
        write_card("tis_dpo_distill", config, folder, outcome, ranks=ranks)
        run.checkpoints.remove()
        push(config.push_to_hub, folder, ranks=ranks, display=run.display)
        run.display.result(
            outcome,
            {
                "student": folder,
                "metrics": config.output_dir / "metrics.jsonl",
                "config": config.output_dir / "config.yaml",
                "alignment": config.output_dir / "alignment_report.json",
            },
            try_it(folder),
        )
