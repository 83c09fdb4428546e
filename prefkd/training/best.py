"""The weights of the best evaluation of a run, on the disk until the run is finished."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from prefkd.errors import PrefkdError
from prefkd.ranks import Ranks
from prefkd.training.snapshots import RECORD, STEPS, learned, step_name

FOLDER = "best"


class BestWeights:
    """Writes the weights that learn, and puts them back. All ranks call each method together.

    Weights that an earlier checkpoint names stay until it is removed, so that a resumed run finds them.

    Args:
        output_dir: The run's folder.
        model: All that learns, sharded or not.
    """

    def __init__(self, output_dir: Path, model: nn.Module, ranks: Ranks):
        self._folder, self._checkpoints = output_dir / FOLDER, output_dir / "checkpoints"
        self._model, self._ranks = model, ranks

    def keep(self, step: int, previous: int) -> None:
        """Write the weights after a step. Of the others, those of the previous best step stay."""
        final = self._folder / step_name(step)
        unfinished = final.with_name(f".{final.name}.unfinished")
        if self._ranks.is_main:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
        self._ranks.wait()
        alone = self._ranks.world_size == 1
        with warnings.catch_warnings(action="ignore"):  # torch wonders at a single process
            writer = FileSystemWriter(unfinished)
            save({"model": learned(self._model)}, storage_writer=writer, process_group=self._ranks.group, no_dist=alone)
        self._ranks.wait()
        if self._ranks.is_main:
            shutil.rmtree(final, ignore_errors=True)
            unfinished.rename(final)
            used = {step, previous, *self._in_checkpoints()}
            for path in self._folder.glob(STEPS):
                if path.name not in map(step_name, used):
                    shutil.rmtree(path, ignore_errors=True)
        self._ranks.wait()

    def restore(self, step: int) -> None:
        """Give the model the weights that it had after a step.

        Raises:
            PrefkdError: They are not on the disk.
        """
        folder = self._folder / step_name(step)
        if not folder.is_dir():
            raise PrefkdError(f"{folder} is missing, which holds the best weights; name another output_dir")
        state: dict[str, Any] = {"model": learned(self._model)}
        with warnings.catch_warnings(action="ignore"):  # torch wonders at a single process
            load(state, checkpoint_id=folder, no_dist=self._ranks.world_size == 1)

    def _in_checkpoints(self) -> set[int]:
        """The best steps of the checkpoints from which the run may be resumed."""
        records = [path / RECORD for path in self._checkpoints.glob(STEPS)]
        return {json.loads(record.read_text(encoding="utf-8"))["best_step"] for record in records if record.is_file()}
