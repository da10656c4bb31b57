"""Two lists of layers side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from archspec.layers.base import Layer

if TYPE_CHECKING:
    from archspec.layers import LayerEntry


class Residual(Layer):
    """x → shortcut(x) + body(x). The compiler infers the shapes of both."""

    kind: Literal["residual"] = "residual"
    shorthand: ClassVar[str] = "body"
    body: Annotated[tuple[LayerEntry, ...], Field(strict=False, min_length=1, max_length=64)]
    shortcut: Annotated[tuple[LayerEntry, ...], Field(strict=False, max_length=64)] = ()
    """The input itself, if it has no layers."""
