"""The invertible maps of one stream. What they compute is built in `compiler.functions`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypeAliasType

from archspec.onekey import Kind, OneKey, kinds_of
from archspec.shapes import Image, Shape, ShapeError, elements


class InvertibleMap(Kind):
    """One map."""

    def infer(self, shape: Shape) -> Shape:
        """The shape after the map. Raises `ShapeError`."""
        return shape


class ActNorm(InvertibleMap):
    """A learned scale and shift per channel; the scale stays within e^±3 (Kingma and Dhariwal
    2018)."""

    kind: Literal["actnorm"] = "actnorm"


class InvertibleLinear(InvertibleMap):
    """An invertible linear map of the channels, W = P·L·U; on images, a 1×1 convolution (Kingma
    and Dhariwal 2018). The diagonal of U stays within e^±3."""

    kind: Literal["invertible_linear"] = "invertible_linear"

    def infer(self, shape: Shape) -> Shape:
        if shape.channels > 2**12:
            raise ShapeError(f"{shape.channels} channels are too many for `invertible_linear`")
        return shape


class Squeeze(InvertibleMap):
    """Space to depth: each square of pixels becomes channels of one pixel (Dinh et al. 2017)."""

    kind: Literal["squeeze"] = "squeeze"

    def infer(self, shape: Shape) -> Shape:
        if not isinstance(shape, Image) or shape.height % 2 or shape.width % 2:
            raise ShapeError(f"expected an image of even sides, found {shape}")
        return Image(4 * shape.channels, shape.height // 2, shape.width // 2)


class Unsqueeze(InvertibleMap):
    """Depth to space: the inverse of `squeeze`."""

    kind: Literal["unsqueeze"] = "unsqueeze"

    def infer(self, shape: Shape) -> Shape:
        if not isinstance(shape, Image) or shape.channels % 4 or elements(shape) > 2**40:
            raise ShapeError(f"expected an image of 4·n channels, found {shape}")
        return Image(shape.channels // 4, 2 * shape.height, 2 * shape.width)


AnyMap = ActNorm | InvertibleLinear | Squeeze | Unsqueeze
AS_MAP = dict.fromkeys(
    (kind for model in (ActNorm, InvertibleLinear) for kind in kinds_of(model)),
    "an invertible map: it is declared under `maps`, and used as `x = W(x)`",
)
"""What is said of the kind of a map that is no layer too."""
MapEntry = TypeAliasType(
    "MapEntry",
    Annotated[
        Annotated[AnyMap, Field(discriminator="kind")], OneKey("invertible map", *AnyMap.__args__)
    ],
)
