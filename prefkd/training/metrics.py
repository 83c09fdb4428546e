"""Metrics: summed over microbatches and ranks, written to metrics.jsonl and to the configured logger."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from prefkd.config import Component, build
from prefkd.data.batches import AnswerBatch, PairBatch, TokenPairBatch
from prefkd.errors import PrefkdError, first_line
from prefkd.files import whole
from prefkd.ranks import Ranks
from prefkd.training.contrast_verdict import judge_contrast

# What a result is told by, whether it has changed or not.
RESULTS = tuple(f"held_out/{name}" for name in ("loss", "perplexity", "accuracy", "logprob_accuracy", "margin"))


class HeldOut(dict[str, float]):
    """Held-out metrics by name, `held_out/loss` and so on; empty if there are no held-out pairs.

    Attributes:
        losses: The loss of each pair that this rank has read, in the order of reading. A resumed run does not have it.
    """

    losses: Tensor | None = None


@dataclass(frozen=True)
class Outcome:
    """The held-out metrics of a run by name, `held_out/loss` and so on; all are empty if there are no held-out pairs.

    Attributes:
        before: Before training.
        in_memory: After training, with the weights in memory.
        written: After training, with the saved folder.
    """

    before: Mapping[str, float]
    in_memory: Mapping[str, float]
    written: Mapping[str, float]

    def kept(self, name: str) -> float | None:
        """The share of a metric's change in training that the folder has; None if it has not changed."""
        change = self.in_memory[name] - self.before[name]
        return (self.written[name] - self.before[name]) / change if change else None

    def results(self) -> list[str]:
        """The metrics that a reader looks for, then the others that have changed in four decimals."""
        values = (self.before, self.in_memory, self.written)
        usual = [name for name in RESULTS if name in self.before]
        others = [name for name in self.before if len({f"{value[name]:.4f}" for value in values}) > 1]
        return list(dict.fromkeys(usual + others))


class PairSums:
    """Sums of metrics over pairs, from which means follow once all microbatches and ranks are in.

    They stay on their device until then, so that nothing waits for it before the step is done.
    """

    def __init__(self) -> None:
        self._metrics: list[str] = []
        self._sums: Tensor | None = None
        self._losses: list[Tensor] = []
        self._names: list[str] = []

    def add(self, metrics: Mapping[str, Tensor], batch: PairBatch | TokenPairBatch | AnswerBatch) -> None:
        """Add the metrics of a microbatch.

        Args:
            metrics: (B,) values for each name; the same names in each call, the loss of a pair first.
        """
        losses, counted = next(iter(metrics.values())).detach(), batch.counted
        values = [(value * counted).sum().double() for value in (*metrics.values(), torch.ones_like(counted))]
        sums = torch.stack([*values, (~losses.isfinite()).sum().double()])
        self._sums = sums if self._sums is None else self._sums + sums
        self._metrics = list(metrics)
        self._losses.append(torch.stack([losses, counted]))
        self._names += batch.names

    def read(self, ranks: Ranks, step: int, gradient_norm: Tensor | None = None) -> tuple[dict[str, float], float]:
        """The mean of each metric over the pairs of all ranks, and the norm of the gradient, in one transfer.

        Called before a weight moves, it keeps what is not a number from them. All ranks call it together.

        Returns:
            The means, empty if nothing was added; and the norm, 0 without one.

        Raises:
            PrefkdError: A loss, or the gradient, is not finite; naming the step and the pairs.
        """
        if self._sums is None:
            return {}, 0.0
        sums = ranks.sum(self._sums)
        norm = sums.new_zeros(()) if gradient_norm is None else gradient_norm.to(sums)
        *totals, pairs, unsound, norm = torch.cat([sums, norm[None]]).tolist()
        if unsound:
            losses, _ = torch.cat(self._losses, dim=1)
            own = [name for name, finite in zip(self._names, losses.isfinite().tolist(), strict=True) if not finite]
            bad = ", ".join(dict.fromkeys(name for part in ranks.gather(own) for name in part))
            raise PrefkdError(
                f"the loss is not finite at step {step} on {bad}; look at these rows, or lower the learning rate"
            )
        if not math.isfinite(norm):
            raise PrefkdError(
                f"the gradient is not finite at step {step}, though all losses are; lower the learning rate, or use "
                "precision: float32"
            )
        return {name: total / pairs for name, total in zip(self._metrics, totals, strict=True)}, norm

    def held_out(self, ranks: Ranks, step: int, per: Callable[[dict[str, float]], dict[str, float]] = dict) -> HeldOut:
        """The means after a step, under the names of held-out metrics.

        Args:
            per: Makes the metrics that are shown from the means.
        """
        means, _ = self.read(ranks, step)
        found = HeldOut({f"held_out/{name}": value for name, value in per(means).items()} if means else {})
        if self._losses:
            losses, counted = torch.cat(self._losses, dim=1)
            found.losses = losses[counted > 0].double()
        return found


def brief(metrics: Mapping[str, float]) -> str:
    """The metrics of a step next to a progress bar."""
    preference = f"margin {metrics['margin']:+.1f} accuracy {metrics['accuracy']:.0%} " if "margin" in metrics else ""
    return f"loss {metrics['loss']:.3f} {preference}{metrics['tokens_per_second']:.0f} tokens/s"


def describe(metrics: Mapping[str, float], pairs: int | None = None) -> str:
    """Held-out metrics in a line for the terminal.

    Args:
        pairs: How many pairs are held out, to judge by them the contrast that makes the weights, in a line more.
    """
    if pairs and "held_out/contrast_accuracy" in metrics:
        verdict = judge_contrast(metrics["held_out/contrast_accuracy"], pairs)
        return f"{describe(metrics)}\ncontrast {verdict}"
    if not metrics:
        return "no held-out pairs"
    value = {name.removeprefix("held_out/"): number for name, number in metrics.items()}
    if "logprob_accuracy" not in value:  # answers without a rival
        return f"held-out loss {value['loss']:.4f}"
    if "accuracy" not in value:  # without a preference term there is no margin
        return f"held-out loss {value['loss']:.4f}, accuracy {value['logprob_accuracy']:.1%} (plain log-prob)"
    return (
        f"held-out loss {value['loss']:.4f}, accuracy {value['accuracy']:.1%} (margin over the reference), "
        f"{value['logprob_accuracy']:.1%} (plain log-prob), saturated {value['saturated']:.1%}"
    )


def cut_back(path: Path, step: int | None) -> None:
    """Leave only the lines up to a step in a file of metrics, so that a resumed run writes no step twice.

    Args:
        path: The file, which need not exist.
        step: None = before the first line.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        # A kill may have cut the last line short.
        if step is None or not line.endswith("\n") or json.loads(line)["step"] > step:
            break
        kept.append(line)
    with whole(path) as unfinished:
        unfinished.write_text("".join(kept), encoding="utf-8")


def extend_last(path: Path, metrics: Mapping[str, float]) -> None:
    """Add metrics to the last line of a file of metrics."""
    *lines, last = path.read_text(encoding="utf-8").splitlines(keepends=True)
    with whole(path) as unfinished:
        unfinished.write_text("".join([*lines, json.dumps(json.loads(last) | metrics) + "\n"]), encoding="utf-8")


class MetricsWriter:
    """Appends one JSON line for each call, and hands the numbers on to a logger such as W&B or TensorBoard.

    Args:
        folder: Folder of metrics.jsonl.
        logger: A metric logger of torchtune (`torchtune.training.metric_logging`), or None.
        ranks: Only the main rank writes.
    """

    def __init__(self, folder: Path, logger: Component | None, ranks: Ranks):
        self._component = logger
        self._file = (folder / "metrics.jsonl").open("a", encoding="utf-8") if ranks.is_main else None
        with _named(logger):
            self._logger = build(logger) if logger and ranks.is_main else None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a step at once, so that a killed run keeps them."""
        if self._file is not None:
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")
            self._file.flush()
        if self._logger is not None:
            with _named(self._component):
                self._logger.log_dict(dict(metrics), step=step)

    def close(self) -> None:
        """Flush the file and the logger."""
        if self._file is not None:
            self._file.close()
        if self._logger is not None:
            with _named(self._component):
                self._logger.close()


@contextmanager
def _named(logger: Component | None) -> Iterator[None]:
    """What a logger raises inside, which may be anything of its package and its network, in a line that names it."""
    try:
        yield
    except (PrefkdError, OSError):
        raise
    except Exception as error:
        assert logger is not None, "without a logger nothing is called"
        raise PrefkdError(
            f"metric_logger: {logger['_component_']} fails: {first_line(error)}; use other settings, or ~metric_logger"
        ) from error
