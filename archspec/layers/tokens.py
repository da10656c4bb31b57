"""From images to tokens, and from tokens to one vector."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field

from archspec.layers.base import Layer, Size, need
from archspec.shapes import Features, Image, Shape, ShapeError, Sizes, Tokens, Video, elements


class PatchEmbed(Layer):
    """Cut an image into square patches, each mapped to one token."""

    kind: Literal["patch_embed"] = "patch_embed"
    patch: int = Field(ge=1, le=2**20)
    width: int = Field(ge=1, le=2**20)

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        need(shape, Image)
        assert isinstance(shape, Image)
        if shape.height % self.patch or shape.width % self.patch:
            raise ShapeError(f"patches of {self.patch} do not tile {shape}")
        grid = (shape.height // self.patch, shape.width // self.patch)
        return Tokens(math.prod(grid), self.width, grid)


class PatchUnembed(Layer):
    """Map each token of a grid to a square patch of an image of so many `channels`: the way back
    from `patch_embed` (Peebles and Xie 2023, the last layer)."""

    kind: Literal["patch_unembed"] = "patch_unembed"
    patch: int = Field(ge=1, le=2**20)
    channels: int = Field(ge=1, le=2**20)

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        grid = need_grid(shape)
        if len(grid) != 2:
            raise ShapeError(f"expected tokens of an image, found those of {len(grid)} axes")
        height, width = grid
        return Image(self.channels, height * self.patch, width * self.patch)


class ToTokens(Layer):
    """Each pixel of an image or a video as one token."""

    kind: Literal["tokens"] = "tokens"

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        need(shape, Image, Video)
        assert isinstance(shape, (Image, Video))
        return Tokens(math.prod(shape.grid), shape.channels, shape.grid)


class PatchMerge(Layer):
    """Each square of four tokens to one: joined along their channels, normalised, and mapped to
    `out` channels (Liu et al. 2021, Swin)."""

    kind: Literal["patch_merge"] = "patch_merge"
    shorthand: ClassVar[str] = "out"
    out: Size = "2*channels"

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        grid = need_grid(shape)
        if len(grid) != 2 or grid[0] % 2 or grid[1] % 2:
            sides = "×".join(map(str, grid))
            raise ShapeError(f"expected tokens on a grid of even sides, found {sides}")
        merged = (grid[0] // 2, grid[1] // 2)
        return Tokens(math.prod(merged), sizes.size(self.out), merged)


def need_grid(shape: Shape) -> tuple[int, ...]:
    """The grid that tokens lie on. Raises `ShapeError` where there is none."""
    need(shape, Tokens)
    assert isinstance(shape, Tokens)
    if not shape.grid:
        help = "`patch_embed` and `tokens` lay them on one, and `class_token` takes it away"
        raise ShapeError(f"expected tokens on a grid, found a sequence of {shape}", help)
    return shape.grid


class ClassToken(Layer):
    """Put one learned token before the others."""

    kind: Literal["class_token"] = "class_token"

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        need(shape, Tokens)
        assert isinstance(shape, Tokens)
        return Tokens(shape.count + 1, shape.channels)


class Position(Layer):
    """Add a learned embedding of each token's position."""

    kind: Literal["position"] = "position"
    shorthand: ClassVar[str] = "embedding"
    embedding: Literal["learned"] = "learned"

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        need(shape, Tokens)
        return shape


class Pool(Layer):
    """All tokens or pixels to one vector: their mean, their maximum, or the first token."""

    kind: Literal["pool"] = "pool"
    shorthand: ClassVar[str] = "by"
    by: Literal["mean", "max", "first"]

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        need(shape, Image, Video, Tokens)
        if self.by == "first" and not isinstance(shape, Tokens):
            raise ShapeError(f"expected tokens, found {shape}")
        return Features(shape.channels)


class Flatten(Layer):
    """All elements of a sample as one vector."""

    kind: Literal["flatten"] = "flatten"

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        return Features(elements(shape))
