"""Attention."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from archspec.layers.base import Layer, Rate, need
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
