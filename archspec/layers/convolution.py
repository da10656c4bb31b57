"""Convolutions, and what goes with them on images and videos."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from archspec.layers.base import (
    Activation,
    Extents,
    Layer,
    Padding,
    Size,
    need,
    on_axes,
    padded,
    windows,
)
from archspec.maps import Squeeze, Unsqueeze
from archspec.shapes import Image, Shape, ShapeError, Sizes, Video, pixels


class Conv(Layer):
    """A convolution of an image or a video, padded to keep the grid at stride 1."""

    kind: Literal["conv"] = "conv"
    shorthand: ClassVar[str] = "out"
    out: Size = "channels"
    kernel: Extents = 3
    stride: Extents = 1
    padding: Padding = None
    """Default: half the kernel."""
    groups: Size = 1
    bias: bool = True

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        need(shape, Image, Video)
        assert isinstance(shape, (Image, Video))
        out, groups = sizes.size(self.out), sizes.size(self.groups)
        if shape.channels % groups or out % groups:
            raise ShapeError(f"{groups} groups do not divide {shape.channels} → {out} channels")
        return pixels(out, slid(shape.grid, self.kernel, self.stride, self.padding))


def slid(
    grid: tuple[int, ...], kernel: Extents, stride: Extents, padding: Padding
) -> tuple[int, ...]:
    """The grid that a sliding kernel leaves. Raises `ShapeError`."""
    axes = len(grid)
    sides = on_axes(kernel, axes)
    return windows(grid, sides, on_axes(stride, axes), padded(padding, sides))


class Pooling(Layer):
    """A window of pixels to one, channel by channel."""

    shorthand: ClassVar[str] = "kernel"
    kernel: Extents
    stride: Extents | None = None
    """Default: the kernel."""
    padding: Padding = 0

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        need(shape, Image, Video)
        assert isinstance(shape, (Image, Video))
        sides = on_axes(self.kernel, len(shape.grid))
        if any(2 * p > side for p, side in zip(padded(self.padding, sides), sides, strict=True)):
            raise ShapeError("the padding is more than half the kernel")
        return pixels(
            shape.channels, slid(shape.grid, sides, self.stride or self.kernel, self.padding)
        )


class MaxPool(Pooling):
    """The largest pixel of each window."""

    kind: Literal["max_pool"] = "max_pool"


class AveragePool(Pooling):
    """The mean of each window."""

    kind: Literal["average_pool"] = "average_pool"


class PadChannels(Layer):
    """Channels of zeros behind those of an image or video, up to `out` of them."""

    kind: Literal["pad_channels"] = "pad_channels"
    shorthand: ClassVar[str] = "out"
    out: Size

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        need(shape, Image, Video)
        assert isinstance(shape, (Image, Video))
        out = sizes.size(self.out)
        if out < shape.channels:
            raise ShapeError(f"{shape} has more than {out} channels already")
        return pixels(out, shape.grid)


class TiedKernel(Layer):
    """A kernel K that comes with its own transpose: of a convolution on images, of a linear map on
    tokens and features."""

    kernel: int | None = Field(None, ge=1, le=31)
    """Of the convolution; 3 by default on images."""
    activation: Activation = "relu"

    @property
    def width(self) -> int:
        """The convolution's kernel size."""
        return 3 if self.kernel is None else self.kernel

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        """The same shape. Raises `ShapeError` for a kernel that changes the grid, or that there is
        no grid for."""
        if isinstance(shape, Video):
            raise ShapeError(f"expected an image, tokens or features, found {shape}")
        if isinstance(shape, Image) and self.width % 2 == 0:
            raise ShapeError(f"a kernel of {self.width} changes the grid", "use an odd kernel")
        if not isinstance(shape, Image) and self.kernel is not None:
            raise ShapeError(f"`kernel` is for images, found {shape}", "leave `kernel` out")
        return shape


class TransposePair(TiedKernel):
    """K^T s(K x + b), both maps tied to one kernel K (Chang et al. 2018): a convolution on images,
    a linear map on tokens."""

    kind: Literal["transpose_pair"] = "transpose_pair"
    hidden: Size = "channels"
    """Channels of K x."""

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        sizes.size(self.hidden)
        return super().infer(shape, sizes)


class Antisymmetric(TiedKernel):
    """s((K - K^T) x + b), one kernel K less its own transpose (Chang et al. 2018): a convolution
    on images, a linear map on tokens. Its Jacobian has no growing directions where s is linear."""

    kind: Literal["antisymmetric"] = "antisymmetric"


class SqueezeLayer(Layer):
    """Space to depth, as the invertible map `squeeze` does it: nothing is lost or stored."""

    kind: Literal["squeeze"] = "squeeze"

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        return Squeeze().infer(shape)


class UnsqueezeLayer(Layer):
    """Depth to space, as the invertible map `unsqueeze` does it."""

    kind: Literal["unsqueeze"] = "unsqueeze"

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        return Unsqueeze().infer(shape)
