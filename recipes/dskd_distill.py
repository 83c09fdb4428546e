"""Distil a live teacher's hidden states into a student with another tokenizer, on top of its preferences.

What is learned is a list of terms, each with a weight: how the teacher prefers (dpo, ipo, tis_dpo), how it writes
(dual_space, dual_space_v2, shared_tokens, gold, x_token, uld, min_ed, alm, same_vocabulary), both at once
(align_distil, dckd, adpa, tvkd, pad, distillm2), and the chosen answers themselves (cross_entropy). By default it is
importance-weighted DPO on parents (CTPD, arXiv 2601.11865) with dual-space distillation (DSKD, arXiv 2406.17328).
`prefkd.training.terms` explains the terms, and how to write one. With `data.format: answers` it learns from answers
without a rival, for example those of recipe sample: on-policy distillation across tokenizers.

    prefkd run dskd_distill --config demo/dskd_distill

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

from prefkd.config import Component, component, components
from prefkd.data.batches import PairBatch
from prefkd.data.collate import collate_pairs
from prefkd.data.pair_worth import by_source
from prefkd.data.pairs import DataConfig
from prefkd.data.places import find_places
from prefkd.data.steps import Microbatch
from prefkd.data.vocabulary import Vocabularies
from prefkd.errors import Problem
from prefkd.evaluation.samples import Samples
from prefkd.models.checks import check_model
from prefkd.models.contrast import ContrastConfig
from prefkd.models.load import LearnerConfig, parameter_count, read_side, read_vocabularies
from prefkd.models.logprob_model import LogprobModel, TokenStates
from prefkd.models.lora import LoraConfig
from prefkd.models.questions import Asks, TeacherSource
from prefkd.models.teacher import Teacher
from prefkd.ranks import Ranks, join_ranks
from prefkd.reports.run import write_report
from prefkd.training.aligned import load_aligned_pairs
from prefkd.training.asks import asks_of
from prefkd.training.checkpoint import Checkpoints
from prefkd.training.display import Display
from prefkd.training.export import save_trained
from prefkd.training.finish import finish
from prefkd.training.following import Refresh
from prefkd.training.learner import describe_learning, load_learner
from prefkd.training.learning import describe_plan, learning_rates, require_learning, training_problems, weight_sums
from prefkd.training.meter import Meter
from prefkd.training.metrics import HeldOut, MetricsWriter, PairSums, brief, describe
from prefkd.training.objective import TERM_SETTINGS, Objective, sound_objective
from prefkd.training.objective_problems import objective_problems
from prefkd.training.optimizer import build_optimizer, build_schedule, clip_gradients
from prefkd.training.projectors import ProjectorConfig, parameter_groups, projectors_for, save_projectors
from prefkd.training.publish import HubConfig
from prefkd.training.references import use_own_reference
from prefkd.training.run import TrainingData, TrainingRun, begin_output, share_out
from prefkd.training.settings import TrainingConfig
from prefkd.training.signals import Signals
from prefkd.training.single_answers import logged_logprobs
from prefkd.training.watch import Watch
from prefkd.weighting import WeightConfig, parent_weights, weight_metrics


@dataclass
class Config:
    """All settings of a run; the YAML file and the key=value overrides are laid over these defaults.

    Attributes:
        output_dir: Folder of the trained student or adapter, metrics.jsonl, the resolved config, the alignment report.
        lora: Train adapters on the student as it is; null = train all weights.
        objective: The terms that are summed, each a component with `weight` (1.0) and, if it is counted in tokens or
            parents, `answers`: the chosen (the default), the rejected ones or both. Every term is divided by what
            the whole step has of its unit: pairs, target tokens or parents.
        reference: The model whose log-probs the preference terms compare the student with: the teacher, or the
            student's own start.
        refresh: The reference, the student's own start, follows the student (TR-DPO, arXiv 2404.09656); null = it
            stays. It is in memory, and reads each pair whenever the student does.
        contrast: pi+ and pi- of the terms that distil what teachers prefer (align_distil, dckd, adpa, tvkd).
    """

    output_dir: Path
    student: LearnerConfig
    teacher: TeacherSource
    data: DataConfig
    lora: LoraConfig | None = None
    objective: list[Component] = components(
        {"_component_": "prefkd.training.terms.tis_dpo", "beta": 0.1},
        {"_component_": "prefkd.training.terms.cross_entropy", "weight": 0.25},
        {"_component_": "prefkd.training.terms.dual_space", "weight": 0.25},
        supplied=("signals",),
        settings=TERM_SETTINGS,
    )
    reference: Literal["teacher", "student"] = "teacher"
    refresh: Refresh | None = None
    weights: WeightConfig = field(default_factory=WeightConfig)
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    projectors: ProjectorConfig = field(default_factory=ProjectorConfig)
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

    def problems(self) -> Iterator[Problem | str]:
        yield from training_problems(self)
        yield from objective_problems(self)

    def asks(self) -> Asks:
        """What the objective asks of the teacher."""
        return asks_of(self, sound_objective(self.objective))


@dataclass
class Models:
    """The models of a run, and what `compare` does with them."""

    student: LogprobModel
    teacher: Teacher
    collate: Callable[[Dataset, Microbatch], PairBatch]
    objective: Objective
    vocabularies: Vocabularies | None


@dataclass
class Run(TrainingRun, Models):
    """What `setup` prepares and `train` uses: the data, the models, and what trains the student."""


def load_data(config: Config, ranks: Ranks) -> TrainingData:
    """Read the pairs, align them for both models, and share them out among the steps."""
    side = read_side(config.student)
    teacher = Teacher(config.teacher, config.asks())
    pairs = load_aligned_pairs(config.data, student=side, teacher=teacher, ranks=ranks).with_counts()
    return share_out(pairs, side, config.training, shares_prompt=config.student.share_prompt)


def load_models(config: Config, ranks: Ranks) -> Models:
    """Load the student and split it over the ranks. The weights of the teacher come with its `load`."""
    training, objective, sides = config.training, Objective(config.objective), (config.student, config.teacher)
    vocabularies = read_vocabularies(*sides) if "vocabularies" in objective.needs else None
    projectors = projectors_for(
        objective.needs, config.projectors, *sides, vocabularies, seed=training.seed, device=ranks.assembly_device
    )
    shares, teacher = (config.student.share_prompt, config.teacher.share_prompt), Teacher(config.teacher, config.asks())
    return Models(
        student=load_learner(config.student, config.lora, training, ranks, projectors=projectors),
        teacher=teacher,
        collate=partial(
            collate_pairs,
            share_prompt=shares,
            instructed=config.teacher.scores is None,
            together=teacher.together,
            pair_up=partial(find_places, one_vocabulary=vocabularies is not None and vocabularies.are_one),
        ),
        objective=objective,
        vocabularies=vocabularies,
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
    optimizer = build_optimizer(config.optimizer, parameter_groups(student, config.projectors))
    lr_schedule = build_schedule(config.lr_schedule, optimizer, len(data.steps))
    pairs = {"train": data.train_pairs, "held_out": data.held_out_pairs}
    prepared = {"optimizer": optimizer, "lr_schedule": lr_schedule, "ranks": ranks, "display": display}
    checkpoints = Checkpoints(config, model=student, pairs=pairs, remembering={"teacher": teacher}, **prepared)
    watch = Watch(config, student, ranks, display, Samples(config, student, data.side, ranks))
    run = Run(**vars(data), **vars(models), **prepared, checkpoints=checkpoints, watch=watch)
    begin_output(config, data, ranks)
    display.table(
        "dskd_distill",
        {
            "student": f"{config.student.path}  {training.precision} on {device}",
            "trained": describe_learning(student, config.student, config.lora),
            "teacher": teacher.description,
            "objective": models.objective,
            "projectors": f"{parameter_count(student.projectors)} parameters" if student.projectors else "none",
            **data.description,
            "plan": describe_plan(config, len(data.steps), "pairs", ranks),
            "output": config.output_dir,
        },
    )
    if teacher.asks.own_start:
        use_own_reference(run, student, config.student, run.collate, training, config.refresh)
    return run


def compare(config: Config, run: Run, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of each pair of a microbatch, (B,), and what to log about each, (B,)."""
    batch = run.with_reference(batch)
    heard = run.teacher(batch)
    needs, scores = run.objective.needs, heard.scores
    weights = parent_weights(config.weights, scores, batch) if scores and "weights" in needs else None  # (2, B, P)
    warms_up = torch.is_grad_enabled() and run.lr_schedule.last_epoch < config.projectors.warmup_steps

    def read(states: TokenStates) -> tuple[Tensor, dict[str, Tensor]]:
        token_logprobs = states.logprobs()  # (N,)
        policy = batch.parent_sums(token_logprobs, batch.student)  # (2, B, P): l(P) = sum of l_t for t in P
        signals = Signals(
            policy=policy,
            parent_mask=batch.parent_mask,
            student=states,
            weights=weights,
            pair_weight=batch.weight,
            margin=batch.margin,
            **heard.signals,
            projectors=run.student.projectors,
            vocabularies=run.vocabularies,
            places=batch.places,
            only_projectors=warms_up,
        )
        losses, metrics = run.objective(signals, batch.step)  # (B,): their mean over the step is the objective
        return losses, {
            "loss": losses.detach(),
            **logged_logprobs(policy, batch),
            "tokens": batch.parent_sums(torch.ones_like(token_logprobs), batch.student).sum((0, 2)),
            **metrics,
            **(weight_metrics(config.weights, weights, scores, batch) if scores and weights is not None else {}),
        }

    # Inside the student's forward, since only there its embedding, its head and the projectors are whole.
    return run.student(batch.student, read)


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
        projectors = save_projectors(run.student, config.output_dir, ranks=ranks)
        again = partial(evaluate, config, run, len(run.steps))
        report = partial(write_report, "dskd_distill", config, run)
        finish("dskd_distill", config, run, run.student, folder, held_out, again, report, files=projectors)
