"""Which form of exact arithmetic each update takes, and how many bits that keeps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeGuard

from archspec.expressions import LOG_DETERMINANT, Expression, Number, fold
from archspec.maps import ActNorm, InvertibleLinear
from compiler.check import Factor
from compiler.constants import (
    NUMBERS,
    Interval,
    drawn_combinations,
    evaluation_values,
    fixed_values,
    ranges,
)
from compiler.exact import GAUGE_BITS, Form, Gauge, Monotone, Parity, Remainder, Unit
from compiler.functions.maps import LIMIT, ROUNDING
from compiler.plan import Affine, Mapped, Permutation, StagePlan, Step

LARGEST_TERM = 16
"""Of a rational that takes the remainder form: its result is off by up to so many units."""
PACKED = (1, 2, 4)
"""Bits of a remainder that fill bytes."""


@dataclass(frozen=True)
class Choice:
    """The form of one update of one layer."""

    form: Form
    why: str
    bits: float
    """That it keeps of each element, on average; where the scale varies, at most."""
    bound: float
    """That any inverse must keep: log2(1/|s|). Negative where a scale is larger than 1."""


Choices = tuple[Choice | None, ...]


def choices(plan: StagePlan) -> tuple[Choices, ...]:
    """For each layer the form of each of its steps; None for one that takes none, and wherever
    arithmetic is not exact."""
    if plan.fraction_bits is None:
        return (tuple(None for _ in plan.steps),) * plan.depth
    by_layer = any("layer" in _read(step, plan) for step in plan.steps)
    scales = [_scales(plan, layer) for layer in range(plan.depth if by_layer else 1)]
    scales *= plan.depth // len(scales)
    gauged = _gauged(plan, scales)
    known: dict[tuple[_Scale | None, ...], Choices] = {}
    for layer in scales:
        if layer not in known:
            known[layer] = _chosen(plan, layer, gauged)
    return tuple(known[layer] for layer in scales)


def _read(step: Step, plan: StagePlan) -> frozenset[str]:
    if not isinstance(step, Affine):
        return frozenset()
    return Factor(step, plan.steps, plan.constants).read


def _chosen(plan: StagePlan, scales: _Scales, gauged: str | None) -> Choices:
    found: list[Choice | None] = []
    for step, scale in zip(plan.steps, scales, strict=True):
        if isinstance(step, Mapped) and is_rounded(plan, step):
            found.append(_MAP)
        elif isinstance(step, Affine) and scale:
            held = gauged if step.target == gauged else None
            found.append(_choice(scale, plan.invertible_in_evaluation, held))
        else:
            found.append(None)
    return tuple(found)


def needs_information(chosen: Iterable[Choices]) -> bool:
    """Whether an exact inverse has to be given what the forward pass kept."""
    return any(c is not None and not isinstance(c.form, Unit) for layer in chosen for c in layer)


def is_rounded(plan: StagePlan, step: Mapped) -> bool:
    """Whether a map rounds, so that its exact form keeps information; squeezing does not."""
    map = next(known.map for known in plan.maps if known.name == step.map)
    return plan.fraction_bits is not None and isinstance(map, (ActNorm, InvertibleLinear))


# Scales -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scale:
    """What is known of the scale of an update in one layer."""

    number: Fraction | None
    training: tuple[Interval, ...]
    """Where it may lie, for each combination of drawn values."""
    evaluation: Interval
    reads_streams: bool

    @property
    def everywhere(self) -> tuple[Interval, ...]:
        """In training, and in evaluation, unless it is 0 there and nothing is undone."""
        evaluation = (self.evaluation,) if self.evaluation.smallest > 0 else ()
        return (*self.training, *evaluation)

    @property
    def smallest(self) -> float:
        """The least absolute value."""
        return min(bounds.smallest for bounds in self.everywhere)

    @property
    def largest(self) -> float:
        """The largest absolute value."""
        return max(max(abs(b.low), abs(b.high)) for b in self.everywhere)

    def is_always(self, size: float) -> bool:
        """Whether it is `size`, of either sign, in training, and that or 0 in evaluation."""
        ends = {abs(end) for bounds in self.training for end in (bounds.low, bounds.high)}
        points = all(b.low == b.high for b in (*self.training, self.evaluation))
        return points and ends == {size} and abs(self.evaluation.low) in (size, 0.0)


_Scales = tuple[_Scale | None, ...]


def _scales(plan: StagePlan, layer: int) -> _Scales:
    """The scales of a layer's updates; None for steps of other kinds."""
    fixed = fixed_values(plan.constants, layer, plan.depth)
    return tuple(_scale(step, plan, fixed) if _is_rounded(step) else None for step in plan.steps)


def _is_rounded(step: Step) -> TypeGuard[Affine]:
    """Whether an update is rounded to the grid: the log-determinant is a stream that nothing
    reads, and may leave its range."""
    return isinstance(step, Affine) and step.target != LOG_DETERMINANT


def _scale(step: Affine, plan: StagePlan, fixed: Mapping[str, Expression]) -> _Scale:
    factor = Factor(step, plan.steps, plan.constants)
    constants, scale = plan.constants, fold(step.scale, fixed)
    since = plan.invertible_from
    drawn = [ranges(constants, v, since) for v in drawn_combinations(constants, factor.read)]
    (evaluation,) = factor.bounds(fixed, [ranges(constants, evaluation_values(constants), since)])
    return _Scale(
        scale.value if isinstance(scale, Number) else None,
        tuple(factor.bounds(fixed, drawn)),
        evaluation,
        bool(factor.read - {*constants, *NUMBERS}),
    )


def _choice(scale: _Scale, invertible: bool, gauged: str | None = None) -> Choice:
    """The form of an update. Only a program that is `invertible`, in training and in evaluation,
    keeps the digits that remainders are read from."""
    bound = -math.log2(scale.smallest) if scale.smallest > 0 else 0.0
    if gauged is not None:
        return Choice(Gauge(gauged), "no other stream is scaled", bound, bound)
    if scale.is_always(1.0):
        return Choice(Unit(), "the scale is 1 or -1", 0.0, 0.0)
    for count in PACKED:
        if scale.is_always(2.0**-count):
            return Choice(Parity(count), f"the scale is 1/{2**count} or its negative", count, count)
    number = scale.number
    if invertible and number and max(abs(number.numerator), number.denominator) <= LARGEST_TERM:
        form = Remainder(abs(number.numerator), number.denominator)
        return Choice(form, f"{abs(number)} is a small rational", bound, bound)
    # As float32 a scale may be a little smaller.
    largest = max(1, math.ceil((1 + 2.0**-20) / scale.smallest)) if scale.smallest > 0 else 1
    why = "the scale reads streams" if scale.reads_streams else "the scale is no small rational"
    return Choice(Monotone(largest), why, preimage_bits(scale.smallest), bound)


def preimage_bits(scale: float) -> float:
    """Bits of the index within a preimage of t → round(scale*t), on average over t. Preimages hold
    c or c + 1 integers, where c = floor(1/scale)."""
    if not 0 < scale < 1:
        return 0.0
    count, more = math.floor(1 / scale), 1 / scale % 1
    sizes = ((1 - more, count), (more, count + 1))
    return scale * sum(share * size * math.log2(size) for share, size in sizes)


_MAP = Choice(
    ROUNDING, "a learned map of the channels", preimage_bits(math.exp(-LIMIT)), LIMIT / math.log(2)
)


# The gauge ----------------------------------------------------------------------------------------


def _gauged(plan: StagePlan, scales: Sequence[_Scales]) -> str | None:
    """The one stream that loses more than whole bits, if a gauge can hold it: then that is as
    large as a stack, and takes no division."""
    if not plan.invertible or not plan.invertible_in_evaluation:
        return None
    if plan.invertible_from > 0:  # before, a scale may be 0, which no gauge survives
        return None
    updates = [
        (step.target, scale)
        for layer in scales
        for step, scale in zip(plan.steps, layer, strict=True)
        if isinstance(step, Affine) and scale
    ]
    stacked = (Remainder, Monotone)
    found = {name for name, scale in updates if isinstance(_choice(scale, True).form, stacked)}
    if len(found) != 1:
        return None
    (name,) = found
    moved = any(
        name in step.targets if isinstance(step, Permutation) else step.target == name
        for step in plan.steps
        if isinstance(step, (Permutation, Mapped))
    )
    own = [scale for target, scale in updates if target == name]
    if moved or any(scale.reads_streams for scale in own):
        return None
    return name if all(_in_range(own)) else None


def _in_range(scales: Iterable[_Scale]) -> Iterator[bool]:
    """Whether the product of scales so far is at most 1, and not too small for float64."""
    low = high = 1.0
    for scale in scales:
        low, high = low * scale.smallest, high * scale.largest
        yield high <= 1 and low >= 2.0**-GAUGE_BITS
