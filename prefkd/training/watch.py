"""What evaluations during a run decide: which weights are the best, and when to stop."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from prefkd.errors import PrefkdError
from prefkd.ranks import Ranks
from prefkd.training.best import BestWeights
from prefkd.training.display import Display
from prefkd.training.settings import LOWER_IS_BETTER, TrainingConfig
from prefkd.training.snapshots import Progress, step_name


class Watch:
    """Looks at a run after each evaluation. All ranks call each method together.

    Args:
        config: The recipe's config, with `output_dir` and `training`.
        model: All that learns.
        sample: Lets the model answer a few prompts after a step; returns numbers to log about the answers.
    """

    def __init__(
        self, config: Any, model: nn.Module, ranks: Ranks, display: Display, sample: Callable[[int], dict[str, float]]
    ):
        self._training: TrainingConfig = config.training
        self._output_dir: Path = config.output_dir
        self._display, self._sample = display, sample
        self._best = BestWeights(config.output_dir, model, ranks)
        self._step = 0

    def steps(self, planned: Sequence[list[int]], progress: Progress) -> Iterator[tuple[int, list[int]]]:
        """The steps that are left, numbered from 1, with the rows of each; none after `training.stop_after`."""
        for step, rows in enumerate(planned[progress.step :], start=progress.step + 1):
            patience = self._training.stop_after
            if patience and progress.since_best >= patience:
                metric = self._training.keep_best
                self._display.say(f"stopped after step {progress.step}: {metric} has not improved {patience} times")
                return
            yield step, rows

    def look(self, step: int, progress: Progress, found: dict[str, float]) -> dict[str, float]:
        """Take note of held-out metrics after a step, and let the model answer its prompts.

        Returns:
            The metrics and numbers about the answers, to be logged.

        Raises:
            PrefkdError: `training.keep_best` is not among the metrics.
        """
        progress.latest = found  # with the losses of single pairs, if there are any
        if self._training.keep_best is not None:
            value = self._value(found, self._training.keep_best)
            if step:
                self._compare(step, progress, value)
        return found | self._answers(step, f"step {step}")

    def export(self, step: int, save: Callable[[Path], Path]) -> None:
        """Write the model as it is after a step, if `training.export_every` says so.

        Args:
            save: Writes it to a folder.
        """
        every = self._training.export_every
        if every and step % every == 0:
            self._display.say(f"step {step}: exported to {save(self._output_dir / 'exports' / step_name(step))}")

    def restore_best(self, progress: Progress) -> None:
        """At the end of a run, go back to the weights of the best evaluation."""
        self._step = progress.step
        if self._training.keep_best is None or progress.best_step == progress.step:
            return
        self._best.restore(progress.best_step)
        progress.latest = progress.best
        value = self._value(progress.best, self._training.keep_best)
        best = f"{self._training.keep_best} {value:.4f} after step {progress.best_step}"
        self._display.say(f"the best held-out {best}; these weights are saved")

    def sample_saved(self) -> None:
        """Let the saved model, whose weights are in memory by now, answer the prompts in place of the last step's."""
        self._answers(self._step, "the saved model")

    def _answers(self, step: int, whose: str) -> dict[str, float]:
        found = self._sample(step)
        if step and "samples/win_rate" in found:
            self._display.say(f"{whose}: answers better than before training {found['samples/win_rate']:.1%}")
        return found

    def _compare(self, step: int, progress: Progress, value: float) -> None:
        metric = self._training.keep_best
        assert metric is not None, "something is compared"
        sign = -1 if metric in LOWER_IS_BETTER else 1
        if progress.best and sign * value <= sign * self._value(progress.best, metric):
            progress.since_best += 1
            return
        self._best.keep(step, previous=progress.best_step)
        progress.best, progress.best_step, progress.since_best = progress.latest, step, 0

    def _value(self, found: Mapping[str, float], metric: str) -> float:
        names = [name.removeprefix("held_out/") for name in found]
        if metric not in names:
            measured = f"it measures {', '.join(names)}" if names else "no pair is held out"
            raise PrefkdError(f"training.keep_best: this run does not measure {metric}: {measured}")
        return found[f"held_out/{metric}"]
