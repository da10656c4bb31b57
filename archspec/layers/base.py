"""What all layers have in common."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from archspec.onekey import Kind
from archspec.shapes import Shape, ShapeError, Sizes, window

Size = Annotated[int | str, Field(description="A whole number, or an expression: `4*channels`.")]
Rate = Annotated[
    float | int | str, Field(description="A rate in [0, 1), or an expression: `0.1*layer/depth`.")
]
Extent = Annotated[int, Field(ge=1, le=1024)]
Extents = Extent | Annotated[tuple[Extent, ...], Field(strict=False, min_length=2, max_length=3)]
"""One number for every axis of a grid, or one for each."""
Padding = (
    Annotated[int, Field(ge=0, le=1024)]
    | Annotated[
        tuple[Annotated[int, Field(ge=0, le=1024)], ...],
        Field(strict=False, min_length=2, max_length=3),
    ]
    | None
)
Activation = Literal["relu", "gelu", "silu", "tanh", "softplus"]


def need(shape: Shape, *wanted: type[Shape]) -> None:
    """Raise `ShapeError` for a shape of another kind."""
    if not isinstance(shape, wanted):
        *others, last = (w.__name__.lower() for w in wanted)
        names = f"{', '.join(others)} or {last}" if others else last
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


def on_axes(written: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    """A number for each axis of a grid. Raises `ShapeError` where they are not as many."""
    if isinstance(written, int):
        return (written,) * axes
    if len(written) != axes:
        numbers = ", ".join(map(str, written))
        raise ShapeError(f"[{numbers}] has {len(written)} numbers, and the grid {axes} axes")
    return written


def windows(
    grid: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...], pad: tuple[int, ...]
) -> tuple[int, ...]:
    """The grid that a sliding kernel leaves. Raises `ShapeError`."""
    after = tuple(map(window, grid, kernel, stride, pad))
    if min(after) < 1:
        sides = kernel if len(set(kernel)) > 1 else kernel[:1]
        small, large = ("×".join(map(str, each)) for each in (sides, grid))
        raise ShapeError(f"a kernel of {small} is larger than the padded {large}")
    return after


def padded(written: Padding, kernel: tuple[int, ...]) -> tuple[int, ...]:
    """The padding on each side of every axis: half the kernel where none is written."""
    if written is None:
        return tuple(side // 2 for side in kernel)
    return on_axes(written, len(kernel))
