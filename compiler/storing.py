"""Stages whose last calls store their activations, and whose others come by them in another way.

The last calls are the first that backward needs, while nothing else is rebuilt: what they store is
let go before the others begin. Each saves its replay. Beside torch this file imports the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from compiler.engine.contexts import uncompiled
from compiler.engine.forward import run
from compiler.engine.steps import Layer, Permute, Values, calls_of
from compiler.information import Information


@uncompiled
def run_storing(
    layers: Sequence[Layer],
    values: Values,
    draws: Sequence[Values],
    information: Information | None = None,
    *,
    others: Callable[..., Values],
    stored: int,
    results: int = 0,
) -> Values:
    """Run layers, with the activations of their last `stored` calls stored; `others` runs what
    comes before them, and keeps what is left of the last `results` results."""
    information = information or Information()
    number, index = cut(layers, stored)
    layer = layers[number]
    if index:
        before = [*layers[:number], replace(layer, steps=layer.steps[:index])]
    else:
        before = list(layers[:number])
    rest = [replace(layer, steps=layer.steps[index:]), *layers[number + 1 :]]
    if before:
        kept = max(0, results - len(calls_of(rest)))
        values = others(before, values, draws[: len(before)], information, results=kept)
    return run(rest, values, draws[number:], information, number)


def cut(layers: Sequence[Layer], stored: int) -> tuple[int, int]:
    """The layer, and the step in it, with which the last `stored` calls begin, or as many of them
    as can be without parting a temporary from where it is used."""
    left, best = stored, (len(layers) - 1, len(layers[-1].steps))
    for number in range(len(layers) - 1, -1, -1):
        layer = layers[number]
        for index in range(len(layer.steps) - 1, -1, -1):
            step = layer.steps[index]
            left -= 0 if isinstance(step, Permute) else len(step.calls)
            if left < 0:
                return best
            if _is_whole(layer, index):
                best = (number, index)
            if left == 0 and best == (number, index):
                return best
    return best


def _is_whole(layer: Layer, index: int) -> bool:
    """Whether no step from this one on reads a temporary of an earlier one."""
    earlier = {s.target for s in layer.steps[:index] if not isinstance(s, Permute)}
    return not any(
        name in earlier
        for step in layer.steps[index:]
        if not isinstance(step, Permute)
        for name in step.temporaries
    )
