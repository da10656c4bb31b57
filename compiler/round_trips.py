"""Streams through some layers of a stage and back by the derived inverse, in an arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from archspec.expressions import Number
from archspec.spec import Drawn, ExactArithmetic, Learned
from compiler import engine
from compiler.check import SMALLEST_EXACT
from compiler.drift import Given, read_by_layers, relative, steady, trial
from compiler.engine import Values
from compiler.exact import Grid, RangeError, check_range
from compiler.forms import choices
from compiler.information import Information
from compiler.rounding import in_floats
from compiler.stage import Stage, with_plan

Arithmetic = Literal["float32", "bf16", "exact"]
ARITHMETICS: tuple[Arithmetic, ...] = ("float32", "bf16", "exact")


@dataclass(frozen=True)
class RoundTrip:
    """What came back of some streams."""

    before: Values
    """The streams before the first layer, as the arithmetic holds them."""
    back: Values

    @property
    def error(self) -> float:
        """The norm of the difference over the norm, all streams together."""
        return relative(self.back, self.before)


@torch.no_grad()
def round_trip(stage: Stage, given: Given, layers: int, arithmetic: Arithmetic) -> RoundTrip | None:
    """Through the first so many layers of a stage with an inverse, and back. Works on a copy on the
    CPU. None where streams leave the grid of exact arithmetic, or scales are too small for it, and
    where there is no such arithmetic of bf16 here."""
    if arithmetic == "exact":
        return _exactly(stage, given, layers)
    dtype = torch.float32 if arithmetic == "float32" else torch.bfloat16
    copied, own = trial(stage, dtype), given.to(dtype)
    with steady(copied):
        program = [in_floats(layer) for layer in copied.program()[:layers]]
        read = read_by_layers(copied, own)[:layers]
        before = dict(zip(copied.facts.streams, own.streams, strict=True))
        try:
            after = engine.run(program, dict(before), read)
            return RoundTrip(before, engine.invert(program, after, read))
        except NotImplementedError:
            return None


def _exactly(stage: Stage, given: Given, layers: int) -> RoundTrip | None:
    plan = stage.plan
    bits = plan.fraction_bits
    if bits is None:
        bits = ExactArithmetic().fraction_bits
        plan = replace(plan, fraction_bits=bits, store_every=plan.depth)
    if any(c.bound > -math.log2(SMALLEST_EXACT) for layer in choices(plan) for c in layer if c):
        return None
    copied, own = with_plan(trial(stage, torch.float32), plan), given.to(torch.float32)
    grid, information = Grid(bits), Information()
    with steady(copied):
        program, read = copied.program()[:layers], read_by_layers(copied, own)[:layers]
        streams = [grid.rounded(stream) for stream in own.streams]
        before = dict(zip(copied.facts.streams, streams, strict=True))
        after = engine.run(program, dict(before), read, information)
        try:
            check_range(information, grid, plan.name)
        except RangeError:
            return None
        return RoundTrip(before, engine.invert(program, after, read, information))


def with_constants(stage: Stage, values: Mapping[str, float]) -> Stage:
    """A stage with the same weights and other constants. Raises ValueError for names that are no
    constants of it, and for those that are learned or drawn."""
    known = stage.plan.constants
    for name in values:
        if name not in known or isinstance(known[name], (Learned, Drawn)):
            fixed = [n for n, c in known.items() if not isinstance(c, (Learned, Drawn))]
            names = ", ".join(fixed) or "none"
            raise ValueError(f"`{name}` is no constant of stage `{stage.plan.name}`; its: {names}")
    numbers = {name: Number(Fraction(str(value))) for name, value in values.items()}
    return with_plan(stage, replace(stage.plan, constants={**known, **numbers}))


def read_back(
    layers: Callable[[Tensor], Tensor], value: Tensor, moved: Tensor, steps: int = 60
) -> Tensor:
    """The input (B, …) of some layers that gives what they make of `value`, moved by so much: to
    first order, and of least squares where no input does. By conjugate gradients on the normal
    equations (CGLS; Hestenes and Stiefel 1952), each sample by itself, best in float64."""
    pull = torch.func.vjp(layers, value)[1]
    # What `pull` is linear in, its own transpose is the derivative forward.
    push = torch.func.vjp(lambda cotangent: pull(cotangent)[0], torch.zeros_like(moved))[1]
    found, residual = torch.zeros_like(value), moved.clone()
    gradient = pull(residual)[0]
    direction, size = gradient, _squares(gradient)
    first = size.clamp(min=torch.finfo(value.dtype).tiny)
    for _ in range(steps):
        image = push(direction)[0]
        length = _ratio(size, _squares(image))
        found = found + _each(length, direction)
        residual = residual - _each(length, image)
        gradient = pull(residual)[0]
        before, size = size, _squares(gradient)
        if bool((size <= 1e-28 * first).all()):
            break
        direction = gradient + _each(_ratio(size, before), direction)
    return value + found


def _squares(values: Tensor) -> Tensor:
    """Of each sample, (B)."""
    return values.flatten(1).square().sum(1)


def _each(factors: Tensor, values: Tensor) -> Tensor:
    """A factor (B) for each sample (B, …)."""
    return factors.view(-1, *(1,) * (values.dim() - 1)) * values


def _ratio(one: Tensor, other: Tensor) -> Tensor:
    return torch.where(other > 0, one / other.clamp(min=torch.finfo(one.dtype).tiny), 0)
