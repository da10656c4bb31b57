"""What the learning curve of a run says: its area, and when it came to some value."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from typing import Any

from runners.errors import TrainingError
from runners.progress import GPU_PEAK
from runners.run_folder import RunFolder
from runners.tasks import Metric


@dataclass(frozen=True)
class Curve:
    """What a run wrote down after each epoch."""

    values: tuple[float, ...]
    """The validation metric."""
    seconds: tuple[float, ...]
    """That had passed, training and validation together."""
    speeds: tuple[float, ...]
    """Samples a second in training."""
    gpu_peak: int | None = None
    """The most bytes that a GPU's allocator had given out; None on other devices."""

    def area(self, epochs: int) -> float:
        """The mean over the first `epochs`: that of a network which learns sooner is higher, where
        both end alike."""
        return statistics.fmean(self.values[:epochs])

    def reaches(self, target: float, metric: Metric) -> int | None:
        """The first epoch, from 1, whose value is the target or better; None where none is."""
        for index, value in enumerate(self.values):
            if not metric.better(target, value):
                return index + 1
        return None


def read_curve(folder: RunFolder, metric: Metric) -> Curve:
    """The learning curve of a run, from its metrics.jsonl. Raises `TrainingError` where that has
    not all epochs."""
    lines = folder.metrics.read_text(encoding="utf-8").splitlines()
    records: list[dict[str, Any]] = [json.loads(line) for line in lines]
    if [record["epoch"] for record in records] != list(range(1, len(records) + 1)):
        raise TrainingError(f"{folder.metrics} lacks epochs: remove the run, and train it anew")
    seconds, passed = [], 0.0
    for record in records:
        passed += record["seconds"]
        seconds.append(passed)
    peaks = [int(r["memory_bytes"]) for r in records if r["memory_kind"] == GPU_PEAK]
    return Curve(
        tuple(record[f"validation_{metric.name}"] for record in records),
        tuple(seconds),
        tuple(record["samples_per_second"] for record in records),
        max(peaks, default=None),
    )
