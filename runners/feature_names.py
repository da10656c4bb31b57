"""What measures are called that compare images by a network's features."""

from __future__ import annotations

from pathlib import Path

INCEPTION = "Inception"
"""The features that IS, FID and KID are named for."""


def measure_names(features: str) -> tuple[str, str, str]:
    """Of the score, of Fréchet's distance and of that of kernels, by these features; those of a run
    are called by its folder, and have names of their own, since they compare to no others."""
    if features == INCEPTION:
        return "IS", "FID", "KID"
    by = Path(features).name
    return f"IS[{by}]", f"FD[{by}]", f"KD[{by}]"
