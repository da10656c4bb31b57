"""How far the streams that an inverse gives back are from those of the forward pass.

*Measured*: run the layers forward in float32 or bfloat16, keep the streams before each, undo the
layers from the last one on, and compare.

*Predicted*, in `compiler.rounding`: the same round trip in float64, with random roundings.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from archspec.spec import ExactArithmetic
from compiler import engine
from compiler.check import SMALLEST_EXACT
from compiler.engine import Values
from compiler.exact import Grid, RangeError, check_range
from compiler.forms import choices
from compiler.growth import FLOAT32_STEP, Curve, linear_errors
from compiler.information import Information
from compiler.network import Network
from compiler.rounding import PROBES, in_floats, norm, predicted_errors, wide
from compiler.stage import Stage, with_plan

BFLOAT16_STEP = 2.0**-8
"""The largest relative error of rounding to bfloat16."""
DESTROYED = 0.3
"""A relative error past which nothing is left of the streams; how far past is chance."""


@dataclass(frozen=True)
class Drift:
    """What becomes of a stage's streams, from the last layer back to the first."""

    name: str
    depth: int
    linear: Curve | None
    """Predicted for float32 from the linear part of the layers alone: low where the functions
    amplify. None where the scales come from the data."""
    predicted: Curve
    """Predicted for float32, with the gain of the functions."""
    float32: Curve
    """Measured."""
    bfloat16: Curve | None
    """Measured with streams, functions and weights in bfloat16; None where a function or a map
    cannot be computed in it."""
    exact: Curve | None
    """Measured in exact arithmetic; None where it was not."""

    @property
    def predicted_bfloat16(self) -> Curve:
        """Predicted for bfloat16, with the gain of the functions."""
        return tuple(error * (BFLOAT16_STEP / FLOAT32_STEP) for error in self.predicted)


def factor_apart(predicted: float, measured: float, step: float = FLOAT32_STEP) -> float:
    """How far a prediction is from what was measured, as a factor of at least 1. What is below one
    step of the number format counts as one step, and what is destroyed, or not finite, as
    `DESTROYED`: past either end there is nothing to tell."""
    low, high = sorted(
        min(max(error, step), DESTROYED) if math.isfinite(error) else DESTROYED
        for error in (predicted, measured)
    )
    return high / low


# What a stage is measured on ----------------------------------------------------------------------


@dataclass(frozen=True)
class Given:
    """A stage's streams before the first layer, and all else that its layers read."""

    streams: tuple[Tensor, ...]
    side: Values
    draws: tuple[Values, ...]
    """Drawn coefficients, layer by layer."""

    def to(self, dtype: torch.dtype, device: str | torch.device = "cpu") -> Given:
        """The same numbers in another dtype, elsewhere."""

        def moved(values: Values) -> Values:
            return {name: _moved(value, dtype, device) for name, value in values.items()}

        streams = tuple(_moved(stream, dtype, device) for stream in self.streams)
        return Given(streams, moved(self.side), tuple(map(moved, self.draws)))


def _moved(value: Tensor, dtype: torch.dtype, device: str | torch.device) -> Tensor:
    return value.to(device, dtype if value.is_floating_point() else value.dtype)


@contextmanager
def steady(stage: Stage) -> Iterator[None]:
    """The stage with dropout and batch statistics off, and draws as in training, which is where
    streams are reconstructed. Afterwards every mode is as it was."""
    with modes_kept(stage):
        stage.eval()
        stage.training = True
        yield


@contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """Afterwards every module in it is in training, or not, as it was before."""
    modes = [(inner, inner.training) for inner in module.modules()]
    try:
        yield
    finally:
        for inner, mode in modes:
            inner.training = mode


@torch.no_grad()
def given_by(
    network: Network, inputs: Tensor, side: Mapping[str, Tensor] | None = None
) -> dict[str, Given]:
    """What each stage is given where the network, dropout and batch statistics off, is run on
    inputs (B, …). Draws from torch's global CPU generator."""
    found, value, side = {}, inputs, side or {}
    with modes_kept(network):
        network.eval()
        value = network.stem(value)
        for stage in network.stages:
            read = {name: side[name] for name in stage.facts.side}
            streams = stage.split(value)
            found[stage.plan.name] = Given(streams, read, drawn(stage, streams[0]))
            value = stage.merge(*stage(*streams, **read))
    return found


def drawn(stage: Stage, like: Tensor) -> tuple[Values, ...]:
    """Drawn coefficients of a steady stage for a batch as large as that of `like` (B, …), from
    torch's global CPU generator."""
    with steady(stage):
        draws = stage.draw(torch.empty_like(like, device="cpu"))
    return tuple({name: value.to(like.device) for name, value in draw.items()} for draw in draws)


# Measured -----------------------------------------------------------------------------------------


def drift(stage: Stage, given: Given) -> Drift:
    """Measure and predict the drift of a stage with an inverse. Works on copies on the CPU: the
    stage stays as it is. Raises RuntimeError for one without an inverse."""
    if not stage.plan.invertible:
        raise RuntimeError(f"stage `{stage.plan.name}` has no inverse:\n{stage.facts.obstacles}")

    double, exactly = trial(stage, torch.float64), given.to(torch.float64)
    return Drift(
        stage.plan.name,
        stage.plan.depth,
        linear_prediction(double, exactly),
        prediction(double, exactly),
        measured_errors(trial(stage, torch.float32), given.to(torch.float32)),
        _in_bfloat16(stage, given),
        exact_errors(stage, given),
    )


def _in_bfloat16(stage: Stage, given: Given) -> Curve | None:
    try:
        return measured_errors(trial(stage, torch.bfloat16), given.to(torch.bfloat16))
    except NotImplementedError:
        return None


def trial(stage: Stage, dtype: torch.dtype) -> Stage:
    """A copy on the CPU, as far in training as its inverse needs it to be."""
    copied = copy.deepcopy(stage).to("cpu", dtype)
    copied.reach_inverse()
    return copied


def prediction(
    stage: Stage, given: Given, *, every: int | None = None, probes: int = PROBES, seed: int = 0
) -> Curve:
    """The error to expect in float32, with the gain of the functions, where streams are kept after
    every `every`-th layer (by default, as the plan says); of so many random round trips. Stage and
    streams are best in float64; in float32 the gains are good to a hundredth."""
    with steady(stage):
        read = read_by_layers(stage, given)
        return predicted_errors(stage, given.streams, read, every=every, probes=probes, seed=seed)


def linear_prediction(stage: Stage, given: Given) -> Curve | None:
    """The error to expect in float32 from the linear part of the layers alone, for streams as large
    as these become; coefficients learned per channel count as their mean."""
    with steady(stage), torch.no_grad():
        kept = _forward(stage, given)[2]
        sizes = [[float(wide(v).square().mean().sqrt()) for v in k.values()] for k in kept]
        progress = float(stage.progress) if stage.facts.reads_progress else 0.0
        coefficients = [
            {name: float(value().mean()) for name, value in layer.coefficients.items()}
            | {"progress": progress}
            for layer in stage.program()
        ]
    return linear_errors(
        stage.plan,
        sizes=torch.tensor(sizes, dtype=torch.float64),
        coefficients=coefficients,
    )


@torch.no_grad()
def measured_errors(stage: Stage, given: Given) -> Curve:
    """The error in floating-point arithmetic, in the dtype of the stage and its streams. Where the
    plan keeps streams on the way, it starts anew from these."""
    with steady(stage):
        layers, read, kept = _forward(stage, given)
        values, errors = kept[-1], []
        for index in reversed(range(len(layers))):
            values = engine.invert([layers[index]], values, [read[index]])
            errors.append(relative(values, kept[index]))
            if index % stage.plan.store_every == 0:
                values = kept[index]
    return tuple(errors)


def exact_errors(stage: Stage, given: Given) -> Curve | None:
    """The error of the stage in exact arithmetic, as its plan says or by default, on float32
    streams: zeros, where that is what it promises. None where streams leave the grid's range, or
    scales are too small for it."""
    plan = stage.plan
    if plan.fraction_bits is None:
        bits = ExactArithmetic().fraction_bits
        plan = replace(plan, fraction_bits=bits, store_every=plan.depth)
    if any(c.bound > -math.log2(SMALLEST_EXACT) for layer in choices(plan) for c in layer if c):
        return None
    assert plan.fraction_bits is not None
    exact, given = with_plan(trial(stage, torch.float32), plan), given.to(torch.float32)
    grid, information = Grid(plan.fraction_bits), Information()
    with steady(exact), torch.no_grad():
        read = read_by_layers(exact, given)
        streams = [grid.rounded(stream) for stream in given.streams]
        kept = [dict(zip(exact.facts.streams, streams, strict=True))]
        layers = exact.program()
        for layer, drawn in zip(layers, read, strict=True):
            kept.append(engine.run([layer], kept[-1], [drawn], information))
        try:
            check_range(information, grid, plan.name)
        except RangeError:
            return None
        return tuple(_unwound(layers, read, kept, information))


def _unwound(
    layers: Sequence[engine.Layer],
    read: Sequence[Values],
    kept: Sequence[Values],
    information: Information,
) -> Iterator[float]:
    values = kept[-1]
    for index in reversed(range(len(layers))):
        values = engine.unwind([layers[index]], values, [read[index]], information)
        yield relative(values, kept[index])


def _forward(stage: Stage, given: Given) -> tuple[list[engine.Layer], list[Values], list[Values]]:
    """Layers in floating-point arithmetic, what each reads besides streams, and the streams before
    each and after the last."""
    layers, read = list(map(in_floats, stage.program())), read_by_layers(stage, given)
    kept = [dict(zip(stage.facts.streams, given.streams, strict=True))]
    for layer, drawn in zip(layers, read, strict=True):
        kept.append(engine.run([layer], kept[-1], [drawn]))
    return layers, read, kept


def read_by_layers(stage: Stage, given: Given) -> list[Values]:
    """What each layer of a stage reads besides streams."""
    return stage._given(given.streams[0], given.draws, given.side)


def relative(found: Values, expected: Values) -> float:
    """The norm of the difference over the norm, all streams together."""
    apart = norm({n: wide(found[n]) - wide(value) for n, value in expected.items()})
    size = norm(expected)
    return apart / size if size > 0 else apart
