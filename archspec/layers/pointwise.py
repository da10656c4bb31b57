"""Layers that treat every token or pixel alike, and dropout."""

from __future__ import annotations

from fractions import Fraction
from typing import ClassVar, Literal

from pydantic import Field

from archspec.expressions import LARGEST
from archspec.layers.base import Activation, Layer, Rate, Size, need
from archspec.shapes import Features, Image, Shape, ShapeError, Sizes, Tokens, Video, with_channels


class Mlp(Layer):
    """linear → activation → dropout → linear → dropout, back to the same width."""

    kind: Literal["mlp"] = "mlp"
    shorthand: ClassVar[str] = "ratio"
    ratio: float = Field(4.0, gt=0)
    """Hidden width over input width."""
    activation: Activation = "gelu"
    dropout: Rate = 0.0

    def hidden(self, channels: int) -> int:
        """The hidden width. Raises `ShapeError` where it is not whole."""
        width = Fraction(str(self.ratio)) * channels
        if width.denominator != 1:
            raise ShapeError(f"{self.ratio} times {channels} channels is not a whole number")
        return int(width)

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        need(shape, Tokens, Features)
        sizes.rate(self.dropout)
        sizes.size(self.hidden(shape.channels))
        return shape


class Linear(Layer):
    """A linear map of the channels of each token."""

    kind: Literal["linear"] = "linear"
    shorthand: ClassVar[str] = "out"
    out: Size
    bias: bool = True

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        if isinstance(shape, (Image, Video)):
            raise ShapeError(f"expected tokens or features, found {shape}", "use conv: {kernel: 1}")
        return with_channels(shape, sizes.size(self.out))


class Sinusoids(Layer):
    """A number from 0 to 1 as sines and cosines of so many frequencies, from 1000 down to 0.1
    (Vaswani et al. 2017, for 1000 times the number, as Peebles and Xie 2023 have it)."""

    kind: Literal["sinusoids"] = "sinusoids"
    shorthand: ClassVar[str] = "count"
    count: int = Field(ge=2, le=2**20, multiple_of=2)
    """Half of them are cosines."""

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        if shape != Features(1):
            raise ShapeError(f"expected one number, found {shape}")
        return Features(self.count)


class Pointwise(Layer):
    """An activation."""

    kind: Activation


class SoftThreshold(Layer):
    """x → sign(x)·max(|x| - t, 0), with a learned threshold t for each channel: what the gradient
    step of ISTA is followed by (Daubechies et al. 2004; learned: Gregor and LeCun 2010)."""

    kind: Literal["soft_threshold"] = "soft_threshold"
    shorthand: ClassVar[str] = "init"
    init: float = Field(0.1, ge=0, le=LARGEST)


class Dropout(Layer):
    """Drop single elements in training."""

    kind: Literal["dropout"] = "dropout"
    shorthand: ClassVar[str] = "rate"
    rate: Rate

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        sizes.rate(self.rate)
        return shape


class DropPath(Layer):
    """Drop the function's whole output, per sample, in training (stochastic depth)."""

    kind: Literal["drop_path"] = "drop_path"
    shorthand: ClassVar[str] = "rate"
    rate: Rate

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        sizes.rate(self.rate)
        return shape


class Scale(Layer):
    """A learned factor per channel (layer scale)."""

    kind: Literal["scale"] = "scale"
    shorthand: ClassVar[str] = "init"
    init: float = 1e-4

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        if abs(self.init) > LARGEST:
            raise ShapeError(f"a factor is at most {LARGEST:g}, on either side of zero")
        return shape
