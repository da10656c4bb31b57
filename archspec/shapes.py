"""Shapes of one sample, without the batch dimension."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TypeVar

from archspec.expressions import Number, fold, names
from archspec.parsing import ExpressionError, parse_expression


@dataclass(frozen=True)
class Image:
    """Channels first: a batch is (B, channels, height, width)."""

    channels: int
    height: int
    width: int

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.channels, self.height, self.width)

    def __str__(self) -> str:
        return f"image {self.channels}×{self.height}×{self.width}"


@dataclass(frozen=True)
class Tokens:
    """Channels last: a batch is (B, count, channels)."""

    count: int
    channels: int

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.count, self.channels)

    def __str__(self) -> str:
        return f"{self.count} tokens × {self.channels}"


@dataclass(frozen=True)
class Features:
    """One vector a sample: a batch is (B, channels)."""

    channels: int

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.channels,)

    def __str__(self) -> str:
        return f"{self.channels} features"


Shape = Image | Tokens | Features
AnyShape = TypeVar("AnyShape", bound=Image | Tokens | Features)


def with_channels(shape: AnyShape, channels: int) -> AnyShape:
    """The same shape with another number of channels."""
    return replace(shape, channels=channels)


def elements(shape: Shape) -> int:
    """How many numbers one sample holds."""
    return math.prod(shape.sizes)


def channel_dimension(shape: Shape) -> int:
    """The dimension of channels in a batch, counted from the end: -3 for images, else -1."""
    return -3 if isinstance(shape, Image) else -1


class ShapeError(ValueError):
    """A layer that cannot take what reaches it."""

    def __init__(self, message: str, help: str = "") -> None:
        super().__init__(message)
        self.message, self.help = message, help


@dataclass(frozen=True)
class Sizes:
    """The numbers that a size or rate in a list of layers may be written with."""

    values: tuple[tuple[str, Fraction], ...]

    @staticmethod
    def of(**values: int) -> Sizes:
        return Sizes(tuple((name, Fraction(value)) for name, value in values.items()))

    def number(self, written: int | float | str) -> Fraction:
        """The value of a number or an expression such as `4*channels`. Raises `ShapeError`."""
        if not isinstance(written, str):
            return Fraction(str(written))
        known = dict(self.values)
        try:
            expression = parse_expression(written)
            if unknown := sorted(names(expression) - set(known)):
                raise ShapeError(
                    f"`{unknown[0]}` has no value here", f"names here: {', '.join(sorted(known))}"
                )
            value = fold(expression, {name: Number(v) for name, v in known.items()})
        except ExpressionError as error:
            raise ShapeError(f"`{written}`: {error.message}", error.help) from None
        except ZeroDivisionError:
            raise ShapeError(f"`{written}` divides by zero") from None
        except OverflowError:
            raise ShapeError(f"`{written}` has a number too large or too small") from None
        if not isinstance(value, Number):
            raise ShapeError(f"`{written}` is not a number")
        return value.value

    def size(self, written: int | str) -> int:
        """Like `number`, for a whole number from 1 to 2^20."""
        value = self.number(written)
        if value.denominator != 1 or not 1 <= value <= 2**20:
            raise ShapeError(f"expected a whole number from 1 to {2**20}, found {written}")
        return int(value)

    def rate(self, written: float | str) -> float:
        """Like `number`, for a probability in [0, 1)."""
        value = float(self.number(written))
        if not 0 <= value < 1:
            raise ShapeError(f"expected a rate from 0 to below 1, found {written}")
        return value
