"""What to write instead where an inverse is predicted to lose its streams."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache

import torch

from archspec.expressions import Number
from compiler.drift import Given, given_by, prediction, trial
from compiler.growth import Curve, linear_errors
from compiler.network import Network
from compiler.plan import Affine, StagePlan
from compiler.stage import Stage

LIMIT = 1e-3
"""A relative error of float32 streams past which gradients are spoilt."""

Predict = Callable[[int], Curve]
"""The errors to expect where streams are kept after every so many layers."""


@dataclass(frozen=True)
class Prospect:
    """What to expect of a reversible stage in float32."""

    name: str
    predicted: float
    """The largest relative error of its streams on the way back, with the gain of functions."""
    recommendation: str | None
    """What to write instead, where that is past `LIMIT`."""


def prospects(network: Network, batch: int = 2, seed: int = 0) -> list[Prospect]:
    """What to expect of each stage of a network that reconstructs its streams in floating-point
    arithmetic, on random inputs. The network and the global generators stay as they are."""
    plan = network.plan
    concerned = [
        stage
        for stage in network.stages
        if stage.backward == "reversible" and stage.plan.fraction_bits is None
    ]
    if not concerned:  # an untrained network on a grid may leave its range
        return []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        side = {s.name: torch.randn(batch, *s.shape.sizes) for s in plan.side}
        given = given_by(network, torch.randn(batch, *plan.input.sizes), side)
    found = []
    for stage in concerned:
        double, exactly = trial(stage, torch.float64), given[stage.plan.name].to(torch.float64)
        found.append(_prospect(stage.plan, predictor(double, exactly)))
    return found


def _prospect(plan: StagePlan, predict: Predict) -> Prospect:
    return Prospect(plan.name, max(predict(plan.store_every)), recommendation(plan, predict))


def predictor(stage: Stage, given: Given) -> Predict:
    """With the gain of the functions; each prediction is made once."""
    return cache(lambda every: prediction(stage, given, every=every))


def recommendation(plan: StagePlan, predict: Predict | None = None) -> str | None:
    """What to write instead in a reversible stage that is predicted to lose its streams, with the
    errors then predicted; None for one that is not, or of which nothing is known. By default the
    prediction is that of the linear part of the layers, for streams all of one size."""
    if predict is None and (predict := linear_predictor(plan)) is None:
        return None
    predicted = max(predict(plan.store_every))
    if not predicted > LIMIT:
        return None
    ways = ["`arithmetic: exact`"]
    if (constant := nearest_constant(plan, predicted)) is not None:
        name, value, error = constant
        ways.append(f"`{name}: {value:g}` (predicted: {error:.1e})")
    if (interval := longest_interval(plan.store_every, predict)) is not None:
        every, error = interval
        ways.append(f"`store_every: {every}` (predicted: {error:.1e})")
    return f"{', '.join(ways[:-1])} or {ways[-1]}" if len(ways) > 1 else ways[0]


def linear_predictor(plan: StagePlan) -> Predict | None:
    """Of the linear part alone; None where there is none."""
    if linear_errors(plan) is None:
        return None
    return lambda every: linear_errors(plan, every=every) or ()


def nearest_constant(plan: StagePlan, predicted: float) -> tuple[str, float, float] | None:
    """A constant between 0 and 1 that is a factor of a stream, the next value of it, in hundredths,
    that keeps the error below `LIMIT`, and that error; None where there is none.

    The error changes as that of the linear part does: `predicted` is what it is now.
    """
    linear = _worst(linear_errors(plan))
    share = predicted / linear if 0 < linear < math.inf and predicted < math.inf else 1.0
    for name in _factors(plan):
        low, high = math.floor(100 * _value(plan, name)), 99
        error = share * _worst(linear_errors(_with(plan, name, high)))
        if low >= high or error > LIMIT:
            continue
        while high - low > 1:  # the larger the factor, the less is lost
            middle = (low + high) // 2
            found = share * _worst(linear_errors(_with(plan, name, middle)))
            low, high, error = (low, middle, found) if found <= LIMIT else (middle, high, error)
        return name, high / 100, error
    return None


def _factors(plan: StagePlan) -> list[str]:
    """Plain constants between 0 and 1 that streams are multiplied by."""
    read = dict.fromkeys(
        n for s in plan.steps if isinstance(s, Affine) for n in sorted(s.scale.names)
    )
    constants = ((name, plan.constants.get(name)) for name in read)
    return [name for name, c in constants if isinstance(c, Number) and 0 < c.value < 1]


def _value(plan: StagePlan, name: str) -> Fraction:
    constant = plan.constants[name]
    assert isinstance(constant, Number)
    return constant.value


def _with(plan: StagePlan, name: str, hundredths: int) -> StagePlan:
    constants = {**plan.constants, name: Number(Fraction(hundredths, 100))}
    return replace(plan, constants=constants)


def _worst(errors: Curve | None) -> float:
    return max(errors) if errors else math.inf


def longest_interval(below: int, predict: Predict) -> tuple[int, float] | None:
    """The most layers between streams that are kept, fewer than `below`, for which the error stays
    within `LIMIT`, and that error; None where even a single layer loses too much."""
    low, high, error = 0, below, math.inf
    while high - low > 1:  # the more layers, the more is lost
        middle = (low + high) // 2
        found = max(predict(middle))
        low, high, error = (middle, high, found) if found <= LIMIT else (low, middle, error)
    return (low, error) if low else None
