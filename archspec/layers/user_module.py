"""A module of the user's own."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from archspec.layers.base import Layer
from archspec.shapes import Shape, ShapeError, Sizes, resized

MODULE_NAME = r"^[A-Za-z_][A-Za-z0-9_]{0,79}(\.[A-Za-z_][A-Za-z0-9_]{0,79}){1,15}$"


class UserModule(Layer):
    """A module of the user's own: `module: package.Class`. Its packages must be allowed from
    outside the spec, since importing one runs its code."""

    kind: Literal["module"] = "module"
    shorthand: ClassVar[str] = "name"
    name: Annotated[str, StringConstraints(pattern=MODULE_NAME)]
    """The class, a `torch.nn.Module`, with the modules that it is in."""
    arguments: dict[str, bool | int | float | str] = Field({}, max_length=64)
    """What the class is called with."""
    out: tuple[int, ...] | None = Field(None, strict=False, min_length=1, max_length=4)
    """The sizes of one sample's result; as large as the input by default."""

    def takes(self, waiting: int) -> int:
        return waiting

    def join(self, shapes: tuple[Shape, ...], sizes: Sizes) -> Shape:
        if self.out is None:
            return shapes[0]
        if len(self.out) != len(shapes[0].sizes) or min(self.out) < 1 or max(self.out) > 2**20:
            raise ShapeError(f"`out` is as many sizes as {shapes[0]} has, each from 1 to {2**20}")
        return resized(shapes[0], self.out)
