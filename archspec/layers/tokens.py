"""From images to tokens, and from tokens to one vector."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from archspec.layers.base import Layer, need
from archspec.shapes import Features, Image, Shape, ShapeError, Sizes, Tokens


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
        return Tokens((shape.height // self.patch) * (shape.width // self.patch), self.width)


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
        need(shape, Image, Tokens)
        if self.by == "first" and isinstance(shape, Image):
            raise ShapeError(f"expected tokens, found {shape}")
        return Features(shape.channels)


class Flatten(Layer):
    """All elements of a sample as one vector."""

    kind: Literal["flatten"] = "flatten"

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        total = 1
        for size in shape.sizes:
            total *= size
        return Features(total)
