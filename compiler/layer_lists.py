"""Lists of layers, those of a stem, a transition or a head, one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from archspec.layers import Layer
from archspec.shapes import Shape, Sizes
from archspec.tree import Path
from compiler.places import Mistakes
from compiler.plan import LayerPlan
from compiler.shapes import BadLayer, ModuleNotAllowedError, infer_layers


def plain_layers(
    layers: Sequence[Layer],
    shape: Shape | None,
    known: Mapping[str, int],
    path: Path,
    packages: tuple[str, ...],
    mistakes: Mistakes,
) -> tuple[tuple[LayerPlan, ...], Shape | None]:
    """The layers of a stem, a transition or a head at `path`, and the shape after them; None for it
    after noting a mistake, or where the shape before them is not known."""
    if shape is None:
        return (), None

    def sizes(before: Shape) -> Sizes:
        return Sizes.of(channels=before.channels, **known)

    found = infer_layers(layers, (shape,), sizes, packages)
    if isinstance(found, BadLayer):
        note_bad_layer(layers, found, path, mistakes)
        return (), None
    return found


def note_bad_layer(layers: Sequence[Layer], bad: BadLayer, path: Path, mistakes: Mistakes) -> None:
    """Note why a list of layers cannot be, at the layer that does not fit."""
    place = (*path, bad.index, *bad.inside)
    if isinstance(bad.error, ModuleNotAllowedError):
        mistakes.value("E404", bad.error.message, place, bad.error.help)
        return
    kind = getattr(_layer_at(layers[bad.index], bad.inside), "kind", "layer")
    message = f"`{kind}` does not fit here: {bad.error.message}"
    mistakes.value("E401", message, place, bad.error.help)


def _layer_at(layer: Layer, inside: Path) -> Layer:
    """The layer at a path of `residual`, a list's name and an index, again and again."""
    for name, index in zip(inside[1::3], inside[2::3], strict=True):
        layer = getattr(layer, str(name))[index]
    return layer
