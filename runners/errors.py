"""What can go wrong once training has begun."""

from __future__ import annotations

import signal


class TrainingError(RuntimeError):
    """Training that cannot go on: what its folder held after the last epoch is left as it was."""


class TrainingStopped(Exception):
    """Training that a signal has ended, after a checkpoint: the same command goes on from there."""

    def __init__(self, by: int, where: str) -> None:
        super().__init__(where)
        self.signal = signal.Signals(by)
        self.where = where
        """The epoch and the step."""
