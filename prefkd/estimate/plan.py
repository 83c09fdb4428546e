"""The plan of a run: what its models consist of, what a rank needs, what a step costs."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from prefkd.config.fields import setting
from prefkd.data.batches import AnswerBatch, Segment, TokenBatch
from prefkd.data.pairs import load_pairs
from prefkd.data.rows import count_scored
from prefkd.data.sides import ModelSide
from prefkd.data.tokenizing import align_pairs
from prefkd.estimate.memory import GIB, Card, gathered_bytes, score_cache_bytes
from prefkd.estimate.models import (
    count,
    group_bytes,
    is_whole,
    learner_bytes,
    teacher_bytes,
)
from prefkd.estimate.outlines import Outlines, load_outlines, model_settings
from prefkd.estimate.step import Step, run_step, state_bytes
from prefkd.models.flops import Pass, forward_flops, keys_attended, outer_weights, reading, training_flops
from prefkd.models.keep_config import KeepConfig
from prefkd.models.load import TeacherConfig, load_tokenizer
from prefkd.models.logprob_model import LogprobModel
from prefkd.models.quantize import stored_bytes, tensor_bytes
from prefkd.training.following import Refresh

# Kinds of memory that FSDP2 splits over ranks, and that wait in main memory with training.cpu_offload.
SPLIT = ("weights", "gradients", "optimizer", "reference")
# So many pairs tell how many parents the others have.
SAMPLE = 200


@dataclass(frozen=True)
class Counted:
    """A model, or a part of one.

    Attributes:
        name: Its role in the run.
        what: Which one it is, and in which types.
        trained, frozen: Its parameters.
    """

    name: str
    what: str
    trained: int
    frozen: int


@dataclass(frozen=True)
class Need:
    """Memory of one kind on a rank, in bytes.

    Attributes:
        most: The most of it at any moment.
        at_peak: Bytes of this kind at the moment when all kinds together need most.
    """

    most: float
    at_peak: float


@dataclass(frozen=True)
class Plan:
    """What a run is going to need.

    Attributes:
        recipe: Its name.
        ranks: Processes, each with a device of its own.
        batch: The pairs that a rank reads at one time.
        step: The meaning of a step here.
        models: The models and what is put on them.
        memory: Kind -> bytes on a rank, in a step.
        loading: Bytes on a rank while the models are loaded, before they are quantized and offloaded.
        flops: Model -> floating-point operations of a step, over all ranks.
        scores: The bytes of a score cache, and of what; None where no teacher is asked about pairs, or nobody asks.
    """

    recipe: str
    ranks: int
    batch: str
    step: str
    models: list[Counted]
    memory: dict[str, Need]
    loading: float
    flops: dict[str, float]
    scores: tuple[float, str] | None

    @property
    def in_step(self) -> float:
        """Bytes on a rank at the fullest moment of a step."""
        return sum(need.at_peak for need in self.memory.values())

    @property
    def peak(self) -> float:
        """Bytes on a rank at the fullest moment."""
        return max(self.in_step, self.loading)


def make_plan(
    recipe: ModuleType, name: str, config: Any, ranks: int, card: Card | None = None, *, counts_scores: bool = True
) -> Plan:
    """Plan a run of a recipe.

    Args:
        ranks: Processes.
        card: The GPU of each, if it is known.
        counts_scores: Whether it says how large a score cache is, for which it reads and aligns some pairs.
    """
    gpu_bytes = card.gib * GIB if card is not None else None
    outlines = load_outlines(recipe, config, gpu_bytes)
    learner = outlines.learner
    memory: dict[str, Need] = {}
    loading = _loading(config, outlines, ranks, gpu_bytes)
    if learner is not None:
        weights = learner_bytes(outlines.quantization, learner, ranks)
        state = state_bytes(config.optimizer, learner.parameters(), ranks)
        memory |= {"weights": Need(weights, weights), "optimizer": Need(state, state)}
        if setting(config, Refresh) is not None:  # a copy of what learns
            copied = sum(tensor_bytes(weight) for weight in learner.lm.parameters() if weight.requires_grad) / ranks
            memory["reference"] = Need(copied, copied)
        if outlines.on_gpu or ranks > 1:  # FSDP2 gathers what it casts, on one GPU too
            gathered = gathered_bytes(*group_bytes(learner, outlines.quantization, ranks))
            if ranks > 1 and config.training.sync_once:
                gathered = sum(value.numel() for value in learner.parameters()) * learner.precision.itemsize
            memory["gathered weights"] = Need(gathered, gathered)
    teachers = sum(teacher_bytes(*base, ranks, gpu_bytes) for base in outlines.frozen)
    if outlines.teacher is not None and outlines.teacher.head is not None:
        teachers += outlines.teacher.head.size
    if teachers:
        memory["teacher"] = Need(teachers, teachers)
    counted = _counted(outlines)
    found = run_step(recipe, config, outlines, ranks)
    tracker = found.tracker
    memory |= {kind: Need(tracker.most[kind], tracker.peak[kind]) for kind in ("gradients", "casts", "activations")}
    order = ("weights", "gathered weights", "casts", "gradients", "optimizer", "reference", "teacher", "activations")
    memory = {kind: memory[kind] for kind in order if kind in memory and memory[kind].most}
    if learner is not None and config.training.cpu_offload:
        memory = {
            f"{kind} (main memory)" if kind in SPLIT else kind: Need(need.most, 0.0) if kind in SPLIT else need
            for kind, need in memory.items()
        }
    data = config.data
    answer = data.max_length - data.max_prompt_length
    answers = "an answer" if isinstance(outlines.batch, AnswerBatch) else "two answers"
    return Plan(
        recipe=name,
        ranks=ranks,
        batch=f"{outlines.pairs} pairs, each {data.max_prompt_length} tokens of prompt and {answers} of {answer}",
        step=f"{outlines.step_pairs} pairs",
        models=counted,
        memory=memory,
        loading=loading,
        flops=_flops(outlines, found, follows=setting(config, Refresh) is not None),
        scores=_scores(config, outlines) if counts_scores else None,
    )


def as_json(plan: Plan, card: Card | None) -> str:
    """The numbers of a plan, bytes as they are, and whether it fits a GPU."""
    numbers = asdict(plan) | {"peak": plan.peak, "gpu": card and asdict(card), "fits": card and card.fits(plan.peak)}
    return json.dumps(numbers, indent=2) + "\n"


def _loading(config: Any, outlines: Outlines, ranks: int, gpu_bytes: float | None) -> float:
    """The most that a rank has while its models are loaded. Each is read exactly first.

    The model that learns comes first; one process has it on its device before it is quantized or offloaded. Those that
    are only read are quantized when all of them are there, or put together in main memory where they are split.
    """
    exact = learns = 0.0
    if outlines.learner is not None:
        exact = stored_bytes(outlines.learner)
        if not config.training.cpu_offload:
            learns = learner_bytes(outlines.quantization, outlines.learner, ranks)
    whole = sum(stored_bytes(base) for frozen, base in outlines.frozen if is_whole(frozen, base, ranks, gpu_bytes))
    return max(exact if ranks == 1 else learns, learns + whole)


def _counted(outlines: Outlines) -> list[Counted]:
    found = []
    if outlines.learner is not None:
        assert outlines.role is not None
        learner = outlines.learner
        lm: Any = learner.lm
        kept, adapters = count(lm, trained=False), getattr(lm, "peft_config", {})
        trained = count(lm, trained=True)
        dtype, precision = (
            str(value).removeprefix("torch.") for value in (next(lm.parameters()).dtype, learner.precision)
        )
        quantized = "" if outlines.quantization == "none" else f" {outlines.quantization}"
        what = f"{lm.name_or_path}  {dtype}{quantized}, computes in {precision}"
        found.append(Counted(outlines.role, what, 0 if adapters else trained, kept))
        for adapter in adapters.values():
            found.append(Counted("adapters", f"LoRA of rank {adapter.r}  float32", trained, 0))
        if learner.projectors is not None:
            found.append(Counted("projectors", "float32", count(learner.projectors), 0))
    has_own = outlines.teacher is not None and outlines.teacher.asked.of_teacher
    for number, (base, model) in enumerate(outlines.frozen):
        quantized = "" if base.quantization == "none" else f" {base.quantization}"
        what = f"{base.path}  {base.dtype}{quantized}"
        found.append(Counted("contrast" if number or not has_own else "teacher", what, 0, count(model)))
    return found


def _flops(outlines: Outlines, step: Step, *, follows: bool) -> dict[str, float]:
    """What the models were seen to read in a microbatch, for all microbatches of a step.

    Args:
        follows: Whether a reference that follows the model reads what the model reads.
    """
    microbatches = outlines.step_pairs / outlines.pairs
    read = {model: [_pass(model, batch) for batch in batches] for model, batches in step.passes.items()}
    found = {}
    if outlines.learner is not None:
        assert outlines.role is not None
        lm = outlines.learner.lm
        trained = count(lm, trained=True) - outer_weights(lm, trained=True)
        recomputed = outlines.recomputed == "full"
        each = read.pop(outlines.learner)
        found[outlines.role] = microbatches * sum(
            training_flops(one, trained=trained, recomputed=recomputed) for one in each
        )
        if follows:
            found["reference"] = microbatches * sum(map(forward_flops, each))
    if read:
        found["teacher"] = microbatches * sum(forward_flops(one) for each in read.values() for one in each)
    return found


def _pass(model: LogprobModel, tokens: TokenBatch) -> Pass:
    there = tokens.segments != Segment.PADDING
    attended = int(keys_attended(model.lm, tokens.position_ids.masked_fill(~there, -1)))
    return reading(model.lm, tokens=int(there.sum()), attended=attended, targets=len(tokens.targets))


def _scores(config: Any, outlines: Outlines) -> tuple[float, str] | None:
    """What the scores of the pairs take on disk: of those that are here, else of a thousand full ones."""
    teacher = outlines.teacher
    if teacher is None or teacher.has_scores:
        return None
    logprobs = 3 if teacher.asks.has_contrast else 1
    student = next((model for _, model in model_settings(config) if model is not teacher.config), teacher.config)
    sides = (student, teacher.config)
    is_here = all(Path(part.source).exists() for part in config.data.parts)
    if not is_here or not all(_has_tokenizer(side.tokenizer_path) for side in sides):
        parents = 1000 * 2 * (config.data.max_length - config.data.max_prompt_length)
        kept = _kept_bytes(config, teacher.config, parents, parents / 2)  # at most a parent a token
        return score_cache_bytes(parents, logprobs) + kept, "1,000 pairs that fill data.max_length"
    pairs = load_pairs(config.data)
    readers = (ModelSide(load_tokenizer(side), side.template) for side in sides)
    sample = pairs.train.select(range(min(SAMPLE, len(pairs.train))))
    aligned = align_pairs(sample, *readers, config=replace(config.data, workers=1), description="Counting")
    total = len(pairs.train) + len(pairs.held_out)
    share = total / max(len(sample), 1)
    parents, *tokens = (count * share for count in count_scored(aligned))
    kept = _kept_bytes(config, teacher.config, *tokens)
    return score_cache_bytes(parents, logprobs) + kept, f"{total:,} pairs with about {parents:,.0f} parents"


def _kept_bytes(config: Any, teacher: TeacherConfig, tokens: float, chosen: float) -> float:
    """What is kept besides log-probs, if anything is."""
    keep = setting(config, KeepConfig)
    return 0.0 if keep is None else keep.size(teacher, tokens, chosen)


def _has_tokenizer(path: str | None) -> bool:
    return path is not None and any((Path(path) / file).is_file() for file in ("tokenizer.json", "tokenizer.model"))
