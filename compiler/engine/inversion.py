"""The inverse program: from the streams after the last layer to those before the first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from compiler.engine.errors import ReplayError
from compiler.engine.forward import dtype_of, exact_map, invoke, laid_out, layout_of, settled
from compiler.engine.modules import uncounted
from compiler.engine.steps import Layer, Map, Permute, Update, Values, definition_of
from compiler.information import Information


def invert(
    layers: Sequence[Layer],
    values: Values,
    draws: Sequence[Values],
    information: Information | None = None,
) -> Values:
    """Run the inverse program: from the streams after the last layer to those before the first.
    Exact updates read `information`, and leave it as it is."""
    kept = information.copy() if information else Information()
    try:
        values = unwind(layers, values, draws, kept)
    except KeyError as error:  # of a shape, or of a stream
        raise ReplayError(OTHER_INFORMATION) from error
    if not kept.is_spent:
        raise ReplayError(OTHER_INFORMATION)
    return values


OTHER_INFORMATION = (
    "what exact arithmetic has kept does not belong to these streams: it was not all read again on "
    "the way back. Give `inverse` the outputs, the draws and the information of one forward pass"
)


def unwind(
    layers: Sequence[Layer], values: Values, draws: Sequence[Values], kept: Information
) -> Values:
    """As `invert`; what exact updates read leaves `kept`."""
    layout = layout_of(values)
    values = laid_out(values, layout)
    streams = tuple(values)
    for layer, drawn in zip(reversed(layers), reversed(draws), strict=True):
        values.update(drawn)
        for index in reversed(range(len(layer.steps))):
            _undo(layer, index, values, kept, layout)
        values = {name: values[name] for name in streams}
    return values


def _undo(
    layer: Layer, index: int, values: Values, kept: Information, layout: torch.memory_format
) -> None:
    step = layer.steps[index]
    if isinstance(step, Permute):
        step.undo(values)
    elif isinstance(step, Map):
        inverse = inverse_of(step, layer.functions[step.map], kept)
        values[step.target] = settled(inverse(values[step.target]), layout)
    elif step.is_temporary:
        values.pop(step.target, None)
    else:
        _provide_temporaries(layer, index, values)
        value = recovered(step, _scope(layer, step, values), kept)
        values[step.target] = settled(value, layout)


def recovered(step: Update, scope: Values, kept: Information) -> Tensor:
    """The old value of a step's target."""
    if step.exact is not None:
        return step.exact.retreat(scope, step.target, kept)
    assert step.inverse is not None
    return step.inverse(scope)


def inverse_of(step: Map, map: nn.Module, kept: Information) -> Callable[[Tensor], Tensor]:
    """The inverse of a map; an exact one reads `kept`."""
    if step.grid is not None:
        return partial(exact_map(map).retreat, grid=step.grid, kept=kept)
    inverse: Callable[[Tensor], Tensor] = map.inverse  # type: ignore[assignment]
    return inverse


def _provide_temporaries(layer: Layer, index: int, values: Values) -> None:
    step = layer.steps[index]
    assert isinstance(step, Update)
    for name in step.temporaries:
        if name not in values:
            where, definition = definition_of(layer, name)
            _provide_temporaries(layer, where, values)
            values[name] = definition.forward(_scope(layer, definition, values))


def _scope(layer: Layer, step: Update, values: Values) -> Values:
    """Everything a step reads, its calls evaluated."""
    scope = dict(values)
    for name in step.coefficients:
        scope[name] = layer.coefficients[name]()
    for call in step.calls:
        arguments = [argument(scope) for argument in call.arguments]
        function = uncounted(layer.functions[call.function])
        scope[call.result] = invoke(function, arguments, dtype_of(values))
    return scope
