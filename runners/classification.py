"""How a classifier fares, from its logits: confusion, and how far its confidence is right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, recall_score, top_k_accuracy_score
from torch import Tensor

MOST = 5
"""Of top-k."""
BINS = 15
"""Of confidence (Guo et al. 2017)."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Bin:
    """Samples whose confidence is above `low` and at most `high`."""

    low: float
    high: float
    samples: int
    confidence: float | None
    """The mean; None without samples."""
    accuracy: float | None


@dataclass(frozen=True)
class Classified:
    """What is told of a classifier beside accuracy and loss."""

    k: int
    top_k: float
    """The share of samples whose class is among the k of the largest logits."""
    per_class: tuple[float | None, ...]
    """The accuracy on samples of each class (recall); None without samples."""
    confusion: tuple[tuple[int, ...], ...]
    """Samples by their class (rows) and by the class that they are taken for (columns)."""
    calibration_error: float
    """Expected calibration error: the mean distance of accuracy and confidence over the bins, each
    weighted by its samples (Guo et al. 2017, equation 3)."""
    brier: float
    """The mean squared distance of the probabilities from 1 for the class and 0 for others, from 0
    to 2 (Brier 1950)."""
    bins: tuple[Bin, ...]


def classified(logits: Tensor, labels: Tensor) -> Classified:
    """From finite logits (N, K) and labels (N), on the CPU."""
    classes = logits.shape[1]
    truth, taken = labels.numpy(), logits.argmax(1).numpy()
    shares: Floats = logits.double().softmax(1).numpy()
    confusion = confusion_matrix(truth, taken, labels=range(classes))
    recall = recall_score(
        truth, taken, labels=range(classes), average=None, zero_division=float("nan")
    )
    confidence, is_right = shares[np.arange(len(taken)), taken], taken == truth
    bins = reliability(confidence, is_right)
    return Classified(
        k=min(MOST, classes),
        top_k=_top_k(logits, labels),
        per_class=tuple(None if np.isnan(share) else float(share) for share in recall),
        confusion=tuple(tuple(map(int, row)) for row in confusion),
        calibration_error=calibration_error(bins),
        brier=float(np.square(shares - np.eye(classes)[truth]).sum(1).mean()),
        bins=bins,
    )


def _top_k(logits: Tensor, labels: Tensor) -> float:
    classes = logits.shape[1]
    if classes <= MOST:  # of which scikit-learn warns
        return 1.0
    values = logits.double().numpy()
    return float(top_k_accuracy_score(labels.numpy(), values, k=MOST, labels=range(classes)))


def reliability(confidence: Floats, is_right: NDArray[Any], count: int = BINS) -> tuple[Bin, ...]:
    """Bins of equal width over confidences (N) from 0 to 1, with how many are right (N)."""
    edges = np.linspace(0, 1, count + 1)
    places = np.clip(np.digitize(confidence, edges, right=True) - 1, 0, count - 1)
    samples = np.bincount(places, minlength=count)
    sums = (np.bincount(places, weights=w, minlength=count) for w in (confidence, is_right))
    found = zip(edges[:-1], edges[1:], samples, *sums, strict=True)
    return tuple(
        Bin(
            float(low),
            float(high),
            int(n),
            float(c / n) if n else None,
            float(r / n) if n else None,
        )
        for low, high, n, c, r in found
    )


def calibration_error(bins: tuple[Bin, ...]) -> float:
    """The mean of |accuracy - confidence| over the samples of all bins."""
    filled = [(b.samples, b.accuracy, b.confidence) for b in bins]
    apart = sum(n * abs(a - c) for n, a, c in filled if a is not None and c is not None)
    return apart / sum(n for n, _, _ in filled)


__all__ = ["BINS", "Bin", "Classified", "calibration_error", "classified"]
