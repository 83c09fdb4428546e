"""The runs of prefkd's recipes that the study is made of, each with its whole config."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from readings import answers, comparisons
from settings import Arguments
from sharing import write_pairs

# What other recipes than trainings leave when they have finished.
UNTRAINED = {
    "sample": "sample_report.json",
    "rank": "pairs.jsonl",
    "score": "scores_done",
    "shuffle_scores": "scores",
}


@dataclass(frozen=True)
class Job:
    """A run of a recipe.

    Attributes:
        name: Its folder in `out`.
        recipe: The recipe that runs.
        settings: Its whole config.
        proof: The file or folder that is there once it has finished.
    """

    name: str
    recipe: str
    settings: dict[str, Any]
    proof: Path


def training(name: str, settings: dict[str, Any], arguments: Arguments) -> Job:
    """A run of a training recipe, or of one that training builds on."""
    recipe, out = settings["recipe"], arguments.out / name
    student = {"sft": "model", "dpo": "model"}.get(recipe, "student")
    proof = UNTRAINED.get(recipe, "adapter" if settings.get("lora") else student)
    return Job(name, recipe, settings | {"output_dir": str(out)}, out / proof)


def evaluation(name: str, checkpoint: dict[str, Any], part: str, arguments: Arguments) -> Job:
    """The log-probs that a checkpoint gives the answers of some pairs, in float32."""
    out = arguments.out / "read" / part / name
    data = {"source": str(arguments.out / f"{part}.jsonl"), "max_length": 256, "max_prompt_length": 224}
    settings = {
        "recipe": "evaluate",
        "output_dir": str(out),
        "checkpoints": {"model": {"dtype": "float32", **checkpoint}},
        "preferences": {"data": {"pairs": data}, "microbatch_size": 8},
    }
    return Job(f"read/{part}/{name}", "evaluate", settings, out / "table.json")


def answering(name: str, checkpoint: dict[str, Any], arguments: Arguments) -> Job:
    """The answers of a checkpoint to held-out prompts."""
    out = arguments.out / "read" / "answers" / name
    prompts = {"source": str(arguments.out / "held_out.jsonl"), "limit": arguments.answered}
    sampling = {"max_new_tokens": arguments.answer_tokens, "batch_size": 16}
    scorers = {"words": {"_component_": "prefkd.evaluation.scorers.words"}}
    settings = {
        "recipe": "evaluate",
        "output_dir": str(out),
        "checkpoints": {"model": {"dtype": "float32", **checkpoint}},
        "answers": {"held_out": {"prompts": prompts, "sampling": sampling, "scorers": scorers}},
    }
    return Job(f"read/answers/{name}", "evaluate", settings, out / "table.json")


def write_comparisons(name: str, arguments: Arguments) -> int:
    """Pairs of a row's answers with those of the start, where they differ and none is empty; returns how many."""
    own, start = answers(arguments.out, name), answers(arguments.out, "start")
    rows = [
        {"prompt": own[key]["prompt"], "chosen": own[key]["answer"], "rejected": start[key]["answer"]}
        for key in start
        if own[key]["answer"] != start[key]["answer"] and own[key]["answer"] and start[key]["answer"]
    ]
    path = comparisons(arguments.out, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_pairs(path, rows)
    return len(rows)


def judging(name: str, arguments: Arguments) -> Job:
    """The log-probs that the judge and its base give a row's answers and those of the start."""
    out = arguments.out / "read" / "judged" / name
    data = {"source": str(comparisons(arguments.out, name)), "max_length": 512, "max_prompt_length": 384}
    base = {"path": arguments.student, "dtype": "float32"}
    settings = {
        "recipe": "evaluate",
        "output_dir": str(out),
        "checkpoints": {"judge": base | {"adapter": arguments.judge}, "base": base},
        "preferences": {"data": {"pairs": data}, "microbatch_size": 8},
    }
    return Job(f"read/judged/{name}", "evaluate", settings, out / "table.json")
