"""A first config for a pair of models and data: what to choose, found by looking at them."""

import tempfile
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset

from prefkd import catalog
from prefkd.catalog import load_recipe
from prefkd.config.layers import as_yaml, laid_over_base
from prefkd.data.pairs import DataConfig, load_pairs
from prefkd.data.rows import ANSWERS, SIDES, cut_column, token_column
from prefkd.data.sides import ModelSide
from prefkd.data.tokenizing import align_pairs
from prefkd.data.vocabulary import Vocabularies
from prefkd.errors import PrefkdError, nearest
from prefkd.estimate.memory import GIB, Card, find_card, own_memory
from prefkd.estimate.models import read_architecture
from prefkd.estimate.plan import Plan, make_plan
from prefkd.estimate.reading import read_for_plan
from prefkd.models.load import ModelConfig, read_side

RECIPES = ("tis_dpo_distill", "dpo_distill", "dskd_distill", "score", "sft", "dpo")
SAMPLE = 1000  # pairs that are read for their lengths
LONGEST = 8192  # tokens of a pair that are counted
ROUND = 64  # lengths are multiples of it
# Pairs of a microbatch, and what backward computes again; the faster of two that fit stands first.
FITS = (
    *((8, "none"), (4, "none"), (8, "selective"), (4, "selective"), (8, "full"), (4, "full")),
    *((2, "none"), (2, "selective"), (2, "full"), (1, "none"), (1, "selective"), (1, "full")),
)
ADAPTERS = {"rank": 16, "alpha": 16, "dropout": 0.05}
FASTER = 10  # times the learning rate of all weights, for adapters: the alignment handbook's two recipes of Zephyr 7B
LEAST_STEPS = 50
# A student of fewer parameters hardly moves at the rate of CTPD, whose students have 1.2 to 3.8 billion: SmolLM2-135M
# gave the same answers after 12 steps of 4 pairs at 1e-6, and other ones after 20 at 1e-5.
SMALL, SMALL_RATE = 1e9, 1e-5


@dataclass(frozen=True)
class Proposal:
    """A config that is proposed.

    Attributes:
        keys: The config.
        reasons: Choice -> reason.
    """

    keys: dict[str, Any]
    reasons: dict[str, str]

    def text(self, path: Path) -> str:
        """The file, with the reasons in its header."""
        lines = [f"A config for recipe {self.keys['recipe']}, written by `prefkd new`. What it chose, and why:"]
        for what, why in self.reasons.items():
            lines += textwrap.wrap(f"{what}: {why}", 116, initial_indent="  ", subsequent_indent="    ")
        lines += ["", "Run:", f"  prefkd run {self.keys['recipe']} --config {path}"]
        return "".join(f"# {line}".rstrip() + "\n" for line in lines) + "\n" + as_yaml(self.keys)


def propose(
    recipe: str,
    *,
    student: str,
    teacher: str,
    source: str,
    split: str,
    subset: str | None,
    gpu: str | None,
    name: str,
) -> Proposal:
    """Look at models and data, and choose lengths, batches and types that fit.

    Args:
        recipe: Name of a recipe that trains or scores.
        student, teacher: Folders or Hub ids.
        source, split, subset: The pairs, as in a config's `data`.
        gpu: Name of a GPU, or its GiB; None for this machine.
        name: The folder of the run below runs/.

    Raises:
        PrefkdError: The recipe, a model, the data or the GPU cannot be used.
    """
    if recipe not in RECIPES:
        raise PrefkdError(f"--recipe {recipe} is not one that this writes a config for{nearest(recipe, RECIPES)}")
    card = own_memory() if gpu is None else find_card(gpu)
    configs = {"student": ModelConfig(student), "teacher": ModelConfig(teacher)}
    for key, config in configs.items():
        for problem in config.problems():
            raise PrefkdError(f"--{key}: {getattr(problem, 'text', problem)}")
    sides = {key: read_side(config) for key, config in configs.items()}
    positions = min(
        getattr(read_architecture(config, key), "max_position_embeddings", None) or LONGEST
        for key, config in configs.items()
    )
    data: dict[str, Any] = {"source": source, "subset": subset, "split": split}
    reasons: dict[str, str] = {}
    steps, training = _read_data(data, sides, positions, reasons)
    own: dict[str, Any] = {"output_dir": f"runs/{name}"}
    if recipe != "score":
        own |= {"training": training, "lr_schedule": {"num_warmup_steps": steps // 10}}
    own |= _for_the_pair(recipe, sides, reasons)
    on_cpu = gpu is None and not torch.cuda.is_available()
    if recipe != "score":
        training["precision"] = "float32" if on_cpu else "bfloat16"
        reasons["precision"] = "float32, since there is no GPU here" if on_cpu else "bfloat16, which GPUs compute fast"
    keys = laid_over_base(f"bases/{recipe}", own, {"student": student, "teacher": teacher, "pairs": data, "pair": name})
    return Proposal(_fitting(keys, recipe, card, reasons), reasons)


def _read_data(
    data: dict[str, Any], sides: dict[str, ModelSide], positions: int, reasons: dict[str, str]
) -> tuple[int, dict[str, Any]]:
    """Choose lengths and the size of a step; returns the steps of an epoch, and settings of the training."""
    longest = max(min(LONGEST, positions), 2)
    config = DataConfig(**data, max_length=longest, max_prompt_length=longest // 2, on_bad_row="skip")
    for problem in config.problems():
        raise PrefkdError(f"--data: {getattr(problem, 'text', problem)}")
    read = load_pairs(config)
    pairs = read.train.select(range(min(SAMPLE, len(read.train))))
    left_out: Counter[str] = Counter()
    aligned = align_pairs(pairs, sides["student"], sides["teacher"], config=config, left_out=left_out)
    if not len(aligned):
        raise PrefkdError(f"--data: none of the first {len(pairs)} pairs of {data['source']} can be used")
    prompt, pair = (max(_percentile(aligned, side, whole) for side in SIDES) for whole in (False, True))
    max_length = max(min(_rounded(pair), positions), 2)
    data["max_length"] = max_length
    data["max_prompt_length"] = min(_rounded(prompt), max_length // 2)
    tokens = " and ".join(f"{_percentile(aligned, side, True)} tokens of the {side}" for side in SIDES)
    limit = f", and the models read {positions}" if max_length == positions else ""
    reasons["data.max_length"] = f"{max_length}; 95 % of {len(aligned)} pairs have at most {tokens}{limit}"
    reasons["data.max_prompt_length"] = (
        f"{data['max_prompt_length']}; 95 % of the prompts have at most {prompt} tokens, and one is cut only where its "
        "pair is too long"
    )
    skipped = read.report["skipped_rows"]
    if skipped:
        data["on_bad_row"] = "skip"
        reasons["data.on_bad_row"] = f"skip; {len(skipped)} rows cannot be used, the first is {skipped[0]}"
    batch = next((size for size in (32, 16, 8) if len(read.train) // size >= LEAST_STEPS), 4)
    steps = -(-len(read.train) // batch)
    reasons["training.batch_size"] = f"{batch}; {len(read.train)} pairs make {steps} steps of it"
    return steps, {"batch_size": batch, "evaluate_every": max(min(200, steps // 4), 1)}


def _percentile(aligned: Dataset, side: str, whole: bool) -> int:
    """Tokens of 95 % of the prompts, or of the prompts with their longer answer, before anything is cut off."""
    table: Any = aligned.with_format("arrow")[:]

    def lengths(part: str) -> np.ndarray:
        kept = pc.call_function("list_value_length", [table[token_column(side, part)]]).to_numpy()
        return kept + table[cut_column(side, part)].to_numpy()

    answers = np.maximum(*(lengths(answer) for answer in ANSWERS)) if whole else 0
    return int(np.percentile(lengths("prompt") + answers, 95))


def _rounded(length: int) -> int:
    return -(-length // ROUND) * ROUND


def _for_the_pair(recipe: str, sides: dict[str, ModelSide], reasons: dict[str, str]) -> dict[str, Any]:
    """What depends on the two tokenizers."""
    own: dict[str, Any] = {}
    has_chat = {key: side.uses_chat_template for key, side in sides.items()}
    reasons["templates"] = ", ".join(
        f"the {key} has a chat template" if chat else f"the {key} has none and reads role headings"
        for key, chat in has_chat.items()
    )
    vocabularies = Vocabularies.of(sides["student"].tokenizer, sides["teacher"].tokenizer)
    one = vocabularies.student == vocabularies.teacher
    sizes = len(vocabularies.student), len(vocabularies.teacher)
    reasons["vocabularies"] = f"one of {sizes[0]} tokens" if one else f"two, of {sizes[0]} and {sizes[1]} tokens"
    follows = has_chat["teacher"]
    if recipe in ("tis_dpo_distill", "dskd_distill"):
        own["weights"] = {"contrast": "prompt_pair" if follows else "uniform"}
        reasons["weights.contrast"] = (
            "prompt_pair; the teacher has a chat template, so that it may follow the two instructions"
            if follows
            else "uniform; a teacher without a chat template does not follow the two instructions of prompt_pair"
        )
    if recipe == "score":
        own["contrast"] = {"kind": "prompts" if follows else "none"}
        reasons["contrast.kind"] = "prompts" if follows else "none; the teacher has no chat template for instructions"
    if recipe == "dskd_distill" and one:
        own["objective"] = [
            {"_component_": "prefkd.training.terms.tis_dpo", "beta": 0.1},
            {"_component_": "prefkd.training.terms.cross_entropy", "weight": 0.25},
            {"_component_": "prefkd.training.terms.same_vocabulary", "weight": 0.25, "divergence": "forward_kl"},
        ]
        reasons["objective"] = "same_vocabulary; with one vocabulary next-token distributions are compared as they are"
    return own


def _fitting(keys: dict[str, Any], recipe: str, card: Card, reasons: dict[str, str]) -> dict[str, Any]:
    """The config with the first microbatch that fits, of all weights or of the adapters that there is room for."""
    plan = partial(_plan, load_recipe(catalog.find_recipe(recipe)), recipe, card)
    if recipe == "score":
        tried = [keys | {"microbatch_size": size} for size, again in FITS if again == "none"]
    else:
        first = plan(_with(keys, FITS[-1]))
        keys = _with_rate(keys, first.models[0].trained, reasons)
        ways = [*_ways(keys)]
        fitting = (way for way in ways if card.fits((plan(_with(way[0], FITS[-1])) if way[1] else first).peak))
        found = next(fitting, None)
        keys, why = found or ways[-1]
        if why:
            reasons["lora"] = f"{why}; {card.name} of {card.gib:.1f} GiB has no room for more"
        fits = FITS if found else FITS[-1:]  # the last needs least
        tried = [_with(keys, how) for how in fits if how[0] <= keys["training"]["batch_size"]]
    peak = 0.0
    for keys in tried:
        peak = plan(keys).peak
        chosen = keys.get("training", keys)
        pairs = chosen["microbatch_size"]
        if card.fits(peak):
            reasons["microbatch_size"] = f"{pairs}; {peak / GIB:.1f} GiB of the {card.gib:.1f} GiB of {card.name}"
            if again := chosen.get("activation_checkpointing"):
                why = "there is room for all activations" if again == "none" else "more would not fit"
                reasons["activation_checkpointing"] = f"{again}; {why}"
            return keys
    reasons["microbatch_size"] = (
        f"1, and still {peak / GIB:.1f} GiB, more than {card.name} of {card.gib:.1f} GiB has room for; split the "
        "run over several GPUs (--nproc-per-node) or take a larger one"
    )
    return keys


def _with(keys: dict[str, Any], how: tuple[int, str]) -> dict[str, Any]:
    """A config with a microbatch of so many pairs, and what backward computes again."""
    pairs, again = how
    return keys | {"training": keys["training"] | {"microbatch_size": pairs, "activation_checkpointing": again}}


def _ways(keys: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """What can learn, each with less memory than the one before, and why it is chosen."""
    yield keys, ""
    learner = "model" if "model" in keys else "student"
    if not keys.get("lora"):
        optimizer = keys["optimizer"] | {"lr": keys["optimizer"]["lr"] * FASTER}
        keys = keys | {"lora": ADAPTERS, "optimizer": optimizer}
        yield keys, f"adapters learn, at {FASTER} times the rate"
    if "teacher" in keys:
        keys = keys | {"teacher": keys["teacher"] | {"quantization": "nf4"}}
        yield keys, "adapters learn, and the teacher is in four bits"
    keys = keys | {learner: keys[learner] | {"quantization": "nf4"}}
    yield keys, f"adapters learn on a {learner} in four bits{', as the teacher is' if 'teacher' in keys else ''}"


def _with_rate(keys: dict[str, Any], trained: int, reasons: dict[str, str]) -> dict[str, Any]:
    """A config whose learning rate suits a student of so many parameters."""
    base = keys["optimizer"]["lr"]
    if keys["recipe"] not in ("tis_dpo_distill", "dpo_distill") or trained >= SMALL:
        return keys
    reasons["optimizer.lr"] = (
        f"{SMALL_RATE:g}; a student of {trained / 1e6:,.0f} M parameters learns little at the {base:g} of larger ones"
    )
    return keys | {"optimizer": keys["optimizer"] | {"lr": SMALL_RATE}}


def _plan(module: ModuleType, recipe: str, card: Card, keys: dict[str, Any]) -> Plan:
    """What a config needs, as `prefkd plan` counts it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(as_yaml(keys), encoding="utf-8")
        config = read_for_plan(module, recipe, path, ())
    return make_plan(module, recipe, config, 1, card, counts_scores=False)
