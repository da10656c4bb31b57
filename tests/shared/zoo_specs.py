"""The zoo's specs at full size, and at one that numbers are computed with in a second or two."""

from __future__ import annotations

import archspec
from archspec.finding import zoo
from archspec.loading import Loaded, load
from compiler.plan import NetworkPlan
from compiler.resolve import resolve

SPECS = tuple(sorted(path.stem for path in zoo().glob("*.yaml")))
MOST_LAYERS = 2
SMALL_SIDE = 64
"""Pixels: patches of 16, and strides of 32 in all, leave a grid of this."""
SMALL_VIDEO = (4, 64, 64)


def full(name: str) -> NetworkPlan:
    """A spec as it is written."""
    return resolve(load(name))


def reduced(name: str, *more: str) -> Loaded:
    """The same network with a few layers in each stage, on small images."""
    spec = load(name).spec
    settings = []
    for stage_name, stage in spec.stages.items():
        if stage.depth > MOST_LAYERS:
            settings.append(f"stages.{stage_name}.depth={MOST_LAYERS}")
    sizes = spec.input.sizes
    if spec.input.kind == "image" and sizes[1] > SMALL_SIDE:
        settings.append(f"input.image=[{sizes[0]}, {SMALL_SIDE}, {SMALL_SIDE}]")
    if spec.input.kind == "video":
        settings.append(f"input.video={[sizes[0], *SMALL_VIDEO]}")
    return archspec.load(name, [*settings, *more])
