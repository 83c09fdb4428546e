"""A metric logger that sends its own process a signal, so that a config chooses the moment."""

import os
import signal
from collections.abc import Mapping


class Killer:
    """Sends signal `name` when the metrics of `step` are logged, which is in that step; 0 is before training."""

    def __init__(self, step: int, name: str):
        self.step, self.number = step, signal.Signals[name]

    def log_dict(self, payload: Mapping[str, float], step: int) -> None:
        if step == self.step:
            os.kill(os.getpid(), self.number)

    def close(self) -> None:
        pass
