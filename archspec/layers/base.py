"""What all layers have in common."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from archspec.onekey import Kind
from archspec.shapes import Shape, ShapeError, Sizes

Size = Annotated[int | str, Field(description="A whole number, or an expression: `4*channels`.")]
Rate = Annotated[
    float | int | str, Field(description="A rate in [0, 1), or an expression: `0.1*layer/depth`.")
]
Activation = Literal["relu", "gelu", "silu", "tanh", "softplus"]


def need(shape: Shape, *wanted: type[Shape]) -> None:
    """Raise `ShapeError` for a shape of another kind."""
    if not isinstance(shape, wanted):
        names = " or ".join(w.__name__.lower() for w in wanted)
        raise ShapeError(f"expected {names}, found {shape}")


class Layer(Kind):
    """One layer."""

    def takes(self, waiting: int) -> int:
        """How many of a function's further arguments, of which `waiting` are left, it takes."""
        del waiting
        return 0

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        """The output shape for an input of `shape`. Raises `ShapeError`."""
        del sizes
        return shape

    def join(self, shapes: tuple[Shape, ...], sizes: Sizes) -> Shape:
        """Like `infer`, for an input and the further arguments that the layer takes."""
        return self.infer(shapes[0], sizes)


class Joining(Layer):
    """A layer that takes all arguments there are."""

    def takes(self, waiting: int) -> int:
        return max(1, waiting)
