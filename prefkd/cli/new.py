"""`prefkd new`."""

from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import arg

from prefkd.catalog import hush_libraries
from prefkd.cli.arguments import optional
from prefkd.cli.output import say
from prefkd.errors import PrefkdError


def new(
    *,
    student: Annotated[str, arg(metavar="MODEL")],
    teacher: Annotated[str, arg(metavar="MODEL")],
    data: Annotated[str, arg(metavar="SOURCE")],
    recipe: Annotated[str, optional("RECIPE")] = "tis_dpo_distill",
    split: Annotated[str, optional("NAME")] = "train",
    subset: Annotated[str | None, optional("NAME")] = None,
    gpu: Annotated[str | None, optional("NAME|GIB")] = None,
    output: Annotated[Path, optional("FILE")] = Path("mine.yaml"),
) -> None:
    """Write a config for your own models and data, with lengths, batches and types that fit.

    For example:
        prefkd new --student models/small --teacher models/large --data mine.jsonl
        prefkd new --student models/small --teacher models/large --data mine.jsonl --recipe dskd_distill --gpu A100-80

    Args:
        student: Folder or Hub id of the student; its tokenizer and its config.json are read.
        teacher: Folder or Hub id of the teacher.
        data: File, folder or Hub data set of preference pairs.
        recipe: Recipe that the config is for; tis_dpo_distill by default. sft and dpo train the teacher.
        split: Split of a Hub data set or of a folder; train by default.
        subset: Configuration of a Hub data set.
        gpu: GPU that the run has to fit on: H100, A100-40 or another that `prefkd plan` knows, or its memory in GiB.
            This machine by default.
        output: File to write; mine.yaml by default.
    """
    if output.exists():
        raise PrefkdError(f"{output} already exists; name another file with --output")
    if output.suffix not in (".yaml", ".yml"):
        raise PrefkdError(f"{output} is not a config file; give it the suffix .yaml")
    with Console(stderr=True).status("reading models and data, and planning runs"):
        hush_libraries()
        from datasets import disable_progress_bars

        from prefkd.proposal import propose

        disable_progress_bars()
        found = propose(
            recipe, student=student, teacher=teacher, source=data, split=split, subset=subset, gpu=gpu, name=output.stem
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(found.text(output), encoding="utf-8")
    say("\n".join(f"{what}: {why}" for what, why in found.reasons.items()))
    say(f"\nwrote {output}\nsee what it needs: prefkd plan {recipe} --config {output}")
    say(f"run it: prefkd run {recipe} --config {output}")
