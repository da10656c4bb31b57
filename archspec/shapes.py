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

    @property
    def grid(self) -> tuple[int, ...]:
        return (self.height, self.width)

    def __str__(self) -> str:
        return f"image {self.channels}×{self.height}×{self.width}"


@dataclass(frozen=True)
class Video:
    """Channels first: a batch is (B, channels, frames, height, width)."""

    channels: int
    frames: int
    height: int
    width: int

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.channels, self.frames, self.height, self.width)

    @property
    def grid(self) -> tuple[int, ...]:
        return (self.frames, self.height, self.width)

    def __str__(self) -> str:
        return f"video {self.channels}×{self.frames}×{self.height}×{self.width}"


@dataclass(frozen=True, eq=False)
class Tokens:
    """Channels last: a batch is (B, count, channels). A plain sequence is equal to tokens on any
    grid of as many."""

    count: int
    channels: int
    grid: tuple[int, ...] = ()
    """How the tokens lie in an image (rows, columns) or a video (frames, rows, columns), where
    they are no plain sequence."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tokens):
            return NotImplemented
        same_grid = self.grid == other.grid or not (self.grid and other.grid)
        return self.sizes == other.sizes and same_grid

    def __hash__(self) -> int:
        return hash(self.sizes)

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


Pixels = Image | Video
Shape = Image | Video | Tokens | Features
AnyShape = TypeVar("AnyShape", bound=Image | Video | Tokens | Features)


def with_channels(shape: AnyShape, channels: int) -> AnyShape:
    """The same shape with another number of channels."""
    return replace(shape, channels=channels)


def pixels(channels: int, grid: tuple[int, ...]) -> Pixels:
    """The image or video of a grid."""
    return Image(channels, *grid) if len(grid) == 2 else Video(channels, *grid)


def resized(shape: Shape, sizes: tuple[int, ...]) -> Shape:
    """A shape of the same kind with other sizes; tokens of another count lie on no grid."""
    if isinstance(shape, Tokens):
        count, channels = sizes
        return Tokens(count, channels, shape.grid if count == shape.count else ())
    return type(shape)(*sizes)


def elements(shape: Shape) -> int:
    """How many numbers one sample holds."""
    return math.prod(shape.sizes)


def channel_dimension(shape: Shape) -> int:
    """The dimension of channels in a batch, counted from the end: -3 for images, -4 for videos,
    else -1."""
    if isinstance(shape, Image):
        return -3
    return -4 if isinstance(shape, Video) else -1


def window(length: int, kernel: int, stride: int, padding: int) -> int:
    """How many places a kernel has along a padded length; 0 or less where it has none."""
    return (length + 2 * padding - kernel) // stride + 1


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
