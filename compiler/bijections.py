"""Layers, starts and outputs that can be undone: they keep all that reaches them.

Torch is not known here.
"""

from __future__ import annotations

from archspec.expressions import LOG_DETERMINANT, Call, Expression, Name
from archspec.layers import Flatten, SqueezeLayer, UnsqueezeLayer
from archspec.maps import ActNorm, InvertibleLinear
from archspec.shapes import channel_dimension, elements
from compiler.facts import Parts
from compiler.plan import StagePlan
from compiler.shapes import chunk_numbers

INVERTIBLE_LAYERS = (Flatten, SqueezeLayer, UnsqueezeLayer)
INPUT = Name("input")


def parts_of(plan: StagePlan) -> Parts:
    """How the streams of a stage are its input and its output."""
    names = [stream.name for stream in plan.streams]
    channels = {n: shape.channels for n, shape in zip(names, plan.final, strict=True)}
    counts = LOG_DETERMINANT in names
    weighted = (m for m in plan.maps if isinstance(m.map, (ActNorm, InvertibleLinear)))
    return Parts(
        streams=tuple(names),
        input=tuple(names[part] for part in whole_input(plan) or ()),
        input_dimension=channel_dimension(plan.input),
        output={name: channels[name] for name in names_in_output(plan)},
        output_dimension=channel_dimension(plan.result),
        log_determinant=LOG_DETERMINANT if counts else "",
        positions={m.name: elements(m.before) // m.before.channels for m in weighted},
    )


def names_in_output(plan: StagePlan) -> tuple[str, ...]:
    """The streams that the output is, each once, one behind the other; none where it is an
    expression of another kind."""
    output = plan.output
    if isinstance(output, Name):
        return (output.name,)
    if not isinstance(output, Call) or output.function != "concat":
        return ()
    names = [part.name for part in output.arguments if isinstance(part, Name)]
    return tuple(names) if len(set(names)) == len(output.arguments) else ()


def whole_input(plan: StagePlan) -> tuple[int, ...] | None:
    """The numbers of the streams that are a stage's input before the first layer, one behind the
    other. None where parts of it are in no stream as they stand."""
    starts = [stream.start for stream in plan.streams]
    if INPUT in starts:
        return (starts.index(INPUT),)
    parts = {_part(start): index for index, start in enumerate(starts)}
    for count in sorted({part[1] for part in parts if part is not None}):
        wanted = [(number, count) for number in range(1, count + 1)]
        if parts.keys() >= set(wanted):
            return tuple(parts[each] for each in wanted)
    return None


def _part(start: Expression) -> tuple[int, int] | None:
    """Which chunk of the input, of how many, a stream starts as, if it does."""
    if isinstance(start, Call) and start.function == "chunk" and start.arguments[0] == INPUT:
        return chunk_numbers(start)
    return None
