"""The end of a training recipe: what was saved is measured, described, published, and shown."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prefkd.config.fields import setting
from prefkd.models.load import ModelConfig, TeacherConfig
from prefkd.models.logprob_model import LogprobModel
from prefkd.training.metrics import HeldOut, Outcome
from prefkd.training.publish import push, try_it, write_card
from prefkd.training.run import TrainingRun
from prefkd.training.samples import changed_answers
from prefkd.training.written import measure_written


def finish(
    recipe: str,
    config: Any,
    run: TrainingRun,
    model: LogprobModel,
    folder: Path,
    held_out: tuple[Mapping[str, float], Mapping[str, float]],
    evaluate: Callable[[], HeldOut],
    report: Callable[[Outcome], Mapping[str, object]],
    files: Mapping[str, object] | None = None,
) -> Outcome:
    """Evaluate a saved folder, write its card and a page, say what there is and what is next, and upload it if asked.

    Args:
        recipe: Name of the recipe.
        config: The recipe's config.
        model: The model that was trained. When this returns, its weights are those of the folder.
        folder: The saved model or adapter.
        held_out: Held-out metrics before and after training, with the weights in memory.
        evaluate: Evaluates the model on the held-out pairs.
        report: Writes a page about the run; returns its path by the name that it is shown with.
        files: Other files of the run, by what they are.

    Raises:
        PrefkdError: The folder cannot be loaded, or the Hub does not take it.
    """
    ranks, display = run.ranks, run.display
    outcome = measure_written(folder, *held_out, evaluate, model=model, ranks=ranks, display=display)
    write_card(recipe, config, folder, outcome, ranks=ranks)
    run.watch.sample_saved()
    display.answers(changed_answers(config.output_dir))
    written: dict[str, object] = {
        folder.name: folder,
        **(files or {}),
        "metrics": config.output_dir / "metrics.jsonl",
        "config": config.output_dir / "config.yaml",
        run.report_name: run.report_file(config.output_dir),
    }
    written |= report(outcome)
    run.checkpoints.remove()  # not before all is written: a run that is killed on the way resumes and writes it
    display.result(outcome, written, _next_step(config, folder))
    push(config.push_to_hub, folder, ranks=ranks, display=display)
    return outcome


def _next_step(config: Any, folder: Path) -> str:
    if folder.name != "adapter":
        return try_it(folder)
    base = setting(config, ModelConfig, but=TeacherConfig)
    assert base is not None, "a recipe trains a model"
    return f"as a teacher it is path: {base.path}, adapter: {folder}"
