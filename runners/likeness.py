"""What is told of images that are compared by a network's features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FEWEST = 16
"""Images that others are compared with."""
INCEPTION = "Inception"
"""The features that IS, FID and KID are named for."""


def measure_names(features: str) -> tuple[str, str, str]:
    """Of the score, of Fréchet's distance and of that of kernels, by these features; those of a run
    are called by its folder, and have names of their own, since they compare to no others."""
    if features == INCEPTION:
        return "IS", "FID", "KID"
    by = Path(features).name
    return f"IS[{by}]", f"FD[{by}]", f"KD[{by}]"


@dataclass(frozen=True)
class Likeness:
    """How near images are to their originals."""

    frechet_distance: float
    precision: float
    """The share of the images that lie among the originals."""
    recall: float
