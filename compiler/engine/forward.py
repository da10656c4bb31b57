"""The forward pass: steps run as they come, on streams of one layout and one dtype."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from compiler.engine.steps import Layer, Map, Permute, Step, Update, Values
from compiler.exact import Exact, ExactMap, StraightThrough
from compiler.information import Information


class Direct:
    """Evaluates calls as they come: for stored activations, and where no gradient is wanted."""

    def __init__(
        self, layout: torch.memory_format, dtype: torch.dtype, information: Information
    ) -> None:
        self.layout, self.dtype, self.information = layout, dtype, information

    def arithmetic(self, step: Step) -> None:
        """Called before a step's calls and the arithmetic around them."""

    def call(
        self, step: Step, index: int, function: nn.Module, arguments: Sequence[Tensor]
    ) -> Tensor:
        """The result of one call, in the dtype of the streams."""
        return invoke(function, arguments, self.dtype)

    @torch.no_grad()
    def exactly(self, value: Tensor, compute: Callable[[Information], Tensor]) -> Tensor:
        """What exact arithmetic makes of a stream's old value."""
        return compute(self.information)

    @torch.no_grad()
    def map_exactly(self, step: Map, map: nn.Module, value: Tensor) -> Tensor:
        """What a map makes of a stream, exactly."""
        assert step.grid is not None
        return exact_map(map).advance(value, step.grid, self.information)


def invoke(function: nn.Module, arguments: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Call a residual function; its result takes the dtype of the streams (under autocast the
    function computes in half precision, and streams stay as they are)."""
    result: Tensor = function(*arguments)
    return result.to(dtype)


def execute(step: Step, layer: Layer, values: Values, tracer: Direct) -> None:
    """Run one step forward, in place on `values`."""
    if isinstance(step, Permute):
        step.apply(values)
        return
    tracer.arithmetic(step)
    if isinstance(step, Map):
        old, map = values[step.target], layer.functions[step.map]
        mapped = tracer.call(step, 0, map, [old])
        if step.grid is not None:
            new = tracer.map_exactly(step, map, old.detach())
            mapped = StraightThrough.apply(new, mapped, 1.0, new)
        values[step.target] = settled(mapped, tracer.layout)
        return
    scope = dict(values)
    for name in step.coefficients:
        scope[name] = layer.coefficients[name]()
    for index, call in enumerate(step.calls):
        arguments = [argument(scope) for argument in call.arguments]
        scope[call.result] = tracer.call(step, index, layer.functions[call.function], arguments)
    value = step.forward(scope) if step.exact is None else advanced(step.exact, step, scope, tracer)
    values[step.target] = settled(value, tracer.layout)


def advanced(exact: Exact, step: Update, scope: Values, tracer: Direct) -> Tensor:
    """The new value of an exact update, with the gradients of its formula."""
    old, scale, change = scope[step.target], exact.scale(scope), exact.rest(scope)
    new = tracer.exactly(old, partial(exact.form.advance, old, scale, change, exact.grid))
    value: Tensor = StraightThrough.apply(new, old, scale, change)
    return value


def exact_map(map: nn.Module) -> ExactMap:
    """A map that is computed exactly, as one."""
    assert isinstance(map, ExactMap)
    return map


def run(
    layers: Sequence[Layer],
    values: Values,
    draws: Sequence[Values],
    information: Information | None = None,
    first: int = 0,
) -> Values:
    """Run layers forward as plain autograd would. `draws` holds each layer's drawn coefficients;
    what exact updates lose goes into `information`; `first` is the number of the first layer."""
    direct = Direct(layout_of(values), dtype_of(values), information or Information(keeps=False))
    values = laid_out(values, direct.layout)
    streams = tuple(values)
    for number, (layer, drawn) in enumerate(zip(layers, draws, strict=True), first):
        values.update(drawn)
        for step in layer.steps:
            execute(step, layer, values, direct)
            watch(step, number, values, direct.information)
        values = {name: values[name] for name in streams}
    return values


def watch(step: Step, layer: int, values: Values, information: Information) -> None:
    """Take down how large an exact update has made its stream."""
    if isinstance(step, Permute):
        return
    if step.grid if isinstance(step, Map) else step.exact or step.rounds:
        information.watch(layer, step.target, values[step.target])


def layout_of(values: Values) -> torch.memory_format:
    """The memory layout that all streams of a stage keep, forward and back (convolutions differ
    bitwise between layouts): that of the first stream of images."""
    first = next((value for value in values.values() if value.dim() == 4), None)
    # By strides: a chunk of the channels of such images is not contiguous in either layout.
    if first is not None and first.stride(1) == 1 and first.shape[1] > 1 and first.stride(3) > 1:
        return torch.channels_last
    return torch.contiguous_format


def dtype_of(values: Values) -> torch.dtype:
    """The dtype of the streams: that of the first, and streams come first."""
    return next(iter(values.values())).dtype


def laid_out(values: Values, layout: torch.memory_format) -> Values:
    """Every stream in one memory layout."""
    return {name: settled(value, layout) for name, value in values.items()}


def settled(value: Tensor, layout: torch.memory_format) -> Tensor:
    """A stream in a memory layout; only images (B, C, H, W) have a choice."""
    if value.dim() != 4:
        return value.contiguous()
    return value.contiguous(memory_format=layout)
