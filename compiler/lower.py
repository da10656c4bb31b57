"""Expressions into functions of tensors."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from archspec.expressions import (
    LOG_ABS,
    SUM_OVER,
    Binary,
    Call,
    Expression,
    Name,
    Negative,
    Number,
    Power,
    add,
    divide,
    multiply,
    subtract,
)
from compiler.engine import Values
from compiler.shapes import chunk_numbers, zeros_channels
from compiler.volumes import log_abs, sum_over

Evaluated = Tensor | float
Evaluator = Callable[[Mapping[str, Tensor]], Evaluated]

_OPERATORS: Mapping[str, Callable[[Evaluated, Evaluated], Evaluated]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}


def _exp(x: float) -> float:
    """As torch does it: infinite where it overflows."""
    return math.exp(x) if x < 709 else math.inf


_ELEMENTWISE: Mapping[str, tuple[Callable[[Tensor], Tensor], Callable[[float], float]]] = {
    "exp": (torch.exp, _exp),
    "tanh": (torch.tanh, math.tanh),
    "sigmoid": (torch.sigmoid, lambda x: 1 / (1 + _exp(-x))),
    "sin": (torch.sin, math.sin),
    "cos": (torch.cos, math.cos),
    "relu": (torch.relu, lambda x: max(x, 0.0)),
    LOG_ABS: (log_abs, lambda x: math.log(abs(x))),
}


def lower(expression: Expression, channel_dimension: int = -1) -> Evaluator:
    """A function from named tensors to the expression's value.

    Constants must be folded in already (`archspec.expressions.fold`). Channels, which `concat`
    and `chunk` work along, are the dimension `channel_dimension`.
    """
    if isinstance(expression, Number):
        value = float(expression.value)
        return lambda values: value
    if isinstance(expression, Name):
        name = expression.name
        return lambda values: values[name]
    if isinstance(expression, Negative):
        operand = lower(expression.operand, channel_dimension)
        return lambda values: -operand(values)
    if isinstance(expression, Power):
        base, exponent = lower(expression.base, channel_dimension), expression.exponent
        return lambda values: base(values) ** exponent
    if isinstance(expression, Binary):
        apply = _OPERATORS[expression.operator]
        left = lower(expression.left, channel_dimension)
        right = lower(expression.right, channel_dimension)
        return lambda values: apply(left(values), right(values))
    return _lower_call(expression, channel_dimension)


def _lower_call(call: Call, channel_dimension: int) -> Evaluator:
    if call.function == "chunk":
        part, count = chunk_numbers(call)
        whole = lower(call.arguments[0], channel_dimension)
        return lambda values: torch.chunk(_tensor(whole(values)), count, channel_dimension)[
            part - 1
        ]
    if call.function == "zeros":
        channels = zeros_channels(call)
        return lambda values: _zeros(values["input"], channels, channel_dimension)
    parts = [lower(argument, channel_dimension) for argument in call.arguments]
    if call.function == SUM_OVER:
        value, stream = parts
        return lambda values: sum_over(value(values), _tensor(stream(values)))
    if call.function == "concat":
        return lambda values: torch.cat([_tensor(p(values)) for p in parts], channel_dimension)
    (apply, apply_to_number), argument = _ELEMENTWISE[call.function], parts[0]

    def evaluate(values: Mapping[str, Tensor]) -> Evaluated:
        value = argument(values)
        return apply(value) if isinstance(value, Tensor) else apply_to_number(value)

    return evaluate


def _zeros(like: Tensor, channels: int, channel_dimension: int) -> Tensor:
    sizes = list(like.shape)
    sizes[channel_dimension] = channels
    return like.new_zeros(sizes)


def _tensor(value: Evaluated) -> Tensor:
    assert isinstance(value, Tensor)
    return value


def lower_tensor(expression: Expression, channel_dimension: int = -1) -> Callable[[Values], Tensor]:
    """Like `lower`, where shapes say that the value is a tensor."""
    evaluate = lower(expression, channel_dimension)
    return lambda values: _tensor(evaluate(values))


def lower_stream(expression: Expression, like: str) -> Callable[[Values], Tensor]:
    """Like `lower`, for a value that a stream takes: a number fills the shape of `like`."""
    evaluate = lower(expression)
    if isinstance(expression, Name):
        # A tensor of its own: the engine tells parameters and side inputs by what they are.
        name = expression.name
        return lambda values: _whole(values[name].view_as(values[name]), values[like])

    def evaluated(values: Values) -> Tensor:
        value, shaped = evaluate(values), values[like]
        if not isinstance(value, Tensor):
            return torch.full_like(shaped, value)
        return _whole(value, shaped)

    return evaluated


def _whole(value: Tensor, like: Tensor) -> Tensor:
    return value if value.shape == like.shape else value.expand_as(like)


def affine(scale: Expression, target: str, rest: Expression) -> Expression:
    """scale*target + rest: what every strategy evaluates going forward."""
    return add(multiply(scale, Name(target)), rest)


def affine_inverse(scale: Expression, target: str, rest: Expression) -> Expression:
    """(target - rest)/scale: the old value of a stream from its new one."""
    return divide(subtract(Name(target), rest), scale)
