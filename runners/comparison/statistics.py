"""Means over seeds, and differences between networks that were trained with the same seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its confidence interval (Student's t); of one value, no interval."""

    mean: float
    low: float | None
    high: float | None
    count: int

    def within(self, least: float, most: float) -> Estimate:
        """With the interval cut at what the quantity can be."""
        if self.low is None or self.high is None:
            return self
        return replace(self, low=max(self.low, least), high=min(self.high, most))


def estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """The mean of some values. They are at least one."""
    mean = statistics.fmean(values)
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return Estimate(mean, None, None, len(values))
    quantile = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1))
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half, len(values))


def paired_difference(
    values: Sequence[float], baseline: Sequence[float], confidence: float = CONFIDENCE
) -> Estimate:
    """The mean difference from a baseline, seed by seed: what the seeds share cancels out, as the
    split of the data does, and the order of its batches."""
    differences = [value - other for value, other in zip(values, baseline, strict=True)]
    return estimate(differences, confidence)


def is_apart(difference: Estimate) -> bool:
    """Whether the interval of a difference leaves out zero. One without a width does not tell:
    test sets are finite, and so equal differences are a coincidence."""
    if difference.low is None or difference.high is None or difference.low == difference.high:
        return False
    return difference.low > 0 or difference.high < 0
