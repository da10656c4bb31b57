"""Convolutions, and what goes with them on images."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from archspec.layers.base import Activation, Layer, Size, need
from archspec.shapes import Image, Shape, ShapeError, Sizes


class Conv(Layer):
    """A 2-D convolution, padded to keep the grid at stride 1."""

    kind: Literal["conv"] = "conv"
    shorthand: ClassVar[str] = "out"
    out: Size = "channels"
    kernel: int = Field(3, ge=1, le=31)
    stride: int = Field(1, ge=1, le=1024)
    padding: int | None = Field(None, ge=0, le=1024)
    """Default: half the kernel."""
    groups: Size = 1
    bias: bool = True

    @property
    def pad(self) -> int:
        """The padding on each side."""
        return self.kernel // 2 if self.padding is None else self.padding

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        need(shape, Image)
        assert isinstance(shape, Image)
        out, groups = sizes.size(self.out), sizes.size(self.groups)
        if shape.channels % groups or out % groups:
            raise ShapeError(f"{groups} groups do not divide {shape.channels} → {out} channels")
        height, width = (
            (n + 2 * self.pad - self.kernel) // self.stride + 1 for n in (shape.height, shape.width)
        )
        if height < 1 or width < 1:
            raise ShapeError(f"a kernel of {self.kernel} is larger than the padded {shape}")
        return Image(out, height, width)


class TransposePair(Layer):
    """K^T s(K x + b), both maps tied to one kernel K (Chang et al. 2018): a convolution on images,
    a linear map on tokens."""

    kind: Literal["transpose_pair"] = "transpose_pair"
    hidden: Size = "channels"
    """Channels of K x."""
    kernel: int | None = Field(None, ge=1, le=31)
    """Of the convolution; 3 by default on images."""
    activation: Activation = "relu"

    @property
    def width(self) -> int:
        """The convolution's kernel size."""
        return 3 if self.kernel is None else self.kernel

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        sizes.size(self.hidden)
        if isinstance(shape, Image) and self.width % 2 == 0:
            raise ShapeError(f"a kernel of {self.width} changes the grid", "use an odd kernel")
        if not isinstance(shape, Image) and self.kernel is not None:
            raise ShapeError(f"`kernel` is for images, found {shape}", "leave `kernel` out")
        return shape
