"""The log-determinant of a stage's program, derived with its inverse: one more stream.

An update `x = scale*x + rest` multiplies volumes by the product of |scale| over the elements of x.
The sum of the logarithms is a stream of one number a sample, which is added to layer by layer: so
the engine treats it as any other, and its gradient stores no activations either. Permutations and
squeezes keep volumes. Of maps with weights, such as actnorm, the change depends on nothing else,
and is added at the end (`map_log_determinant`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

from archspec.expressions import (
    LOG_ABS,
    LOG_DETERMINANT,
    ONE,
    SUM_OVER,
    ZERO,
    Binary,
    Call,
    Expression,
    Name,
    Negative,
    Number,
    Power,
    add,
    multiply,
    names,
    show,
    subtract,
    transform,
)
from archspec.shapes import Features
from compiler.canonical import call_reads, unlift
from compiler.plan import Affine, StagePlan, Step, StreamPlan, Temporary
from compiler.plan import Call as FunctionCall


def with_log_determinant(plan: StagePlan) -> StagePlan:
    """The plan of an invertible stage with a stream `log_determinant`, (B, 1), behind the others:
    it starts from 0, and ends as the log-determinant of the updates, in nats."""
    assert not plan.obstacles, "a program without an inverse has no determinant"
    steps = [new for number, step in enumerate(plan.steps) for new in _counted(step, number)]
    one = Features(1)
    return replace(
        plan,
        streams=(*plan.streams, StreamPlan(LOG_DETERMINANT, ZERO, one)),
        final=(*plan.final, one),
        steps=tuple(steps),
    )


def _counted(step: Step, number: int) -> Iterator[Step]:
    """A step, and what it adds to the log-determinant."""
    if not isinstance(step, Affine) or step.scale == ONE:
        yield step
        return
    scale, rest, calls = step.scale, step.rest, step.calls
    while needed := _needed(scale, calls):  # computed once for both, by itself
        call = needed[0]
        name = f"_{call.function}_{number}_{call.result.partition('@')[2]}"
        text = f"{name} := {show(unlift(Name(call.result), (call,)))}"
        yield Temporary(name, Name(call.result), (call,), text)
        scale, rest = (_renamed(value, call.result, name) for value in (scale, rest))
        others = (other for other in calls if other != call)
        calls = tuple(_reading(other, call.result, name) for other in others)
    yield replace(step, scale=scale, rest=rest, calls=calls)
    volume = Call(SUM_OVER, (log_size(scale), Name(step.target)))
    yield Affine(LOG_DETERMINANT, ONE, volume, (), f"{LOG_DETERMINANT} += {show(volume)}")


def _renamed(value: Expression, old: str, new: str) -> Expression:
    return transform(value, lambda part: Name(new) if part == Name(old) else part)


def _reading(call: FunctionCall, old: str, new: str) -> FunctionCall:
    return replace(call, arguments=tuple(_renamed(a, old, new) for a in call.arguments))


def log_size(value: Expression) -> Expression:
    """log|value|, without the exponentials that it is a logarithm of."""
    if isinstance(value, Negative):
        return log_size(value.operand)
    if isinstance(value, Power):
        return multiply(Number(Fraction(value.exponent)), log_size(value.base))
    if isinstance(value, Binary) and value.operator in "*/":
        combine = add if value.operator == "*" else subtract
        return combine(log_size(value.left), log_size(value.right))
    if isinstance(value, Call) and value.function == "exp":
        return value.arguments[0]
    return Call(LOG_ABS, (value,))


def _needed(value: Expression, calls: tuple[FunctionCall, ...]) -> tuple[FunctionCall, ...]:
    """The calls that a value reads, and those that their arguments read, in order."""
    wanted, found = set(names(value)), []
    for call in reversed(calls):
        if call.result in wanted:
            found.append(call)
            wanted |= call_reads((call,))
    return tuple(reversed(found))
