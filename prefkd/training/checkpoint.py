"""Checkpoints: all that a training step depends on, written whole or not at all, so that a run resumes exactly.

    <output_dir>/checkpoints/run.json         what the run was started with
    <output_dir>/checkpoints/step_00000200/   weights that learn and optimizer (torch.distributed.checkpoint, so that
                                              another number of processes can read it), state.pt with the schedule and
                                              the random states of all ranks, and checkpoint.json, written last

The position in the data is the step: which pairs make a step follows from the seed. The folder is removed when the run
is finished; what remains is the exported model. A cluster's nodes must share the folder.
"""

import json
import shutil
import signal
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.stateful import Stateful
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from prefkd.config.fields import name_of, setting, settings_of
from prefkd.data.fingerprints import (
    Fingerprint,
    learner_fingerprint,
    pairs_fingerprint,
    same_part,
    sampled_fingerprint,
)
from prefkd.errors import PrefkdError, Problem
from prefkd.files import fingerprint, read_object, write_json
from prefkd.models.contrast import weights_fingerprint
from prefkd.models.load import LearnerConfig
from prefkd.models.teacher import Teacher
from prefkd.ranks import Ranks, together, worker
from prefkd.training.best import FOLDER
from prefkd.training.display import Display
from prefkd.training.metrics import cut_back
from prefkd.training.settings import output_problem, output_problems
from prefkd.training.snapshots import (
    RECORD,
    RUN,
    STATE,
    STEPS,
    Progress,
    Snapshot,
    digests,
    get_random_state,
    learned,
    set_random_state,
    step_name,
    write_snapshot,
)

# Settings that may change on the way: they decide about memory, speed and files, not about what is learned.
FREE = (
    *("metric_logger", "push_to_hub", "data.workers", "training.device", "training.microbatch_size"),
    *("training.microbatch_tokens", "training.attention", "training.compile"),
    *("training.chunk_size", "training.activation_checkpointing", "training.evaluate_every", "training.resume"),
    *("training.checkpoint_every", "training.keep_checkpoints"),
    *("training.shard_over", "training.sync_once", "training.cpu_offload"),
    *("training.async_checkpoints", "training.export", "training.export_every", "training.profile"),
    *("training.sample_answers", "training.sample_tokens", "training.win_rate"),
    *("teacher.placement", "teacher.cpu_offload"),
)
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]


def resume_problems(config: Any) -> Iterator[Problem]:
    """What stands in the way of a run in its output folder, whether it begins there or resumes.

    Args:
        config: A recipe's config with `output_dir` and `training`.
    """
    folder, resume = config.output_dir, config.training.resume
    begun = folder / "checkpoints" / RUN
    if resume not in ("auto", "none"):
        checkpoint = Path(resume)
        if not (checkpoint / RECORD).is_file():
            text = f"{resume} is not a checkpoint; name a folder checkpoints/step_..., or use auto or none"
            yield Problem("training.resume", text, about="resume", paths=(checkpoint,))
            return
        changes = _changes(checkpoint / RUN, config)
        if changes:
            text = f"{resume} was made with other settings ({changes}); take those"
            yield Problem("training.resume", text, about="resume", paths=(checkpoint,))
        if checkpoint.resolve().parent != begun.resolve().parent:
            yield from output_problems(folder)
    elif not begun.is_file():
        yield from output_problems(folder)
    elif resume == "none":
        text = f"{folder} holds an unfinished run; set training.resume to auto, or name another folder"
        yield output_problem(folder, text)
    elif changes := _changes(begun, config):
        remedy = "resume with those, or name another folder"
        yield output_problem(folder, f"{folder} holds an unfinished run with other settings ({changes}); {remedy}")


class Checkpoints:
    """Writes checkpoints of a run and resumes from them. All ranks call each method together.

    Args:
        config: The recipe's config, with `output_dir` and `training`.
        model: All that learns, sharded or not; of what does not learn nothing is stored.
        pairs: The aligned pairs of each split; a checkpoint resumes with the same ones only, and the same models.
        remembering: Objects with a state besides model, optimizer and schedule, by name: a loss with running
            means, a teacher that keeps its readings. Where one has `tensors`, sharded as the model is or not, these are
            written and loaded in place.

    Raises:
        PrefkdError: The run in the folder was started on other pairs, or from other models or scores.
    """

    def __init__(
        self,
        config: Any,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        lr_schedule: LRScheduler,
        pairs: Mapping[str, Dataset],
        ranks: Ranks,
        display: Display,
        remembering: Mapping[str, Stateful] | None = None,
    ):
        self._config, self._ranks, self._display, self._remembering = config, ranks, display, dict(remembering or {})
        self._model, self._optimizer, self._lr_schedule = model, optimizer, lr_schedule
        self._folder: Path = config.output_dir / "checkpoints"
        self._signal = 0
        chosen = config.training.async_checkpoints
        in_background = ranks.device.type == "cuda" if chosen == "auto" else chosen
        self._background = ranks.in_background() if in_background else None
        self._thread = worker(ranks.device)
        self._writing: Future[None] | None = None
        resume = config.training.resume
        own = sorted(self._folder.glob(STEPS), reverse=True) if resume == "auto" else []
        self._candidates: list[Path] = ranks.gather(own if resume in ("auto", "none") else [Path(resume)])[0]
        shapes = {name: list(value.shape) for name, value in learned(self._model).items()}
        self._run = {
            "settings": _settings(config),
            "parts": pairs_fingerprint(pairs)
            | learner_fingerprint(pairs)
            | together(ranks, self._models if ranks.is_main else dict)[0]
            | {"shapes": fingerprint("shapes", shapes)},
        }
        begun = self._candidates[0] / RUN if self._candidates else self._folder / RUN
        if begun.is_file():
            was, parts = json.loads(begun.read_text(encoding="utf-8"))["parts"], self._run["parts"]
            other = [name for name in parts if name in was and not same_part(name, was[name], parts[name])]
            if other:
                remedy = "restore that, or name another output_dir"
                raise PrefkdError(f"{begun.parent} was made with other {', '.join(other)}; {remedy}")
        ranks.wait()  # none writes while another still looks
        if ranks.is_main:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_json(self._folder / RUN, self._run)

    def remember(self, name: str, part: Stateful) -> None:
        """Write and load one more object of those that remember."""
        self._remembering[name] = part

    def resume(self) -> Progress:
        """Put everything back as it was after the newest whole checkpoint, or leave it as it is where there is none.

        Raises:
            PrefkdError: There are checkpoints, but none of them is whole.
        """
        progress = None
        for checkpoint in self._candidates:
            problem = self._damage(checkpoint)
            if problem is None:
                progress, problem = self._load(checkpoint)
            if progress is not None:
                self._display.say(f"resuming after step {progress.step}, from {checkpoint}")
                break
            self._display.say(f"{checkpoint} is broken ({problem}); looking at the one before it")
        if progress is None and self._candidates:
            raise PrefkdError(f"no checkpoint in {self._candidates[0].parent} is complete; name another output_dir")
        if self._ranks.is_main:
            for checkpoint in self._folder.glob(STEPS):
                if progress is not None and checkpoint.name > step_name(progress.step):
                    checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.unused"))
            cut_back(self._config.output_dir / "metrics.jsonl", progress.step if progress else None)
        self._ranks.wait()
        return progress or Progress()

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """Inside, SIGTERM, SIGINT and SIGUSR1 end the run after the step, with a checkpoint; Ctrl-C twice at once."""
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def save(self, step: int, progress: Progress) -> None:
        """After a step: write a checkpoint if it is time for one, or if a signal has come on any rank.

        With `training.async_checkpoints` this copies what it holds, and a thread writes it during the next steps.

        Raises:
            PrefkdError: It, or the one before it, cannot be written. An older one is still there.
            SystemExit: A signal has come; the code is 128 + its number, as shells and schedulers know it.
        """
        progress.step = step
        every = self._config.training.checkpoint_every
        noted = torch.tensor(float(self._signal), device=self._ranks.device)
        stop = self._ranks.sum(noted).item() > 0
        if stop or (every and step % every == 0):
            self._write(progress, at_once=stop)
        if stop:
            number = max(self._ranks.gather(self._signal))
            name = signal.Signals(number).name
            self._display.say(f"stopped by {name} after step {step}; the same command resumes from there")
            raise SystemExit(128 + number)

    def remove(self) -> None:
        """The run is finished: no checkpoint is needed any more."""
        with suppress(PrefkdError):
            self._wait()
        if self._ranks.is_main:
            (self._folder / RUN).unlink(missing_ok=True)  # first, so that what a kill leaves is not gone on with
            shutil.rmtree(self._folder)
            shutil.rmtree(self._config.output_dir / FOLDER, ignore_errors=True)
        self._ranks.wait()

    def _models(self) -> Fingerprint:
        """Which weights the model that learns starts from, and what the teacher says."""
        learner = setting(self._config, LearnerConfig)
        parts: Fingerprint = {}
        if learner is not None:
            parts[name_of(self._config, learner)] = weights_fingerprint(learner, sampled_fingerprint)
        for part in self._remembering.values():
            if isinstance(part, Teacher):
                parts |= part.fingerprint()
        return parts

    def _note(self, number: int, _frame: object) -> None:
        if number == self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        if not self._signal:
            self._signal = number
            self._display.say(f"{signal.Signals(number).name}: finishing the step, then writing a checkpoint")

    def _write(self, progress: Progress, *, at_once: bool) -> None:
        self._wait()
        snapshot = Snapshot(
            progress=replace(progress),
            tensors=self._state(),
            lr_schedule=deepcopy(self._lr_schedule.state_dict()),
            remembered={name: part.state_dict() for name, part in self._remembering.items()},
            random_state=get_random_state(),
            run=self._run,
        )
        training = self._config.training
        write = partial(write_snapshot, folder=self._folder, keep=training.keep_checkpoints)
        if self._background is None or at_once:
            write(snapshot, ranks=self._ranks)
        else:
            self._writing = self._thread.submit(write, snapshot.copy(), ranks=self._background)

    def _wait(self) -> None:
        """Have the checkpoint before written whole."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _state(self) -> dict[str, Any]:
        others = {name: getattr(part, "tensors", {}) for name, part in self._remembering.items()}
        return {
            "model": learned(self._model),
            "optimizer": get_optimizer_state_dict(self._model, self._optimizer),
            **{name: dict(tensors) for name, tensors in others.items() if tensors},
        }

    def _damage(self, checkpoint: Path) -> str | None:
        """Which file of a checkpoint is not what was written, None if all are."""

        def look() -> str | None:
            files = json.loads((checkpoint / RECORD).read_text(encoding="utf-8"))["files"]
            mine = sorted(files)[self._ranks.rank :: self._ranks.world_size]
            gone = next((name for name in mine if not (checkpoint / name).is_file()), None)
            if gone:
                return f"{gone} is missing"
            found = digests(checkpoint, mine)
            return next((f"{name} has changed" for name in mine if found[name] != files[name]), None)

        try:
            return next((problem for problem in together(self._ranks, look) if problem is not None), None)
        except PrefkdError as error:
            return str(error)

    def _load(self, checkpoint: Path) -> tuple[Progress | None, str]:
        def read() -> Progress:
            record = json.loads((checkpoint / RECORD).read_text(encoding="utf-8"))
            state = self._state()
            # What has not learned yet has no state of the optimizer: the student, while projectors warm up.
            stored = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
            state["optimizer"]["state"] = {
                name: values
                for name, values in state["optimizer"]["state"].items()
                if any(f"optimizer.state.{name}.{key}" in stored for key in values)
            }
            with warnings.catch_warnings(action="ignore"):  # torch warns about a single process
                load(state, checkpoint_id=checkpoint, no_dist=self._ranks.world_size == 1)
            set_optimizer_state_dict(
                self._model, self._optimizer, state["optimizer"], options=StateDictOptions(strict=False)
            )
            rest = torch.load(checkpoint / STATE, weights_only=True)
            self._lr_schedule.load_state_dict(rest["lr_schedule"])
            for name, part in self._remembering.items():
                part.load_state_dict(rest["remembered"][name])
            # More ranks than before share what there is; one process sees the very numbers that it would have seen.
            set_random_state(rest["random"][self._ranks.rank % len(rest["random"])])
            return Progress(**{part.name: record[part.name] for part in fields(Progress)})

        try:
            return together(self._ranks, read)[self._ranks.rank], ""
        except PrefkdError as error:
            return None, str(error)


def _settings(config: Any) -> dict[str, Any]:
    """The settings that a checkpoint depends on, by dotted key."""
    free = tuple(f"{key}." for key in FREE)
    return {key: value for key, value in settings_of(config).items() if not f"{key}.".startswith(free)}


def _changes(run: Path, config: Any) -> str:
    """The settings that differ from those of a run, in a few words; empty if there are none."""
    record, new = read_object(run, "settings"), _settings(config)
    if record is None:
        raise PrefkdError(f"{run} is damaged; name another output_dir, or remove {run.parent}")
    old = record["settings"]
    changed = [key for key in old | new if old.get(key) != new.get(key)]
    words = [f"{key} {shorten(str(old.get(key)), 40)} -> {shorten(str(new.get(key)), 40)}" for key in changed[:3]]
    return ", ".join(words) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
