"""Exact arithmetic: streams on a fixed-point grid, and what multiplying them would lose.

Streams are floating-point tensors whose values are multiples of one grid *unit*, few enough of
them that float32 holds each: residual functions see the same values forward and in the replay. An
update `t' = s*t + r` adds r rounded to the grid, which is undone bit for bit. Multiplying by s
loses log2(1/|s|) bits of each element, and a *form* says how these are kept as side information:

- `Unit`: s is 1 or -1, and nothing is lost.
- `Parity`: s is a half, a quarter or a sixteenth, of either sign: t is divided with a remainder,
  whose bits are packed, eight to a byte.
- `Remainder`: s = n/d is a small rational. The remainder by d is pushed on a stack of digits, and
  one by n is taken from it: log2(d/n) bits, which is all that is lost (the information buffer of
  Maclaurin, Duvenaud and Adams 2015, with floor division throughout).
- `Monotone`: any scale, also one learned or read from streams. t' = round(s*t), and the index of t
  among all that round to the same goes on the stack.
- `Gauge`: t is held as t/g, where g is the product of its scales so far: its updates are additions.

All integers are held in float64, which is exact below 2^53 and, on CPUs, a hundred times as fast
to divide as int64.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from compiler.information import Bits, Gauged, Information, is_known
from compiler.kernels import (
    Multiplier,
    fused,
    gauge_backward,
    gauge_forward,
    monotone_backward,
    monotone_forward,
    monotone_keeping,
    parity_backward,
    parity_forward,
    remainder_backward,
    remainder_forward,
    rounded,
    unit_backward,
    unit_forward,
)

MANTISSA = 24
"""Bits of float32: fewer than 2^24 units either way are each a float32 number."""
GAUGE_BITS = 26
"""How many bits a gauge may add to the 24 of its stream."""


@dataclass(frozen=True)
class Grid:
    """Multiples of 2^-fraction_bits, below 2^(24 - fraction_bits) in absolute value."""

    fraction_bits: int

    @property
    def unit(self) -> float:
        """The distance of neighbours."""
        return 2.0**-self.fraction_bits

    @property
    def limit(self) -> float:
        """The first power of two past the range."""
        return 2.0 ** (MANTISSA - self.fraction_bits)

    def rounded(self, value: Tensor) -> Tensor:
        """The nearest multiples of the unit, in a tensor of their own."""
        return rounded(value, self.unit)

    def units(self, value: Tensor) -> Tensor:
        """Values of the grid counted in units, float64, in a tensor of their own."""
        return torch.mul(value, 1 / self.unit).double()


# The range ----------------------------------------------------------------------------------------


class RangeError(RuntimeError):
    """A stream left the range of its grid."""


def check_range(information: Information, grid: Grid, stage: str) -> None:
    """Raises `RangeError` for the first stream that left the grid's range since the last check.
    Waits for the device, once."""
    peaks, information.peaks = information.peaks, []
    found = [_unwrapped(peak) for _, _, peak in peaks]
    if not found or not is_known(found[0]):
        return
    largest = torch.stack(found).tolist()
    for (layer, name, _), value in zip(peaks, largest, strict=True):
        if not value < grid.limit:  # so that NaN is found
            raise RangeError(_left(grid, stage, layer, name, value))


def _unwrapped(peak: Tensor) -> Tensor:
    """The largest over all samples that torch.func maps a function over."""
    while torch._C._functorch.is_functorch_wrapped_tensor(peak):
        peak = torch._C._functorch.get_unwrapped(peak)
    return peak.amax()


def _left(grid: Grid, stage: str, layer: int, name: str, value: float) -> str:
    where = f"at layer {layer}" if layer >= 0 else "before the first layer"
    text = (
        f"stage `{stage}`, {where}: stream `{name}` reached {value:.6g}, and with "
        f"`arithmetic: {{exact: {grid.fraction_bits}}}` streams stay below {grid.limit:g}. "
    )
    if not math.isfinite(value):
        return text + "It is no number: a lower learning rate, or gradient clipping, may help"
    bits = MANTISSA - 1 - math.floor(math.log2(value))
    if bits < 0:
        return text + "Nothing reaches so far but `arithmetic: float`"
    text += "Where training diverges, a lower learning rate may help; "
    return text + f"`{{exact: {bits}}}` reaches {2.0 ** (MANTISSA - bits):g}"


# Forms --------------------------------------------------------------------------------------------


class Form:
    """How `s*t` is computed on the grid. `change` is what is added to it, unrounded."""

    label = ""

    def advance(
        self, value: Tensor, scale: Multiplier, change: Tensor, grid: Grid, kept: Information
    ) -> Tensor:
        """The new value of a stream; what it loses goes into `kept`."""
        raise NotImplementedError

    def retreat(
        self, value: Tensor, scale: Multiplier, change: Tensor, grid: Grid, kept: Information
    ) -> Tensor:
        """The old value from the new one, with what was kept, which leaves `kept`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Unit(Form):
    """A scale of 1 or -1, or, drawn for evaluation, 0."""

    label = "nothing to keep"

    def advance(
        self, value: Tensor, scale: Multiplier, change: Tensor, grid: Grid, kept: Information
    ) -> Tensor:
        """s*t + r: all of these are on the grid."""
        return fused(unit_forward, value, scale, change, grid.unit)

    def retreat(
        self, value: Tensor, scale: Multiplier, change: Tensor, grid: Grid, kept: Information
    ) -> Tensor:
        """(t' - r)/s, where 1/s is s."""
        return fused(unit_backward, value, scale, change, grid.unit)


@dataclass(frozen=True)
class Parity(Form):
    """A scale of ±2^-count, with the remainder's bits packed."""

    count: int
    label = "packed bits"

    def advance(
        self, value: Tensor, scale: Multiplier, change: Tensor, grid: Grid, kept: Information
    ) -> Tensor:
        """sign(s)*floor(t/2^count) + r."""
        forward, sign = parity_forward, _sign(scale)
        new, digit = fused(forward, value, sign, change, self.count, grid.unit)
        if kept.keeps:
            shape = tuple(value.shape)
            kept.packed[shape] = kept.packed.get(shape, Bits()).push(self.count, digit)
        return new

    def retreat(
        self, value: Tensor, scale: Multiplier, change: Tensor, grid: Grid, kept: Information
    ) -> Tensor:
        """The quotient times 2^count, and the remainder."""
        backward, sign, shape = parity_backward, _sign(scale), tuple(value.shape)
        digit, kept.packed[shape] = kept.packed[shape].pull(self.count)
        return fused(backward, value, sign, change, digit, self.count, grid.unit)


@dataclass(frozen=True)
class Remainder(Form):
    """A scale of ±numerator/denominator."""

    numerator: int
    denominator: int
    label = "remainders"

    def advance(
        self, value: Tensor, scale: Multiplier, change: Tensor, grid: Grid, kept: Information
    ) -> Tensor:
        """With t = q*d + remainder: ±(q*n + a digit of the stack) + r."""
        stack, terms = kept.stack(value).with_room(self.denominator), self._terms(grid)
        forward, sign = remainder_forward, _sign(scale)
        new, word = fused(forward, value, sign, change, stack.word, *terms)
        pushed = stack.pushed(word, self.denominator)
        kept.stacks[tuple(value.shape)] = pushed.pulled_from(word, self.numerator)
        return new

    def retreat(
        self, value: Tensor, scale: Multiplier, change: Tensor, grid: Grid, kept: Information
    ) -> Tensor:
        """The digit goes back on the stack, and the remainder is pulled from it."""
        stack, terms = kept.stack(value), self._terms(grid)
        backward, sign = remainder_backward, _sign(scale)
        old, word = fused(backward, value, sign, change, stack.word, *terms)
        kept.stacks[tuple(value.shape)] = stack.before_push(word)
        return old

    def _terms(self, grid: Grid) -> tuple[int, int, float]:
        return self.numerator, self.denominator, grid.unit


@dataclass(frozen=True)
class Monotone(Form):
    """Any scale of which no more than `largest` neighbouring values round to the same.

    The scale is taken as float32, so that in float64 its product with a value of the grid, 24 bits
    by 24, is exact. Then v = floor(|s|*t + 1/2) exactly where (v - 1/2)/|s| <= t < (v + 1/2)/|s|,
    and these bounds are found exactly too.
    """

    largest: int
    label = "index in the preimage of rounding"

    def advance(
        self, value: Tensor, scale: Multiplier, change: Tensor, grid: Grid, kept: Information
    ) -> Tensor:
        """sign(s)*round(|s|*t) + r."""
        sign, size = _sign(scale), _size(scale)
        if not kept.keeps:
            return fused(monotone_forward, value, sign, size, change, grid.unit)
        stack = kept.stack(value).with_room(self.largest)
        new, word = fused(monotone_keeping, value, sign, size, change, stack.word, grid.unit)
        kept.stacks[tuple(value.shape)] = stack.pushed(word, self.largest)
        return new

    def retreat(
        self, value: Tensor, scale: Multiplier, change: Tensor, grid: Grid, kept: Information
    ) -> Tensor:
        """The element of the preimage that the stack names."""
        stack, sign, size = kept.stack(value), _sign(scale), _size(scale)
        backward = monotone_backward
        old, word = fused(backward, value, sign, size, change, stack.word, grid.unit)
        kept.stacks[tuple(value.shape)] = stack.before_push(word)
        return old


@dataclass(frozen=True)
class Gauge(Form):
    """Any scale but one that reads streams, for the stream `name`, which is held as t/g."""

    name: str
    label = "gauge"

    def advance(
        self, value: Tensor, scale: Multiplier, change: Tensor, grid: Grid, kept: Information
    ) -> Tensor:
        """t/g + round(r/g')."""
        old = kept.gauged.get(self.name) or Gauged(grid.units(value))
        gauge = old.gauge * _exactly(scale)
        units, new = fused(gauge_forward, old.units, gauge, change, grid.unit)
        kept.gauged[self.name] = Gauged(units, (*old.gauges, gauge))
        return new

    def retreat(
        self, value: Tensor, scale: Multiplier, change: Tensor, grid: Grid, kept: Information
    ) -> Tensor:
        """t/g from t'/g'."""
        new = kept.gauged[self.name]
        before, backward = Gauged(new.units, new.gauges[:-1]).gauge, gauge_backward
        units, old = fused(backward, new.units, new.gauge, before, change, grid.unit)
        kept.gauged[self.name] = Gauged(units, new.gauges[:-1])
        return old


def ends_in(information: Information, values: dict[str, Tensor], grid: Grid) -> bool:
    """Whether the streams that a gauge holds are these: it reads a copy of its own."""
    return all(
        torch.equal(torch.mul(held.units, held.gauge * grid.unit).to(values[name]), values[name])
        for name, held in information.gauged.items()
    )


def _sign(scale: Multiplier) -> Multiplier:
    return torch.sign(scale) if isinstance(scale, Tensor) else math.copysign(1.0, scale)


def _size(scale: Multiplier) -> Multiplier:
    """The absolute value, of float32's precision, in float64."""
    if isinstance(scale, Tensor):
        return scale.abs().float().double()
    return abs(torch.tensor(scale, dtype=torch.float32, device="cpu").item())


def _exactly(scale: Multiplier) -> Multiplier:
    return scale.double() if isinstance(scale, Tensor) else scale


@runtime_checkable
class ExactMap(Protocol):
    """An invertible map that has an exact form."""

    def advance(self, value: Tensor, grid: Grid, kept: Information) -> Tensor:
        """The map on the grid; what it loses goes into `kept`."""

    def retreat(self, value: Tensor, grid: Grid, kept: Information) -> Tensor:
        """The old value from the new one, with what was kept, which leaves `kept`."""


# In the graph -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exact:
    """How an update is computed: its form, its scale, and what it adds, each from the values that
    the update reads."""

    grid: Grid
    form: Form
    scale: Callable[[dict[str, Tensor]], Multiplier]
    rest: Callable[[dict[str, Tensor]], Tensor]

    def retreat(self, scope: dict[str, Tensor], target: str, kept: Information) -> Tensor:
        """The old value of the target, from the new one and all else that the update read."""
        scale, rest = self.scale(scope), self.rest(scope)
        return self.form.retreat(scope[target], scale, rest, self.grid, kept)


class StraightThrough(torch.autograd.Function):
    """A new value of an update in the place of `scale*target + rest`, with the gradients of that:
    rounding counts as the identity."""

    generate_vmap_rule = True

    @staticmethod
    def forward(new: Tensor, target: Tensor, scale: Multiplier, rest: Tensor) -> Tensor:
        """The new value."""
        return new.view_as(new)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Saves what a product needs for its gradients."""
        _, target, scale, _ = inputs
        ctx.number = None if isinstance(scale, Tensor) else scale
        if isinstance(scale, Tensor):
            ctx.save_for_backward(scale, *((target,) if ctx.needs_input_grad[2] else ()))
            ctx.save_for_forward(scale, target)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        """The cotangents of the product and of the sum."""
        for_scale: Tensor | None = None
        if ctx.number is not None:
            for_target = cotangent if ctx.number == 1 else cotangent * ctx.number
        else:
            scale, *target = ctx.saved_tensors
            for_target = cotangent * scale
            if target:
                for_scale = (cotangent * target[0]).sum_to_size(scale.shape)
        return None, for_target, for_scale, cotangent

    @staticmethod
    def jvp(
        ctx: Any,
        _: Tensor | None,
        target: Tensor | None,
        scale: Tensor | None,
        rest: Tensor | None,
    ) -> Tensor:
        """The tangent of the sum."""
        number = ctx.number if ctx.number is not None else ctx.saved_tensors[0]
        parts = [] if rest is None else [rest]
        parts += [] if target is None else [number * target]
        parts += [] if scale is None else [scale * ctx.saved_tensors[1]]
        return functools.reduce(torch.add, parts)


def on_grid(value: Tensor, grid: Grid) -> Tensor:
    """A value rounded to the grid, with the gradient of the identity."""
    new = grid.rounded(value.detach())
    rounded: Tensor = StraightThrough.apply(new, value, 1.0, new)
    return rounded
