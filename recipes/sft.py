"""Supervised fine-tuning on the chosen answers, or on the rejected ones: the first step of every chain.

Teacher and student each learn the answers in their own tokens before preferences come in. Two models, one trained on
the chosen and one on the rejected answers, are also the contrast of TIS-DPO (S), arXiv 2410.04350.

    prefkd run sft --config demo/sft

Shapes: B answers of a microbatch, N target tokens (response tokens, EOS included).
"""

import math
import time
from collections import Counter
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
from prefkd.data.batches import AnswerBatch
from prefkd.data.collate import collate_answers
from prefkd.data.data_report import data_line, data_report
from prefkd.data.pair_worth import weighted_sum
from prefkd.data.pairs import DataConfig, load_pairs
from prefkd.data.steps import Microbatch
from prefkd.data.tokens import tokenize_pairs
from prefkd.errors import PrefkdError, Problem
from prefkd.evaluation.samples import Samples
from prefkd.models.checks import check_model
from prefkd.models.load import LearnerConfig, read_side
from prefkd.models.logprob_model import LogprobModel
from prefkd.models.lora import LoraConfig
from prefkd.ranks import Ranks, join_ranks
from prefkd.reports.run import write_report
from prefkd.training.checkpoint import Checkpoints
from prefkd.training.display import Display
from prefkd.training.export import save_trained
from prefkd.training.finish import finish
from prefkd.training.learner import describe_learning, learning, load_learner
from prefkd.training.learning import describe_plan, learning_rates, require_learning, training_problems, weight_sums
from prefkd.training.meter import Meter
from prefkd.training.metrics import HeldOut, MetricsWriter, PairSums
from prefkd.training.optimizer import build_optimizer, build_schedule, clip_gradients
from prefkd.training.publish import HubConfig
from prefkd.training.run import Portions, TrainingData, TrainingRun, begin_output, epochs_of_steps, longest_first
from prefkd.training.settings import TrainingConfig
from prefkd.training.watch import Watch


@dataclass
class Config:
    """All settings of a run; the YAML file and the key=value overrides are laid over these defaults.

    The learning rate is that of Zephyr (arXiv 2310.16944) for all weights; adapters want about ten times as much.

    Attributes:
        output_dir: Folder of the trained model or adapter, metrics.jsonl, the resolved config, the data report.
        target: Which of the two answers of a pair is learned.
        lora: Train adapters on a frozen base; null = train all weights.
    """

    output_dir: Path
    model: LearnerConfig
    data: DataConfig
    target: Literal["chosen", "rejected"] = "chosen"
    lora: LoraConfig | None = None
    optimizer: Component = component("torch.optim.AdamW", supplied=("params",), lr=2e-5, weight_decay=0.0)
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
        return ("adapter" if self.lora else "model",)

    def problems(self) -> Iterator[Problem | str]:
        yield from training_problems(self)
        if self.target == "rejected" and not self.data.has_rivals:
            yield "target: rejected answers are not there with data.format: answers; use chosen"


@dataclass
class Models:
    """The model of a run, and what `compare` does with it."""

    model: LogprobModel
    collate: Callable[[Dataset, Microbatch], AnswerBatch]


@dataclass
class Run(TrainingRun, Models):
    """What `setup` prepares and `train` uses: the data, the model, and what trains it."""


def load_data(config: Config, ranks: Ranks) -> TrainingData:
    """Read the pairs, tokenize them, and share them out among the steps."""
    side = read_side(config.model)
    tokenize = partial(tokenize_pairs, side=side, config=config.data)
    with ranks.main_first():
        pairs = load_pairs(config.data)
        left_out: Counter[str] = Counter()
        train_pairs, held_out_pairs = tokenize(pairs.train, left_out=left_out), tokenize(pairs.held_out)
    if not len(train_pairs):
        raise PrefkdError("no pair is left after truncation; raise data.max_length")
    report = data_report(train_pairs, pairs, left_out, max_length=config.data.max_length, answers=(config.target,))
    count = partial(answer_lengths, config, with_prompt=True)
    return TrainingData(
        side=side,
        train_pairs=train_pairs,
        held_out_pairs=held_out_pairs,
        steps=epochs_of_steps(count(train_pairs), config.training),
        held_out_rows=longest_first(count(held_out_pairs)),
        portions=Portions.of(config.training, count, train=train_pairs, held_out=held_out_pairs),
        report=report,
        description={
            "data": data_line(report, held_out_pairs, pairs.omissions),
            **({"margins": "not used: nothing is compared"} if config.data.has_margins else {}),
        },
    )


def load_models(config: Config, ranks: Ranks) -> Models:
    """Load the model, put adapters on it if they are trained, and split it over the ranks."""
    model = load_learner(config.model, config.lora, config.training, ranks)
    collate = partial(collate_answers, answer=config.target)
    return Models(model=model, collate=collate)


def setup(config: Config, ranks: Ranks) -> Run:
    """Load the data and the model, and say what is going to happen."""
    training, device, display = config.training, ranks.device, Display(ranks)
    set_seed(training.seed)
    data = load_data(config, ranks)
    models = load_models(config, ranks)
    model = models.model
    probe = models.collate(data.train_pairs, Microbatch(data.steps[0][:1])).to(device)
    check_model(model, probe.tokens, "model")

    model.train()
    optimizer = build_optimizer(config.optimizer, learning(model))
    lr_schedule = build_schedule(config.lr_schedule, optimizer, len(data.steps))
    pairs = {"train": data.train_pairs, "held_out": data.held_out_pairs}
    prepared = {"optimizer": optimizer, "lr_schedule": lr_schedule, "ranks": ranks, "display": display}
    checkpoints = Checkpoints(config, model=model, pairs=pairs, **prepared)
    watch = Watch(config, model, ranks, display, Samples(config, model, data.side, ranks))
    run = Run(**vars(data), **vars(models), **prepared, checkpoints=checkpoints, watch=watch)
    begin_output(config, data, ranks)
    display.table(
        "sft",
        {
            "model": f"{config.model.path}  {training.precision} on {device}",
            "trained": describe_learning(model, config.model, config.lora),
            "answers": describe_target(config),
            **data.description,
            "plan": describe_plan(config, len(data.steps), "answers", ranks),
            "output": config.output_dir,
        },
    )
    return run


def describe_target(config: Config) -> str:
    """Which answers of the data are learned: `data.reverse` swaps them before `target` is looked at."""
    other = "rejected" if config.target == "chosen" else "chosen"
    return f"REVERSED: {other}" if config.data.reverse else config.target


def answer_lengths(config: Config, tokenized: Dataset, *, with_prompt: bool = False) -> list[int]:
    """Target tokens of the answer that each row is trained on, or all the tokens that the model reads."""
    columns = [config.target] + ["prompt"] * with_prompt
    return [sum(map(len, row.values())) for row in tokenized.select_columns(columns)]  # pyright: ignore


def compare(config: Config, run: Run, batch: AnswerBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of each answer of a microbatch, summed over its tokens, (B,), and what to log about each, (B,)."""
    token_logprobs = run.model(batch.tokens)  # (N,)
    losses = -batch.sums(token_logprobs)  # - sum of log pi(y_t | x, y_<t)
    losses = losses * batch.weight  # all 1 unless the data has weights
    tokens = batch.sums(torch.ones_like(token_logprobs))
    return losses, {"summed_loss": losses.detach(), "tokens": tokens, "weighted_tokens": tokens * batch.weight}


def per_token(means: dict[str, float]) -> dict[str, float]:
    """From means over answers to the loss of a token and its exponential."""
    loss = means["summed_loss"] / (means["weighted_tokens"] or 1.0)  # 0 where no pair has a weight
    return {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf, "tokens": means["tokens"]}


def describe(metrics: dict[str, float]) -> str:
    """Held-out metrics in a line for the terminal."""
    if not metrics:
        return "no held-out pairs"
    return f"held-out loss {metrics['held_out/loss']:.4f}, perplexity {metrics['held_out/perplexity']:.2f}"


@torch.no_grad()
def evaluate(config: Config, run: Run, step: int) -> HeldOut:
    """Loss of a token and perplexity on the held-out answers after a step."""
    sums = PairSums()
    run.model.eval()
    for batch in run.batches(run.collate, "held_out", run.held_out_rows):
        _, metrics = compare(config, run, batch)
        sums.add(metrics, batch)
    run.model.train()
    return sums.held_out(run.ranks, step, per_token)


def train(config: Config, run: Run) -> tuple[dict[str, float], dict[str, float]]:
    """Train the model; returns the held-out metrics before and after."""
    training, ranks = config.training, run.ranks
    start = weight_sums(run.optimizer, ranks)
    progress = run.checkpoints.resume()
    writer, meter = MetricsWriter(config.output_dir, config.metric_logger, ranks), Meter(config, run)
    target_tokens = answer_lengths(config, run.train_pairs)
    if not progress.step:
        progress.before = evaluate(config, run, step=0)
        writer.write(0, run.watch.look(0, progress, progress.before))
        run.display.say(f"before training: {describe(progress.before)}")
    with run.display.progress(len(run.steps), progress.step) as bar, run.checkpoints.stopping():
        for step, rows in run.watch.steps(run.steps, progress):
            # ------------------------------------------------------------------------------------ one training step
            began, sums = meter.begin(), PairSums()
            tokens_of_step = weighted_sum(run.train_pairs, rows, target_tokens) or 1.0  # 0 where no pair has a weight
            for batch in meter.waiting(run.batches(run.collate, "train", rows)):
                losses, metrics = compare(config, run, batch)
                # A mean over the tokens of the whole step; FSDP2 averages gradients over ranks, hence the world size.
                ((losses * batch.counted).sum() / tokens_of_step * ranks.world_size).backward()
                sums.add(metrics, batch)
            norm = clip_gradients(run.optimizer, training.max_grad_norm)
            means, norm = sums.read(ranks, step, norm)  # once a step, and before a weight moves
            rates = learning_rates(run.optimizer)
            run.optimizer.step()
            run.optimizer.zero_grad()
            run.lr_schedule.step()
            # ------------------------------------------------------------------------------------------------------
            means = per_token(means)
            means |= {"gradient_norm": norm, **rates, **meter.of_step(began)}  # waits for the optimizer on a GPU
            means["tokens_per_second"] = means["tokens"] * len(rows) / (time.perf_counter() - began)
            if step % training.evaluate_every == 0 or step == len(run.steps):
                means |= run.watch.look(step, progress, evaluate(config, run, step))
                run.display.say(f"step {step}: {describe(progress.latest)}")
            writer.write(step, means)
            bar.advance(f"loss {means['loss']:.3f}  {means['tokens_per_second']:.0f} tokens/s")
            run.watch.export(step, partial(save, config, run))
            run.checkpoints.save(step, progress)
    run.watch.restore_best(progress)
    writer.close()
    meter.close()
    require_learning(start, run.optimizer, ranks, run.display)
    return progress.before, progress.latest


def save(config: Config, run: Run, folder: Path) -> Path:
    """Write the model as a Hugging Face folder in the type of `training.export`, or the adapter as one of peft."""
    lm, start = run.model.lm, config.model
    save_trained(lm, run.side.tokenizer, folder, start=start, training=config.training, ranks=run.ranks)
    return folder


def main(config: Config) -> None:
    """Run the recipe."""
    with join_ranks(config.training.device) as ranks:
        run = setup(config, ranks)
        held_out = train(config, run)
        folder = save(config, run, config.output_dir / config.outputs()[0])
        again = partial(evaluate, config, run, len(run.steps))
        report = partial(write_report, "sft", config, run)
        finish("sft", config, run, run.model, folder, held_out, again, report)
