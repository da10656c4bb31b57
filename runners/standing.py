"""How far a run is, and how it fares."""

from __future__ import annotations

from dataclasses import dataclass

from runners.tasks import Metric


@dataclass(frozen=True)
class Score:
    """Means over samples seen."""

    loss: float = 0.0
    measured: float = 0.0
    """By the task's metric."""
    samples: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    """Of these, for data."""

    def and_batch(self, loss: float, measured: float, samples: int) -> Score:
        """With a batch of `samples` more, over which the metric sums to `measured`."""
        total = self.samples + samples
        if total == 0:
            return self
        return Score(
            (self.loss * self.samples + loss * samples) / total,
            (self.measured * self.samples + measured) / total,
            total,
            self.seconds,
            self.waited,
        )

    @property
    def samples_per_second(self) -> float:
        return self.samples / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Best:
    """The epoch that validation chose. The test set has no say in it."""

    epoch: int
    measured: float
    """By the task's metric."""
    loss: float

    def beaten_by(self, measured: float, loss: float, metric: Metric) -> bool:
        """By a better metric; small splits tie often, and then by a lower loss."""
        if measured == self.measured:
            return loss < self.loss
        return metric.better(measured, self.measured)


@dataclass(frozen=True)
class Standing:
    """How far a run is."""

    epochs: int = 0
    """Finished ones."""
    seconds: float = 0.0
    """Of training and validation in these."""
    best: Best | None = None
    steps: int = 0
    """Of the epoch that has begun."""
    score: Score = Score()
    """Of these."""

    @property
    def where(self) -> str:
        """What was done last, in words."""
        if self.steps:
            return f"step {self.steps} of epoch {self.epochs + 1}"
        return f"epoch {self.epochs}"
