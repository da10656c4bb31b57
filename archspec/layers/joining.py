"""Layers that take more than one of a function's arguments."""

from __future__ import annotations

from typing import Literal

from archspec.layers.base import Joining, Layer, need
from archspec.shapes import Features, Shape, ShapeError, Sizes, with_channels


class Concat(Joining):
    """Join a function's arguments along their channels."""

    kind: Literal["concat"] = "concat"

    def join(self, shapes: tuple[Shape, ...], sizes: Sizes) -> Shape:
        return concatenated(shapes)


def concatenated(shapes: tuple[Shape, ...]) -> Shape:
    """The shape of tensors joined along their channels. Raises `ShapeError`."""
    first = shapes[0]
    if any(with_channels(s, first.channels) != first for s in shapes):
        raise ShapeError(f"cannot concatenate {', '.join(map(str, shapes))}")
    return with_channels(first, sum(s.channels for s in shapes))


class Add(Joining):
    """Add a function's arguments."""

    kind: Literal["add"] = "add"

    def join(self, shapes: tuple[Shape, ...], sizes: Sizes) -> Shape:
        if len(set(shapes)) > 1:
            raise ShapeError(f"cannot add {', '.join(map(str, shapes))}")
        return shapes[0]


class Modulate(Layer):
    """Scale and shift every channel by linear maps of the function's next argument, a vector
    (Perez et al. 2018). The maps start at zero, so that at first nothing changes."""

    kind: Literal["modulate"] = "modulate"

    def takes(self, waiting: int) -> int:
        return 1

    def join(self, shapes: tuple[Shape, ...], sizes: Sizes) -> Shape:
        need(shapes[1], Features)
        return shapes[0]
