"""Distil preferences by DPO whose reference is a teacher with another tokenizer: whole answers are compared.

The student is trained on pairs of answers. Where DPO compares it with its own frozen start, here the reference is the
teacher's log-prob of the same text, which both have even where their tokens differ; all of the text counts alike. DPO,
arXiv 2305.18290; the baseline of CTPD, arXiv 2601.11865. The teacher is a model in memory, or the scores that recipe
`score` wrote down once.

    prefkd run dpo_distill --config demo/dpo_distill

Shapes: B pairs, P parents of the longest answer, N target tokens. Of two answers, 0 is the chosen one, 1 the rejected.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from datasets import Dataset
from torch import Tensor
from transformers import set_seed

from prefkd.config import Component, component
from prefkd.data.batches import PairBatch
from prefkd.data.collate import collate_pairs
from prefkd.data.pair_worth import by_source
from prefkd.data.pairs import DataConfig
from prefkd.data.steps import Microbatch
from prefkd.errors import Problem
from prefkd.evaluation.samples import Samples
from prefkd.method.preference import long_answer_weights
from prefkd.models.checks import check_model
from prefkd.models.load import LearnerConfig, read_side
from prefkd.models.logprob_model import LogprobModel
from prefkd.models.lora import LoraConfig
from prefkd.models.questions import Asks, TeacherSource
from prefkd.models.teacher import Teacher
from prefkd.ranks import Ranks, join_ranks
from prefkd.reports.run import write_report
from prefkd.training.aligned import load_aligned_pairs
from prefkd.training.checkpoint import Checkpoints
from prefkd.training.display import Display
from prefkd.training.export import save_trained
from prefkd.training.finish import finish
from prefkd.training.learner import describe_learning, learning, load_learner
from prefkd.training.learning import describe_plan, learning_rates, require_learning, training_problems, weight_sums
from prefkd.training.losses import SUPPLIED, LossSettings, loss_problems
from prefkd.training.meter import Meter
from prefkd.training.metrics import HeldOut, MetricsWriter, PairSums, brief, describe
from prefkd.training.optimizer import build_optimizer, build_schedule, clip_gradients
from prefkd.training.pair_loss import PairLoss
from prefkd.training.publish import HubConfig
from prefkd.training.references import describe_own_reference, use_own_reference
from prefkd.training.run import TrainingData, TrainingRun, begin_output, share_out
from prefkd.training.settings import TrainingConfig
from prefkd.training.single_answers import single_answer_problems
from prefkd.training.watch import Watch


@dataclass
class Config(LossSettings):
    """All settings of a run; the YAML file and the key=value overrides are laid over these defaults.

    Attributes:
        output_dir: Folder of the trained student or adapter, metrics.jsonl, the resolved config, the alignment report.
        lora: Train adapters on the student as it is; null = train all weights.
        reference: The model whose log-probs the student is compared with: the teacher, or the student's own start.
        loss: Called with the log-probs of chosen and rejected answers under the student, then under the reference, (B,)
            each, and with what else it needs.
        average_logprobs: An answer's log-prob is the mean over its parents (pieces of text whose boundaries are
            token boundaries for both models), as IPO needs it, instead of the sum.
    """

    output_dir: Path
    student: LearnerConfig
    teacher: TeacherSource
    data: DataConfig
    lora: LoraConfig | None = None
    reference: Literal["teacher", "student"] = "teacher"
    loss: Component = component("prefkd.method.preference.dpo_loss", supplied=SUPPLIED, beta=0.1)
    average_logprobs: bool = False
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
        return ("adapter" if self.lora else "student",)

    def asks(self) -> Asks:
        """What is asked of the teacher."""
        own_start = self.reference == "student"
        return Asks(reference=not own_start, own_start=own_start)

    def problems(self) -> Iterator[Problem | str]:
        yield from training_problems(self)
        yield from single_answer_problems(self)
        yield from (f"teacher.{problem}" for problem in self.asks().problems(self.teacher))
        is_reference = self.reference == "teacher"
        yield from loss_problems(self, unit="parents", teacher_is_reference=is_reference)


@dataclass
class Models:
    """The models of a run, and what `compare` does with them."""

    student: LogprobModel
    teacher: Teacher
    collate: Callable[[Dataset, Microbatch], PairBatch]
    loss: PairLoss


@dataclass
class Run(TrainingRun, Models):
    """What `setup` prepares and `train` uses: the data, the models, and what trains the student."""


def load_data(config: Config, ranks: Ranks) -> TrainingData:
    """Read the pairs, align them for both models, and share them out among the steps."""
    side = read_side(config.student)
    teacher = Teacher(config.teacher, config.asks())
    pairs = load_aligned_pairs(config.data, student=side, teacher=teacher, ranks=ranks)
    return share_out(pairs, side, config.training, shares_prompt=config.student.share_prompt)


def load_models(config: Config, ranks: Ranks) -> Models:
    """Load the student and split it over the ranks. The weights of the teacher come with its `load`."""
    return Models(
        student=load_learner(config.student, config.lora, config.training, ranks),
        teacher=Teacher(config.teacher, config.asks()),
        collate=partial(
            collate_pairs,
            share_prompt=(config.student.share_prompt, config.teacher.share_prompt),
            instructed=config.teacher.scores is None,
        ),
        loss=PairLoss(config, ranks),
    )


def setup(config: Config, ranks: Ranks) -> Run:
    """Load the data and the models, and say what is going to happen."""
    training, device, display = config.training, ranks.device, Display(ranks)
    set_seed(training.seed)
    data = load_data(config, ranks)
    models = load_models(config, ranks)
    student, teacher = models.student, models.teacher
    probe = models.collate(data.train_pairs, Microbatch(data.steps[0][:1])).to(device)
    check_model(student, probe.student, "student")
    teacher.load(probe.teacher, ranks=ranks, **training.reading)

    student.train()
    optimizer = build_optimizer(config.optimizer, learning(student))
    lr_schedule = build_schedule(config.lr_schedule, optimizer, len(data.steps))
    pairs = {"train": data.train_pairs, "held_out": data.held_out_pairs}
    prepared = {"optimizer": optimizer, "lr_schedule": lr_schedule, "ranks": ranks, "display": display}
    remembering = {"loss": models.loss, "teacher": teacher}
    checkpoints = Checkpoints(config, model=student, pairs=pairs, remembering=remembering, **prepared)
    watch = Watch(config, student, ranks, display, Samples(config, student, data.side, ranks))
    run = Run(**vars(data), **vars(models), **prepared, checkpoints=checkpoints, watch=watch)
    begin_output(config, data, ranks)
    display.table(
        "dpo_distill",
        {
            "student": f"{config.student.path}  {training.precision} on {device}",
            "trained": describe_learning(student, config.student, config.lora),
            "teacher": teacher.description,
            "reference": "the teacher" if config.reference == "teacher" else describe_own_reference(config.refresh),
            **data.description,
            "plan": describe_plan(config, len(data.steps), "pairs", ranks),
            "output": config.output_dir,
        },
    )
    if config.reference == "student" and run.loss.has_reference:
        use_own_reference(run, student, config.student, run.collate, training, config.refresh)
    return run


def compare(config: Config, run: Run, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of each pair of a microbatch, (B,), and what to log about each, (B,)."""
    run.loss.look_ahead(compare, config, run, batch)
    batch = run.with_reference(batch)
    token_logprobs, surplus = run.student(batch.student, run.loss.read)  # (N,)
    logprobs = batch.parent_sums(token_logprobs, batch.student)  # (2, B, P)
    tokens = batch.parent_sums(torch.ones_like(token_logprobs), batch.student).sum(-1)
    weights = long_answer_weights(batch.parent_mask, config.long_answer_weight)  # (2, B, P), all 1 unless for LD-DPO
    policy = (weights * logprobs).sum(-1)  # (2, B) log pi(y|x)
    reference = (weights * run.teacher(batch).reference).sum(-1)  # (2, B) log of the probability of the same text
    if config.average_logprobs:
        parents = batch.parent_mask.sum(-1)
        policy, reference = policy / parents, reference / parents
    lengths = batch.parent_mask.sum(-1)  # (2, B)
    losses, chosen_rewards, rejected_rewards = run.loss(
        policy, reference, batch, weights, lengths=lengths, surplus=surplus
    )
    if config.nll_weight:
        losses = losses - config.nll_weight * logprobs[0].sum(-1) / tokens[0]
    losses = losses * batch.weight  # all 1 unless the data has weights
    chosen_logprob, rejected_logprob = policy.detach()
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
    }


@torch.no_grad()
def evaluate(config: Config, run: Run, step: int) -> HeldOut:
    """Means over the held-out pairs after a step."""
    sums = PairSums()
    run.student.eval()
    for batch in run.batches(run.collate, "held_out", run.held_out_rows):
        _, metrics = compare(config, run, batch)
        sums.add(metrics | by_source(metrics, batch.sources), batch)
    run.student.train()
    return sums.held_out(run.ranks, step)


def train(config: Config, run: Run) -> tuple[dict[str, float], dict[str, float]]:
    """Train the student; returns the held-out metrics before and after."""
    training, ranks = config.training, run.ranks
    start = weight_sums(run.optimizer, ranks)
    progress = run.checkpoints.resume()
    writer, meter = MetricsWriter(config.output_dir, config.metric_logger, ranks), Meter(config, run)
    if not progress.step:
        progress.before = evaluate(config, run, step=0)
        writer.write(0, run.watch.look(0, progress, progress.before))
        run.display.say(f"before training: {describe(progress.before, len(run.held_out_rows))}")
    with run.display.progress(len(run.steps), progress.step) as bar, run.checkpoints.stopping():
        for step, rows in run.watch.steps(run.steps, progress):
            # ------------------------------------------------------------------------------------ one training step
            began, sums = meter.begin(), PairSums()
            for batch in meter.waiting(run.batches(run.collate, "train", rows)):
                losses, metrics = compare(config, run, batch)
                # A mean over the pairs of the whole step; FSDP2 averages gradients over ranks, hence the world size.
                ((losses * batch.counted).sum() / len(rows) * ranks.world_size).backward()
                sums.add(metrics, batch)
            norm = clip_gradients(run.optimizer, training.max_grad_norm)
            means, norm = sums.read(ranks, step, norm)  # once a step, and before a weight moves
            rates = learning_rates(run.optimizer)
            run.optimizer.step()
            run.optimizer.zero_grad()
            run.lr_schedule.step()
            # ------------------------------------------------------------------------------------------------------
            means |= {"gradient_norm": norm, **rates, **meter.of_step(began)}  # waits for the optimizer on a GPU
            means["tokens_per_second"] = means["tokens"] * len(rows) / (time.perf_counter() - began)
            if step % training.evaluate_every == 0 or step == len(run.steps):
                means |= run.watch.look(step, progress, evaluate(config, run, step))
                run.display.say(f"step {step}: {describe(progress.latest)}")
            writer.write(step, means)
            bar.advance(brief(means))
            run.watch.export(step, partial(save, config, run))
            run.checkpoints.save(step, progress)
    run.watch.restore_best(progress)
    writer.close()
    meter.close()
    require_learning(start, run.optimizer, ranks, run.display)
    return progress.before, progress.latest


def save(config: Config, run: Run, folder: Path) -> Path:
    """Write the student as a Hugging Face folder in the type of `training.export`, or the adapter as one of peft."""
    lm, start = run.student.lm, config.student
    save_trained(lm, run.side.tokenizer, folder, start=start, training=config.training, ranks=run.ranks)
    return folder


def main(config: Config) -> None:
    """Run the recipe."""
    with join_ranks(config.training.device) as ranks:
        run = setup(config, ranks)
        held_out = train(config, run)
        folder = save(config, run, config.output_dir / config.outputs()[0])
        again, report = (
            partial(evaluate, config, run, len(run.steps)),
            partial(write_report, "dpo_distill", config, run),
        )
        finish("dpo_distill", config, run, run.student, folder, held_out, again, report)
