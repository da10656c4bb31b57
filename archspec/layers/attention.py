"""Attention."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field

from archspec.layers.base import Extents, Layer, Rate, need, on_axes, padded, windows
from archspec.layers.tokens import need_grid
from archspec.shapes import Features, Shape, ShapeError, Sizes, Tokens


class Attention(Layer):
    """Multi-head self-attention, biases everywhere, through scaled_dot_product_attention.

    With `masked`, it takes the function's next argument as a mask: N tokens × N (queries by keys)
    or N features (keys), numbers to add to the scores, or booleans that say where to look.
    """

    kind: Literal["attention"] = "attention"
    shorthand: ClassVar[str] = "heads"
    heads: int = Field(ge=1)
    dropout: Rate = 0.0
    """Dropout of attention weights."""
    masked: bool = False

    def takes(self, waiting: int) -> int:
        return 1 if self.masked else 0

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        need(shape, Tokens)
        sizes.rate(self.dropout)
        if shape.channels % self.heads:
            raise ShapeError(f"{self.heads} heads do not divide {shape.channels} channels")
        return shape

    def join(self, shapes: tuple[Shape, ...], sizes: Sizes) -> Shape:
        shape = self.infer(shapes[0], sizes)
        assert isinstance(shape, Tokens)
        for mask in shapes[1:]:
            if mask not in (Tokens(shape.count, shape.count), Features(shape.count)):
                wanted = f"{Tokens(shape.count, shape.count)} or {Features(shape.count)}"
                raise ShapeError(f"the mask is {mask}, and {shape} need {wanted}")
        return shape


class Pooled(Layer):
    """Attention whose keys and values, and queries where they have a stride, are pooled over the
    tokens' grid: by a convolution of one head's channels that all heads share, and a norm."""

    shorthand: ClassVar[str] = "heads"
    heads: int = Field(ge=1)
    kernel: Extents = 3
    """Of the pooling convolutions."""
    query_stride: Extents = 1
    key_stride: Extents = 1
    """Of keys and values."""

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        grid = need_grid(shape)
        if shape.channels % self.heads:
            raise ShapeError(f"{self.heads} heads do not divide {shape.channels} channels")
        self.pooled(grid, self.key_stride)
        queries = self.pooled(grid, self.query_stride)
        return Tokens(math.prod(queries), shape.channels, queries)

    def pooled(self, grid: tuple[int, ...], stride: Extents) -> tuple[int, ...]:
        """The grid after a pool. Raises `ShapeError`."""
        kernel = on_axes(self.kernel, len(grid))
        if even := [side for side in kernel if side % 2 == 0]:
            raise ShapeError(f"the kernel of a pool has odd sides, found {even[0]}")
        return windows(grid, kernel, on_axes(stride, len(grid)), padded(None, kernel))


class PooledAttention(Pooled):
    """Multi-head attention with pooled keys and values, and queries where they have a stride (Fan
    et al. 2021, MViT)."""

    kind: Literal["pooled_attention"] = "pooled_attention"


class PoolingTransition(Pooled):
    """x → pool(x) + attention(norm(x)), where one pool serves x and the queries: how MViT comes to
    a coarser grid (Fan et al. 2021; Mangalam et al. 2022)."""

    kind: Literal["pooling_transition"] = "pooling_transition"
    query_stride: Extents = 2
    drop_path: Rate = 0.0
    """Of the attention, sample by sample."""

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        sizes.rate(self.drop_path)
        if set(on_axes(self.query_stride, len(need_grid(shape)))) == {1}:
            help = "`residual` with `pooled_attention` keeps the grid"
            raise ShapeError("the queries have no stride", help)
        return super().infer(shape, sizes)
