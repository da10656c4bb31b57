"""How far streams drift as the weights of a run grow: measured and predicted after each epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch

from compiler.drift import Given, given_by, measured_errors, prediction
from compiler.network import Network
from compiler.stage import Stage
from runners.data import Split, in_order, read
from runners.parts import Parts
from runners.progress import outside_peak
from runners.randomness import derived_seed, generator_states, restore_generators
from runners.tasks import Batch, Seen, Task

SAMPLES = 8
"""How many of a split, the first ones, are looked at."""
FAILURES = (RuntimeError, ValueError, ArithmeticError, TypeError)
"""Of a look, which a run is not to end for."""


def drift_scalars(parts: Parts, task: Task, split: Split) -> dict[str, float]:
    """`drift/STAGE/measured` and `drift/STAGE/predicted` for every stage that reconstructs its
    streams in floating-point arithmetic: the relative error of all of them together after the whole
    stage is undone. It is measured under the run's autocast, as its gradients meet it, and
    predicted for functions in float32. Not a number where it cannot be had.

    Weights, buffers, modes, gradients and the global generators stay as they are.
    """
    alone = parts.template is None and parts.fabric.is_global_zero
    if not alone or not isinstance(parts.model, Network):
        return {}
    try:
        with few_samples(parts, split) as batch:
            return _scalars(parts, parts.model, task.seen(batch))
    except FAILURES:
        return _named(parts.model, {})


@contextmanager
def few_samples(parts: Parts, split: Split) -> Iterator[Batch]:
    """The first samples of a split, and the same draws each time; after that the global generators
    are as they were."""
    states = generator_states(parts.fabric.device)
    torch.manual_seed(derived_seed(0, "watch"))
    try:
        few = replace(split, indices=split.indices[:SAMPLES], workers=None)
        with outside_peak(parts.fabric.device):
            yield next(read(few, in_order(few, SAMPLES), parts.fabric.device))
    finally:
        restore_generators(states, parts.fabric.device)


def _scalars(parts: Parts, network: Network, seen: Seen) -> dict[str, float]:
    with parts.fabric.autocast():
        given = given_by(network, *seen)
    errors = {stage.plan.name: _errors(parts, stage, given) for stage in drifting(network)}
    return _named(network, errors)


def _errors(parts: Parts, stage: Stage, given: Mapping[str, Given]) -> tuple[float, float]:
    """Measured, and predicted."""
    if not stage.has_inverse:  # this early in training nothing is reconstructed
        return math.nan, math.nan
    mine = given[stage.plan.name]
    with parts.fabric.autocast():
        measured = measured_errors(stage, mine)[-1]
    return measured, prediction(stage, mine, probes=1)[-1]


def drifting(network: Network) -> list[Stage]:
    return [
        stage
        for stage in network.stages
        if stage.backward == "reversible" and stage.plan.fraction_bits is None
    ]


def _named(network: Network, errors: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    unknown = (math.nan, math.nan)
    return {
        f"drift/{stage.plan.name}/{kind}": error
        for stage in drifting(network)
        for kind, error in zip(
            ("measured", "predicted"), errors.get(stage.plan.name, unknown), strict=True
        )
    }
