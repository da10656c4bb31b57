"""The arithmetic of exact forms as functions of tensors, each one kernel on a GPU.

Every result here is an integer, or an integer times a power of two, that IEEE arithmetic gets
right: sums and products of integers that fit, and quotients that rounding keeps on their side of
an integer. So a compiler that fuses operations, with fused multiply-adds or without, gives the same
bits.

Streams and what is added to them are of the streams' dtype, on the grid; words and scales are
float64. `unit` is the distance of neighbours on the grid, `sign` the sign of a scale and `size` its
absolute value.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._triton import has_triton

Multiplier = Tensor | float
Result = TypeVar("Result")
MARGIN = 2.0**-26


def rounded(value: Tensor, unit: float) -> Tensor:
    """The nearest multiples of the unit."""
    return torch.mul(value, 1 / unit).round_().mul_(unit)


def _times(sign: Multiplier, value: Tensor) -> Tensor:
    """The value itself where the sign is 1."""
    return value if isinstance(sign, float) and sign == 1 else value * sign


def _added(sign: Multiplier, value: Tensor, change: Tensor, unit: float) -> Tensor:
    return (_times(sign, value) + rounded(change, unit)).to(change.dtype)


def _taken_back(sign: Multiplier, value: Tensor, change: Tensor, unit: float) -> Tensor:
    return _times(sign, value - rounded(change, unit))


# Stacks of digits ---------------------------------------------------------------------------------


def push(word: Tensor, radix: Multiplier, digit: Tensor) -> Tensor:
    """A stack with one more digit, from 0 to radix - 1."""
    return torch.mul(word, radix).add_(digit)


def pull(word: Tensor, radix: Multiplier) -> tuple[Tensor, Tensor]:
    """The digit pushed last, and the stack before."""
    rest = divided(word, radix)
    return word - rest * radix, rest


def divided(value: Tensor, divisor: Multiplier) -> Tensor:
    """floor(value/divisor), for integers: `value` below 2^51 in absolute value.

    Multiplying by 1/divisor is faster than dividing. Both roundings together are off by less than
    (value + 1/2)/divisor*2^-52, and the half keeps quotients 1/(2*divisor) from any integer.
    """
    if isinstance(divisor, Tensor):
        return torch.div(value, divisor).floor_()
    return torch.add(value, 0.5).mul_(1 / divisor).floor_()


# Forms --------------------------------------------------------------------------------------------


def unit_forward(value: Tensor, sign: Multiplier, change: Tensor, unit: float) -> Tensor:
    """s*t + r, for s of 1, -1 or 0."""
    return _added(sign, value, change, unit)


def unit_backward(value: Tensor, sign: Multiplier, change: Tensor, unit: float) -> Tensor:
    """(t' - r)/s, where 1/s is s."""
    return _taken_back(sign, value, change, unit)


def parity_forward(
    value: Tensor, sign: Multiplier, change: Tensor, count: int, unit: float
) -> tuple[Tensor, Tensor]:
    """sign*floor(t/2^count) + r, and the remainder (uint8)."""
    quotient = torch.mul(value, 2.0**-count / unit).floor_()
    remainder = torch.mul(value, 1 / unit).sub_(quotient, alpha=2**count)
    return _added(sign, quotient.mul_(unit), change, unit), remainder.to(torch.uint8)


def parity_backward(
    value: Tensor, sign: Multiplier, change: Tensor, digit: Tensor, count: int, unit: float
) -> Tensor:
    """The quotient times 2^count, and the remainder."""
    quotient = _taken_back(sign, value, change, unit)
    return quotient * 2.0**count + digit.to(value.dtype) * unit


def remainder_forward(
    value: Tensor,
    sign: Multiplier,
    change: Tensor,
    word: Tensor,
    numerator: int,
    denominator: int,
    unit: float,
) -> tuple[Tensor, Tensor]:
    """With t = q*d + remainder: sign*(q*n + digit) + r, where the remainder has been pushed on the
    word, and the digit pulled from it."""
    units = torch.mul(value, 1 / unit).double()
    quotient = divided(units, denominator)
    remainder = units.sub_(quotient, alpha=denominator)
    digit, word = pull(push(word, denominator, remainder), numerator)
    scaled = quotient.mul_(numerator).add_(digit).mul_(unit)
    return _added(sign, scaled, change, unit), word


def remainder_backward(
    value: Tensor,
    sign: Multiplier,
    change: Tensor,
    word: Tensor,
    numerator: int,
    denominator: int,
    unit: float,
) -> tuple[Tensor, Tensor]:
    """The old value and the word before."""
    # In float64: what the change cancels may be past the grid's range.
    units = _taken_back(sign, value.double(), change, unit) * (1 / unit)
    quotient = divided(units, numerator)
    digit = units.sub_(quotient, alpha=numerator)
    remainder, word = pull(push(word, numerator, digit), denominator)
    old = quotient.mul_(denominator).add_(remainder).mul_(unit)
    return old.to(value.dtype), word


def monotone_forward(
    value: Tensor, sign: Multiplier, size: Multiplier, change: Tensor, unit: float
) -> Tensor:
    """sign*round(size*t) + r."""
    return _added(sign, _scaled(value, size, unit).mul_(unit), change, unit)


def monotone_keeping(
    value: Tensor, sign: Multiplier, size: Multiplier, change: Tensor, word: Tensor, unit: float
) -> tuple[Tensor, Tensor]:
    """As `monotone_forward`, and the word with the index of t in the preimage of round(size*t)."""
    scaled = _scaled(value, size, unit)
    first, count = _preimage(scaled, size)
    index = torch.mul(value, 1 / unit).double().sub_(first)
    return _added(sign, scaled.mul_(unit), change, unit), push(word, count, index)


def monotone_backward(
    value: Tensor, sign: Multiplier, size: Multiplier, change: Tensor, word: Tensor, unit: float
) -> tuple[Tensor, Tensor]:
    """The element of the preimage that the word names, and the word before."""
    scaled = _taken_back(sign, value.double(), change, unit) * (1 / unit)
    first, count = _preimage(scaled, size)
    index, word = pull(word, count)
    return first.add_(index).mul_(unit).to(value.dtype), word


def _scaled(value: Tensor, size: Multiplier, unit: float) -> Tensor:
    return torch.mul(value, 1 / unit).double().mul(size).add_(0.5).floor_()


def _preimage(scaled: Tensor, size: Multiplier) -> tuple[Tensor, Tensor]:
    """The first integer that rounds to each of `scaled`, and how many do.

    The first is ceil((scaled - 1/2)/size), a quotient of some 24 bits. It is an integer or, since
    size has 24 bits too, 2^-24 or more from any; what is computed is off by less than 2^-27. So
    2^-26 less than that has the same ceiling, also where the quotient is an integer. Past 2^24 a
    size leaves the preimage of 0 alone, narrower than the margin: one integer all the same.
    """
    inverse = 1 / size
    quotient = torch.mul(scaled, inverse)
    first = torch.sub(quotient, 0.5 * inverse + MARGIN).ceil_()
    following = quotient.add_(0.5 * inverse - MARGIN).ceil_()
    return first, following.sub_(first).clamp_(min=1)


def gauge_forward(
    units: Tensor, gauge: Multiplier, change: Tensor, unit: float
) -> tuple[Tensor, Tensor]:
    """t/g in units, with the new gauge; and t."""
    units = torch.mul(change.double(), 1 / (gauge * unit)).round_().add_(units)
    return units, torch.mul(units, gauge * unit).to(change.dtype)


def gauge_backward(
    units: Tensor, gauge: Multiplier, before: Multiplier, change: Tensor, unit: float
) -> tuple[Tensor, Tensor]:
    """t/g in units, with the gauge before; and t."""
    units = units - torch.mul(change.double(), 1 / (gauge * unit)).round_()
    return units, torch.mul(units, before * unit).to(change.dtype)


# Fusing -------------------------------------------------------------------------------------------


def fused(kernel: Callable[..., Result], *arguments: Any) -> Result:
    """What a kernel gives; on a GPU, compiled to a single one where that can be done."""
    given = [a.detach() if isinstance(a, Tensor) else a for a in arguments]
    if kernel not in _unfused and _can_fuse(given[0]):
        try:
            result: Result = _compiled(kernel)(*given)
            return result
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of a compiler: whatever it is, the kernel runs without it
            _unfused.add(kernel)
            warnings.warn(f"not compiled, and so slower: {kernel.__name__}: {error}", stacklevel=2)
    return kernel(*given)


def _can_fuse(value: Tensor) -> bool:
    return value.is_cuda and not torch._C._are_functorch_transforms_active() and has_triton()


_unfused: set[Callable[..., Any]] = set()


@functools.cache
def _compiled(kernel: Callable[..., Result]) -> Callable[..., Result]:
    return torch.compile(kernel, dynamic=True)
