"""Short runs of every kind of network, for tests of what is done with a run."""

from __future__ import annotations

from pathlib import Path

from archspec.loading import Loaded, load
from runners.run_folder import TrainResult
from runners.train import train

SPARSE = (
    "input={features: [6]}",
    "task.sparse_code.codes=12",
    "stages.trunk.depth=3",
    "stages.trunk.streams.x=zeros(12)",
    "data.sparse_codes={samples: 300, tests: 50, density: 0.2}",
)
RUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "reversible": ("rev_vit_digits", ("stages.trunk.depth=2", "train.warmup=0")),
    "momentum": ("momrev_vit_digits", ("stages.trunk.depth=2", "train.warmup=0")),
    "exact": ("bdia_vit_digits", ("stages.trunk.depth=2", "train.warmup=0")),
    "convolution": ("revnet_digits", ("stages.fine.depth=1", "stages.coarse.depth=1")),
    "sparse_code": ("lista", SPARSE),
    "density": ("realnvp_digits", ("stages.trunk.depth=3", "train.warmup=0")),
    "flow_matching": ("rev_dit_digits_classes", ("stages.trunk.depth=2", "train.warmup=0")),
}
"""Spec and settings, by the kind of the network."""


def spec_of(kind: str, *settings: str) -> Loaded:
    name, own = RUNS[kind]
    return load(name, (*own, "train.epochs=2", *settings))


def finished_run(kind: str, folder: Path, *settings: str) -> TrainResult:
    """Train a network for two epochs on the CPU."""
    return train(spec_of(kind, *settings), folder, device="cpu", quiet=True)
