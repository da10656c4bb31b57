"""Updates in the one form that every backward strategy evaluates: `scale*target + rest`."""

from __future__ import annotations

from collections.abc import Collection

from archspec.expressions import (
    DERIVED,
    ELEMENTWISE,
    ONE,
    STRUCTURAL,
    ZERO,
    Assign,
    Binary,
    Expression,
    Let,
    Name,
    Negative,
    Permute,
    Statement,
    add,
    divide,
    multiply,
    names,
    negative,
    subtract,
    transform,
)
from archspec.expressions import Call as CallExpression
from compiler.plan import Affine, Call, General, Mapped, Permutation, Step, Temporary

BUILTIN = frozenset((*ELEMENTWISE, *STRUCTURAL, *DERIVED))


class NotAffineError(ValueError):
    """An update that is not linear in its target; `part` is where it is not."""

    def __init__(self, part: Expression) -> None:
        super().__init__()
        self.part = part


def lift_calls(expression: Expression) -> tuple[Expression, tuple[Call, ...]]:
    """Take the calls of residual functions out of an expression.

    Each call gets a name, which stands in its place: `h*F(x)` becomes `h*F@0` and the call
    `F@0 = F(x)`. Calls are listed in the order of evaluation, inner ones first.
    """
    calls: list[Call] = []

    def lift(part: Expression) -> Expression:
        if not isinstance(part, CallExpression) or part.function in BUILTIN:
            return part
        result = f"{part.function}@{len(calls)}"
        calls.append(Call(result, part.function, part.arguments))
        return Name(result, part.at)

    return transform(expression, lift), tuple(calls)


def unlift(expression: Expression, calls: tuple[Call, ...]) -> Expression:
    """Put calls back in place of their names."""
    called = {call.result: call for call in calls}

    def put_back(part: Expression) -> Expression:
        if not isinstance(part, Name) or part.name not in called:
            return part
        call = called[part.name]
        arguments = tuple(unlift(argument, calls) for argument in call.arguments)
        return CallExpression(call.function, arguments, part.at)

    return transform(expression, put_back)


def map_of(statement: Statement, maps: Collection[str]) -> str | None:
    """The map of an update `x = W(x)`; None for any other."""
    if not isinstance(statement, Assign) or not isinstance(statement.value, CallExpression):
        return None
    call = statement.value
    is_map = call.function in maps and call.arguments == (Name(statement.target),)
    return call.function if is_map else None


def canonical(statement: Statement, maps: Collection[str] = ()) -> Step:
    """The step that a statement stands for; `Affine` wherever it is linear in its target. `maps`
    names the invertible maps."""
    if isinstance(statement, Permute):
        return Permutation(statement.targets, statement.sources, statement.text)
    if map := map_of(statement, maps):
        assert isinstance(statement, Assign)
        return Mapped(statement.target, map, statement.text)
    value, calls = lift_calls(statement.value)
    if isinstance(statement, Let):
        return Temporary(statement.name, value, calls, statement.text)
    if statement.target not in call_reads(calls):
        try:
            scale, rest = split(value, statement.target)
        except NotAffineError:
            pass
        else:
            return Affine(statement.target, scale, rest, calls, statement.text)
    return General(statement.target, value, calls, statement.text)


def call_reads(calls: tuple[Call, ...]) -> frozenset[str]:
    """The names that the arguments of calls read."""
    return frozenset(name for call in calls for a in call.arguments for name in names(a))


def reads(step: Step) -> frozenset[str]:
    """The streams, temporaries and constants that a step reads, its target's old value aside."""
    if isinstance(step, Permutation):
        return frozenset(step.sources)
    if isinstance(step, Mapped):
        return frozenset()
    own = names(step.scale) | names(step.rest) if isinstance(step, Affine) else names(step.value)
    return frozenset(name for name in own | call_reads(step.calls) if "@" not in name)


def split(expression: Expression, target: str) -> tuple[Expression, Expression]:
    """`(scale, rest)` with expression = scale*target + rest. Raises `NotAffineError`."""
    if isinstance(expression, Name) and expression.name == target:
        return ONE, ZERO
    if target not in names(expression):
        return ZERO, expression
    if isinstance(expression, Negative):
        scale, rest = split(expression.operand, target)
        return negative(scale), negative(rest)
    if isinstance(expression, Binary):
        return _split_binary(expression, target)
    raise NotAffineError(expression)


def _split_binary(expression: Binary, target: str) -> tuple[Expression, Expression]:
    left, right = expression.left, expression.right
    if expression.operator in "+-":
        combine = add if expression.operator == "+" else subtract
        (left_scale, left_rest), (right_scale, right_rest) = (
            split(left, target),
            split(right, target),
        )
        return combine(left_scale, right_scale), combine(left_rest, right_rest)
    if target in names(left) and target in names(right):
        raise NotAffineError(expression)
    if expression.operator == "/":
        if target in names(right):
            raise NotAffineError(expression)
        scale, rest = split(left, target)
        return divide(scale, right), divide(rest, right)
    if target in names(left):
        scale, rest = split(left, target)
        return multiply(scale, right), multiply(rest, right)
    scale, rest = split(right, target)
    return multiply(left, scale), multiply(left, rest)
