"""Teach a model preferences with DPO, its own start as reference; with swapped pairs it becomes the negative teacher.

The model learns to find the chosen answer more probable than the rejected one, measured from where it started. Two such
models, one of them trained with `data.reverse=true`, tell good text from bad by their difference: that is where the
importance weights of TIS-DPO (D) come from. DPO, arXiv 2305.18290; IPO, arXiv 2310.12036; TIS-DPO, arXiv 2410.04350.

    prefkd run dpo --config demo/dpo

Shapes: B pairs, N target tokens, T of the longest answer. Of two answers, 0 is the chosen one, 1 the rejected.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor
from transformers import set_seed

from prefkd.config import Component, component
from prefkd.data.batches import TokenPairBatch
from prefkd.data.collate import collate_tokens
from prefkd.data.data_report import data_line, data_report
from prefkd.data.pair_worth import by_source
from prefkd.data.pairs import DataConfig, load_pairs
from prefkd.data.steps import Microbatch, learner_tokens, pair_lengths
from prefkd.data.tokens import tokenize_pairs
from prefkd.errors import PrefkdError, Problem
from prefkd.evaluation.samples import Samples
from prefkd.method.preference import long_answer_weights
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
from prefkd.training.losses import SUPPLIED, LossSettings, loss_problems
from prefkd.training.meter import Meter
from prefkd.training.metrics import HeldOut, MetricsWriter, PairSums, brief, describe
from prefkd.training.optimizer import build_optimizer, build_schedule, clip_gradients
from prefkd.training.pair_loss import PairLoss
from prefkd.training.publish import HubConfig
from prefkd.training.references import describe_own_reference, use_own_reference
from prefkd.training.run import Portions, TrainingData, TrainingRun, begin_output, epochs_of_steps, longest_first
from prefkd.training.settings import TrainingConfig
from prefkd.training.single_answers import single_answer_problems
from prefkd.training.watch import Watch


@dataclass
class Config(LossSettings):
    """All settings of a run; the YAML file and the key=value overrides are laid over these defaults.

    Beta and learning rate are those of the DPO paper (appendix B).

    Attributes:
        output_dir: Folder of the trained model or adapter, metrics.jsonl, the resolved config, the data report.
        data: With `reverse: true` the model learns to prefer the rejected answers.
        lora: Train adapters on a frozen base; null = train all weights.
        loss: Called with the log-probs of chosen and rejected answers under the model, then under the reference, (B,)
            each, and with what else it needs. Without a reference, or with `reference_free: true`, none is read.
        average_logprobs: An answer's log-prob is the mean over its tokens, as IPO needs it, instead of the sum. SimPO
            and ORPO, which are made for means, get them anyway.
    """

    output_dir: Path
    model: LearnerConfig
    data: DataConfig
    lora: LoraConfig | None = None
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
        return ("adapter" if self.lora else "model",)

    def problems(self) -> Iterator[Problem | str]:
        yield from training_problems(self)
        yield from single_answer_problems(self)
        yield from loss_problems(self, unit="tokens")


@dataclass
class Models:
    """The model of a run, and what `compare` does with it."""

    model: LogprobModel
    collate: Callable[[Dataset, Microbatch], TokenPairBatch]
    loss: PairLoss


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
    report = data_report(train_pairs, pairs, left_out, max_length=config.data.max_length)
    count = partial(learner_tokens, shares_prompt=config.model.share_prompt)
    return TrainingData(
        side=side,
        train_pairs=train_pairs,
        held_out_pairs=held_out_pairs,
        steps=epochs_of_steps(pair_lengths(train_pairs), config.training),
        held_out_rows=longest_first(pair_lengths(held_out_pairs)),
        portions=Portions.of(config.training, count, train=train_pairs, held_out=held_out_pairs),
        report=report,
        description={"data": data_line(report, held_out_pairs, pairs.omissions)},
    )


def load_models(config: Config, ranks: Ranks) -> Models:
    """Load the model, put adapters on it if they are trained, and split it over the ranks."""
    model = load_learner(config.model, config.lora, config.training, ranks)
    collate = partial(collate_tokens, share_prompt=config.model.share_prompt)
    return Models(model=model, collate=collate, loss=PairLoss(config, ranks))


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
    remembering = {"loss": models.loss}
    checkpoints = Checkpoints(config, model=model, pairs=pairs, remembering=remembering, **prepared)
    watch = Watch(config, model, ranks, display, Samples(config, model, data.side, ranks))
    run = Run(**vars(data), **vars(models), **prepared, checkpoints=checkpoints, watch=watch)
    begin_output(config, data, ranks)
    display.table(
        "dpo",
        {
            "model": f"{config.model.path}  {training.precision} on {device}",
            "trained": describe_learning(model, config.model, config.lora),
            "reference": describe_own_reference(config.refresh) if run.loss.has_reference else "none",
            "preference": "REVERSED: the rejected answers" if config.data.reverse else "the chosen answers",
            **data.description,
            "plan": describe_plan(config, len(data.steps), "pairs", ranks),
            "output": config.output_dir,
        },
    )
    if run.loss.has_reference:
        use_own_reference(run, model, config.model, run.collate, training, config.refresh)
    return run


def compare(config: Config, run: Run, batch: TokenPairBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of each pair of a microbatch, (B,), and what to log about each, (B,)."""
    run.loss.look_ahead(compare, config, run, batch)
    batch = run.with_reference(batch)
    token_logprobs, surplus = run.model(batch.tokens, run.loss.read)  # (N,)
    logprobs, tokens = batch.padded(token_logprobs), batch.mask.sum(-1)  # (2, B, T), (2, B)
    weights = long_answer_weights(batch.mask, config.long_answer_weight)  # (2, B, T), all 1 unless for LD-DPO
    policy = (weights * logprobs).sum(-1)  # (2, B) log pi(y|x)
    nothing = torch.zeros_like(policy)
    reference = nothing if batch.reference is None else (weights * batch.reference).sum(-1)  # (2, B) log ref(y|x)
    if config.average_logprobs or "token_means" in run.loss.needs:
        policy, reference = policy / tokens, reference / tokens
    losses, chosen_rewards, rejected_rewards = run.loss(
        policy, reference, batch, weights, lengths=tokens, surplus=surplus
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
    run.model.eval()
    for batch in run.batches(run.collate, "held_out", run.held_out_rows):
        _, metrics = compare(config, run, batch)
        sums.add(metrics | by_source(metrics, batch.sources), batch)
    run.model.train()
    return sums.held_out(run.ranks, step)


def train(config: Config, run: Run) -> tuple[dict[str, float], dict[str, float]]:
    """Train the model; returns the held-out metrics before and after."""
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
        report = partial(write_report, "dpo", config, run)
        outcome = finish("dpo", config, run, run.model, folder, held_out, again, report)
        if config.data.reverse and outcome.written:
            share = 1 - outcome.written["held_out/accuracy"]
            run.display.say(f"it prefers the better answer, as the data has them, in {share:.1%} of the held-out pairs")
