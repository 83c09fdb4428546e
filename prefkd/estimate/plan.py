"""The plan of a run: what its models consist of, what a rank needs, what a step costs."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from prefkd.data.pairs import load_pairs
from prefkd.data.templates import ModelSide
from prefkd.data.tokenizing import ANSWERS, align_pairs
from prefkd.estimate.company import Company, gather_company
from prefkd.estimate.flops import forward_flops, training_flops
from prefkd.estimate.memory import GIB, Card, gathered_bytes, score_cache_bytes, sharded_bytes
from prefkd.estimate.models import (
    count,
    group_bytes,
    outer_weights,
    reading,
    teacher_bytes,
)
from prefkd.estimate.step import pairs_of_pass, state_bytes, track_step
from prefkd.models.load import load_tokenizer
from prefkd.models.quantize import stored_bytes

# Kinds of memory that FSDP2 splits over ranks, and that wait in main memory with training.cpu_offload.
SPLIT = ("weights", "gradients", "optimizer")
# So many pairs tell how many parents the others have.
SAMPLE = 200


@dataclass(frozen=True)
class Counted:
    """A model, or a part of one.

    Attributes:
        name: What it is in the run.
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
        at_peak: What there is of it when all kinds together are most.
    """

    most: float
    at_peak: float


@dataclass(frozen=True)
class Plan:
    """What a run is going to need.

    Attributes:
        recipe: Its name.
        ranks: Processes, each with a device of its own.
        batch: What the rank reads at one time.
        step: What is called a step here.
        models: The models and what is put on them.
        memory: Kind -> bytes on a rank.
        flops: Model -> floating-point operations of a step, over all ranks.
        scores: The bytes of a score cache, and of what; None where no teacher is asked about pairs.
    """

    recipe: str
    ranks: int
    batch: str
    step: str
    models: list[Counted]
    memory: dict[str, Need]
    flops: dict[str, float]
    scores: tuple[float, str] | None

    @property
    def peak(self) -> float:
        """Bytes on a rank at the fullest moment."""
        return sum(need.at_peak for need in self.memory.values())


def make_plan(recipe: ModuleType, name: str, config: Any, ranks: int, card: Card | None = None) -> Plan:
    """Plan a run of a recipe.

    Args:
        ranks: Processes.
        card: The GPU of each, if it is known.
    """
    company = gather_company(config)
    tracker = track_step(recipe, config, company, ranks)
    memory: dict[str, Need] = {}
    learner = company.learner
    if learner is not None:
        weights = sharded_bytes(stored_bytes(learner), ranks)
        state = state_bytes(config.optimizer, learner.parameters(), ranks)
        memory |= {"weights": Need(weights, weights), "optimizer": Need(state, state)}
        gathered = gathered_bytes(*group_bytes(learner), ranks=ranks)
        if gathered:
            memory["gathered weights"] = Need(gathered, gathered)
    gpu_bytes = card.gib * GIB if card is not None else None
    teachers = sum(teacher_bytes(*base, ranks, gpu_bytes) for base in company.frozen.bases)
    if teachers:
        memory["teacher"] = Need(teachers, teachers)
    memory |= {kind: Need(tracker.most[kind], tracker.peak[kind]) for kind in ("gradients", "casts", "activations")}
    order = ("weights", "gathered weights", "casts", "gradients", "optimizer", "teacher", "activations")
    memory = {kind: memory[kind] for kind in order if kind in memory and memory[kind].most}
    if learner is not None and config.training.cpu_offload:
        memory = {
            f"{kind} (main memory)" if kind in SPLIT else kind: Need(need.most, 0.0) if kind in SPLIT else need
            for kind, need in memory.items()
        }
    data, pairs = config.data, pairs_of_pass(config)
    answer = data.max_length - data.max_prompt_length
    answers = "an answer" if hasattr(config, "target") else "two answers"
    step = f"{config.training.batch_size} pairs" if learner is not None else f"{pairs} pairs"
    return Plan(
        recipe=name,
        ranks=ranks,
        batch=f"{pairs} pairs, each {data.max_prompt_length} tokens of prompt and {answers} of {answer}",
        step=step,
        models=_counted(config, company),
        memory=memory,
        flops=_flops(config, company),
        scores=_scores(config, company),
    )


def as_json(plan: Plan, card: Card | None) -> str:
    """The numbers of a plan, bytes as they are, and whether it fits a GPU."""
    numbers = asdict(plan) | {"peak": plan.peak, "gpu": card and asdict(card), "fits": card and card.fits(plan.peak)}
    return json.dumps(numbers, indent=2) + "\n"


def _counted(config: Any, company: Company) -> list[Counted]:
    found = []
    if company.learner is not None:
        role = "student" if hasattr(config, "student") else "model"
        lm = company.learner.lm
        adapters = count(lm, trained=True) if getattr(config, "lora", None) else 0
        dtype = str(next(lm.parameters()).dtype).removeprefix("torch.")
        what = f"{getattr(config, role).path}  {dtype}, computes in {config.training.precision}"
        found.append(Counted(role, what, count(lm, trained=True) - adapters, count(lm, trained=False)))
        if adapters:
            found.append(Counted("adapters", f"LoRA of rank {config.lora.rank}  float32", adapters, 0))
        if company.learner.projectors is not None:
            found.append(Counted("projectors", "float32", count(company.learner.projectors), 0))
    for number, (base, model) in enumerate(company.frozen.bases):
        quantized = "" if base.quantization == "none" else f" {base.quantization}"
        what = f"{base.path}  {base.dtype}{quantized}"
        found.append(Counted("contrast" if number else "teacher", what, 0, count(model)))
    return found


def _flops(config: Any, company: Company) -> dict[str, float]:
    pairs = config.training.batch_size if company.learner is not None else pairs_of_pass(config)
    prompt, answer = config.data.max_prompt_length, config.data.max_length - config.data.max_prompt_length

    def sizes(shares_prompt: bool) -> dict[str, int]:
        if hasattr(config, "target"):
            return {"tokens": pairs * (prompt + answer), "row": prompt + answer, "targets": pairs * answer}
        row = prompt + 2 * answer if shares_prompt else prompt + answer
        return {"tokens": pairs * row * (1 if shares_prompt else 2), "row": row, "targets": pairs * 2 * answer}

    found = {}
    if company.learner is not None:
        role = "student" if hasattr(config, "student") else "model"
        lm = company.learner.lm
        found[role] = training_flops(
            reading(company.learner, **sizes(getattr(config, role).share_prompt)),
            trained=count(lm, trained=True) - outer_weights(lm, trained=True),
            recomputed=config.training.activation_checkpointing,
        )
    if company.frozen.models:
        each = zip(company.frozen.models, company.passes, strict=True)
        read = sizes(config.teacher.share_prompt)
        found["teacher"] = sum(passes * forward_flops(reading(model.base, **read)) for model, passes in each)
    return found


def _scores(config: Any, company: Company) -> tuple[float, str] | None:
    """What the scores of the pairs take on disk: of those that are here, else of a thousand full ones."""
    if not hasattr(config, "teacher") or getattr(config.teacher, "scores", None) is not None:
        return None
    contrast = getattr(config, "contrast", None)
    weights = getattr(config, "weights", None)
    has_contrast = contrast.kind != "none" if contrast is not None else weights and weights.contrast != "uniform"
    logprobs = 3 if has_contrast else 1
    sides = (config.student, config.teacher)
    if not Path(config.data.source).exists() or not all(_has_tokenizer(side.path) for side in sides):
        parents = 1000 * 2 * (config.data.max_length - config.data.max_prompt_length)
        return score_cache_bytes(parents, logprobs), "1,000 pairs that fill data.max_length"
    pairs = load_pairs(config.data)
    student, teacher = (ModelSide(load_tokenizer(side), side.template) for side in sides)
    sample = pairs.train.select(range(min(SAMPLE, len(pairs.train))))
    aligned = align_pairs(sample, student, teacher, config=replace(config.data, workers=1), description="Counting")
    total = len(pairs.train) + len(pairs.held_out)
    parents = sum(sum(aligned[f"{answer}_parents"][:]) for answer in ANSWERS) / max(len(sample), 1) * total
    return score_cache_bytes(parents, logprobs), f"{total:,} pairs with about {parents:,.0f} parents"


def _has_tokenizer(path: str | None) -> bool:
    return path is not None and any((Path(path) / file).is_file() for file in ("tokenizer.json", "tokenizer.model"))
