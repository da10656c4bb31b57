"""Normalisation."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from archspec.layers.base import Layer, need
from archspec.shapes import Features, Image, Shape, ShapeError, Sizes, Video


class LayerNorm(Layer):
    """Normalise each token over its channels; learned scale and shift."""

    kind: Literal["layer_norm"] = "layer_norm"
    eps: float = Field(1e-6, gt=0)

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        if isinstance(shape, (Image, Video)):
            raise ShapeError(
                f"expected tokens or features, found {shape}", "use group_norm on images"
            )
        return shape


class BatchNorm(Layer):
    """Normalise each channel over the batch; running statistics in evaluation."""

    kind: Literal["batch_norm"] = "batch_norm"
    eps: float = Field(1e-5, gt=0)
    momentum: float = Field(0.1, gt=0, le=1)

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        need(shape, Image, Video, Features)
        return shape


class GroupNorm(Layer):
    """Normalise groups of channels of an image."""

    kind: Literal["group_norm"] = "group_norm"
    shorthand: ClassVar[str] = "groups"
    groups: int = Field(ge=1)
    eps: float = Field(1e-5, gt=0)

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        need(shape, Image, Video)
        if shape.channels % self.groups:
            raise ShapeError(f"{self.groups} groups do not divide {shape.channels} channels")
        return shape
