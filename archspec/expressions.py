"""The update language as trees: arithmetic on streams. `archspec.parsing` makes them from text.

Decimal constants are kept as fractions, so that `1 - gamma` is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Literal

ELEMENTWISE = ("exp", "tanh", "sigmoid", "sin", "cos", "relu")
"""Functions of one value that the language has built in."""
STRUCTURAL = ("concat", "chunk", "zeros")
"""Functions on whole streams, for `streams:` and `output:`."""
LOG_ABS, SUM_OVER = "log_abs", "sum_over"
DERIVED = (LOG_ABS, SUM_OVER)
"""Functions that derived programs alone have: log|value|; the sum of a value over the elements of
a stream."""
LOG_DETERMINANT = "log_determinant"
"""The stream of a program that counts the change of volumes."""
RESERVED = frozenset(
    {
        *("input", "zeros", "layer", "depth", "progress", LOG_DETERMINANT),
        *ELEMENTWISE,
        *STRUCTURAL,
        *DERIVED,
    }
)


Operator = Literal["+", "-", "*", "/"]
Range = tuple[int, int]


class _Tree:
    """What every kind of expression knows about itself, found once."""

    @cached_property
    def size(self) -> int:
        """How many parts it has, itself counted."""
        assert isinstance(self, Expression)
        return 1 + sum(child.size for child in children(self))

    @cached_property
    def names(self) -> frozenset[str]:
        """The names that it reads; `zeros(n)` has the batch and the grid of `input`."""
        assert isinstance(self, Expression)
        own = {self.name} if isinstance(self, Name) else set()
        if isinstance(self, Call) and self.function == "zeros":
            own = {"input"}
        return frozenset(own.union(*(child.names for child in children(self))))


@dataclass(frozen=True)
class Number(_Tree):
    value: Fraction
    at: Range = field(default=(0, 0), compare=False)


@dataclass(frozen=True)
class Name(_Tree):
    name: str
    at: Range = field(default=(0, 0), compare=False)


@dataclass(frozen=True)
class Call(_Tree):
    function: str
    arguments: tuple[Expression, ...]
    at: Range = field(default=(0, 0), compare=False)


@dataclass(frozen=True)
class Negative(_Tree):
    operand: Expression
    at: Range = field(default=(0, 0), compare=False)


@dataclass(frozen=True)
class Binary(_Tree):
    operator: Operator
    left: Expression
    right: Expression
    at: Range = field(default=(0, 0), compare=False)


@dataclass(frozen=True)
class Power(_Tree):
    base: Expression
    exponent: int
    at: Range = field(default=(0, 0), compare=False)


Expression = Number | Name | Call | Negative | Binary | Power


@dataclass(frozen=True)
class Assign:
    """`target = value`: the stream gets a new version. `x += e` is read as `x = x + e`."""

    target: str
    value: Expression
    text: str


@dataclass(frozen=True)
class Let:
    """`name := value`: a temporary, computed once a layer."""

    name: str
    value: Expression
    text: str


@dataclass(frozen=True)
class Permute:
    """`a, b = b, a`: `targets[i]` gets what `sources[i]` held."""

    targets: tuple[str, ...]
    sources: tuple[str, ...]
    text: str


Statement = Assign | Let | Permute


# Reading trees -----------------------------------------------------------------------------------


def subexpressions(expression: Expression) -> Iterator[Expression]:
    """The expression and everything inside it, outermost first."""
    pending = [expression]
    while pending:
        part = pending.pop()
        yield part
        pending += reversed(children(part))


def children(expression: Expression) -> tuple[Expression, ...]:
    """The direct parts of an expression."""
    if isinstance(expression, Call):
        return expression.arguments
    if isinstance(expression, Negative):
        return (expression.operand,)
    if isinstance(expression, Binary):
        return (expression.left, expression.right)
    if isinstance(expression, Power):
        return (expression.base,)
    return ()


def names(expression: Expression) -> frozenset[str]:
    """The names that an expression reads (functions that it calls not counted)."""
    return expression.names


def calls(expression: Expression) -> tuple[Call, ...]:
    """The calls of residual functions in an expression, in the order of evaluation."""
    builtin = (*ELEMENTWISE, *STRUCTURAL, *DERIVED)
    inner = tuple(call for child in children(expression) for call in calls(child))
    own = isinstance(expression, Call) and expression.function not in builtin
    return (*inner, expression) if own and isinstance(expression, Call) else inner


def transform(expression: Expression, change: Callable[[Expression], Expression]) -> Expression:
    """Rebuild an expression from its leaves up, each part passed through `change`."""
    if isinstance(expression, Call):
        arguments = tuple(transform(a, change) for a in expression.arguments)
        return change(Call(expression.function, arguments, expression.at))
    if isinstance(expression, Negative):
        return change(Negative(transform(expression.operand, change), expression.at))
    if isinstance(expression, Binary):
        left, right = transform(expression.left, change), transform(expression.right, change)
        return change(Binary(expression.operator, left, right, expression.at))
    if isinstance(expression, Power):
        return change(Power(transform(expression.base, change), expression.exponent, expression.at))
    return change(expression)


# Arithmetic on trees ------------------------------------------------------------------------------

ZERO, ONE = Number(Fraction(0)), Number(Fraction(1))
MAX_BITS = 1000
LARGEST = 2**100
"""Of constants and coefficients: float32 holds it."""


def constant(value: Fraction) -> Number:
    """A constant. Raises OverflowError past `LARGEST`, or past `MAX_BITS` bits of numerator or
    denominator, so that towers of powers end early."""
    above, below = value.numerator.bit_length(), value.denominator.bit_length()
    large = above - below >= 100 and abs(value) > LARGEST
    if large or above > MAX_BITS or below > MAX_BITS:
        raise OverflowError("a constant here is too large")
    return Number(value)


def add(left: Expression, right: Expression) -> Expression:
    """left + right, without needless zeros."""
    if isinstance(left, Number) and isinstance(right, Number):
        return constant(left.value + right.value)
    if left == ZERO:
        return right
    if right == ZERO:
        return left
    if isinstance(right, Negative):
        return Binary("-", left, right.operand)
    return Binary("+", left, right)


def negative(operand: Expression) -> Expression:
    """-operand."""
    if isinstance(operand, Number):
        return constant(-operand.value)
    return operand.operand if isinstance(operand, Negative) else Negative(operand)


def subtract(left: Expression, right: Expression) -> Expression:
    """left - right."""
    if isinstance(left, Number) and isinstance(right, Number):
        return constant(left.value - right.value)
    if right == ZERO:
        return left
    if left == ZERO:
        return negative(right)
    if isinstance(right, Negative):
        return add(left, right.operand)
    return Binary("-", left, right)


def multiply(left: Expression, right: Expression) -> Expression:
    """left * right; a negative sign moves outward."""
    if isinstance(left, Number) and isinstance(right, Number):
        return constant(left.value * right.value)
    if ZERO in (left, right):
        return ZERO
    if left == ONE or right == ONE:
        return right if left == ONE else left
    if isinstance(left, Negative):
        return negative(multiply(left.operand, right))
    if isinstance(right, Negative):
        return negative(multiply(left, right.operand))
    if isinstance(left, Number) and left.value == -1:
        return negative(right)
    return Binary("*", left, right)


def divide(left: Expression, right: Expression) -> Expression:
    """left / right. Raises ZeroDivisionError for a constant zero."""
    if isinstance(left, Number) and isinstance(right, Number):
        return constant(left.value / right.value)
    if right == ZERO:
        raise ZeroDivisionError
    if right == ONE or left == ZERO:
        return left
    if isinstance(right, Number) and right.value == -1:
        return negative(left)
    return Binary("/", left, right)


def power(base: Expression, exponent: int) -> Expression:
    """base ** exponent. Raises ZeroDivisionError for 0 to a negative power."""
    if exponent == 0:
        return ONE
    if exponent == 1:
        return base
    return constant(base.value**exponent) if isinstance(base, Number) else Power(base, exponent)


_ARITHMETIC: Mapping[Operator, Callable[[Expression, Expression], Expression]] = {
    "+": add,
    "-": subtract,
    "*": multiply,
    "/": divide,
}


def fold(expression: Expression, values: Mapping[str, Expression]) -> Expression:
    """Put `values` in place of names and do all arithmetic on constants, exactly.

    Raises ArithmeticError where a constant zero divides or a constant grows too large.
    """

    if isinstance(expression, Name):
        return values.get(expression.name, expression)
    if isinstance(expression, Binary):
        left, right = fold(expression.left, values), fold(expression.right, values)
        return _ARITHMETIC[expression.operator](left, right)
    if isinstance(expression, Negative):
        return negative(fold(expression.operand, values))
    if isinstance(expression, Power):
        return power(fold(expression.base, values), expression.exponent)
    if isinstance(expression, Call):
        arguments = tuple(fold(argument, values) for argument in expression.arguments)
        return Call(expression.function, arguments, expression.at)
    return expression


# Printing ----------------------------------------------------------------------------------------

_TIGHT = {"+": 1, "-": 1, "*": 2, "/": 2}


def show(expression: Expression) -> str:
    """The expression as text that parses to it again."""
    return _show(expression, 0)


def showconstant(value: Fraction) -> str:
    """A fraction as a short decimal where that is exact, else as `n/d`."""
    if value.denominator == 1:
        return str(value.numerator)
    decimal = repr(float(value))
    return decimal if Fraction(decimal) == value else f"{value.numerator}/{value.denominator}"


def _show(expression: Expression, outer: int) -> str:
    if isinstance(expression, Number):
        text = showconstant(expression.value)
        level = 2 if "/" in text else 1 if text.startswith("-") else 4
    elif isinstance(expression, Name):
        return expression.name
    elif isinstance(expression, Call):
        return f"{expression.function}({', '.join(map(show, expression.arguments))})"
    elif isinstance(expression, Negative):
        text, level = "-" + _show(expression.operand, 2), 1
    elif isinstance(expression, Power):
        text, level = f"{_show(expression.base, 4)}**{expression.exponent}", 3
    else:
        level = _TIGHT[expression.operator]
        space = " " if level == 1 else ""
        left, right = _show(expression.left, level), _show(expression.right, level + 1)
        text = f"{left}{space}{expression.operator}{space}{right}"
    return f"({text})" if level < outer else text
