"""How far streams drift as the weights of a run grow: measured and predicted after each epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch

from compiler.drift import Given, given_by, measured_errors, prediction
from compiler.network import Network
from compiler.stage import Stage
from runners.data import Split, in_order, read
from runners.parts import Parts
from runners.randomness import generator_states, restore_generators

IMAGES = 8
"""How many of a split, the first ones, are looked at."""


def drift_scalars(parts: Parts, split: Split) -> dict[str, float]:
    """`drift/STAGE/measured` and `drift/STAGE/predicted` for every stage that reconstructs its
    streams in floating-point arithmetic: the relative error of all of them together after the whole
    stage is undone. It is measured under the run's autocast, as its gradients meet it, and
    predicted for functions in float32. Not a number where it cannot be had.

    Weights, buffers, modes, gradients and the global generators stay as they are.
    """
    alone = parts.template is None and parts.fabric.is_global_zero
    if not alone or not isinstance(parts.model, Network):
        return {}
    states = generator_states(parts.fabric.device)
    try:
        return _scalars(parts, parts.model, split)
    except (RuntimeError, ValueError, ArithmeticError):  # a run is not to end for what it logs
        return _named(parts.model, {})
    finally:
        restore_generators(states, parts.fabric.device)


def _scalars(parts: Parts, network: Network, split: Split) -> dict[str, float]:
    few = replace(split, indices=split.indices[:IMAGES], workers=0)
    torch.manual_seed(0)  # the same draws after each epoch
    images, _ = next(read(few, in_order(few, IMAGES), parts.fabric.device))
    with parts.fabric.autocast():
        given = given_by(network, images)
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
