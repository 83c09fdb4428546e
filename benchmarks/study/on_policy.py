"""Rows of the study whose student is trained on its own answers, in rounds: sample, rank, score, train.

Such a row of rows.yaml is a training with three more sections: `rounds`, how many; `sample` and `rank`, the settings of
these recipes; and `score`, those of recipe score. All rounds together have as many updates as any other row.
"""

from pathlib import Path
from typing import Any

STAGES = ("sample", "rank", "score")


def round_stages(name: str, settings: dict[str, Any], out: Path) -> list[tuple[str, dict[str, Any]]]:
    """The runs of a row in order, each with its folder in `out` and its config; the last one is the row itself.

    Args:
        name: Folder of the row, with its seed.
        settings: The row, with `training.max_steps` of all rounds together.
    """
    own = {key: value for key, value in settings.items() if key not in (*STAGES, "rounds")}
    rounds, training, seed = settings["rounds"], settings["training"], settings["training"]["seed"]
    if training["max_steps"] % rounds:
        raise SystemExit(f"{name}: {training['max_steps']} updates do not make {rounds} equal rounds")
    found: list[tuple[str, dict[str, Any]]] = []
    student = settings["student"]
    for number in range(1, rounds + 1):
        folder = f"{name}_rounds/{number}"
        data = settings["data"] | {"source": str(out / folder / "rank" / "pairs.jsonl")}
        sample = settings["sample"] | {"models": {"student": {**student, "dtype": "float32"}}}
        sample["sampling"] = sample["sampling"] | {"seed": 1000 * seed + number}
        rank = settings["rank"] | {"candidates": str(out / folder / "sample" / "candidates")}
        score = settings["score"] | {"student": settings["student"], "data": data}
        for stage, stage_settings in zip(STAGES, (sample, rank, score), strict=True):
            found.append((f"{folder}/{stage}", {"recipe": stage, **stage_settings}))
        last = number == rounds
        trained = own | {"student": student, "data": data}
        trained["teacher"] = {"path": None, "scores": str(out / folder / "score" / "scores")}
        trained["training"] = training | {"max_steps": training["max_steps"] // rounds}
        found.append((name if last else f"{folder}/train", trained))
        student = {"path": str(out / folder / "train" / "student")}
    return found
