"""The update language: arithmetic on streams, parsed from text into a small tree.

Python's own grammar is used (`ast.parse` on the text, never `eval`); a whitelist turns its nodes
into the six kinds below. Decimal constants are kept as fractions, so that `1 - gamma` is exact.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property, lru_cache
from keyword import iskeyword
from typing import Literal

MAX_LENGTH = 1000
MAX_EXPONENT = 16
MAX_DIGITS = 310
MAX_NESTING = 60

ELEMENTWISE = ("exp", "tanh", "sigmoid", "sin", "cos")
"""Functions of one value that the language has built in."""
STRUCTURAL = ("concat", "chunk")
"""Functions on whole streams, for `streams:` and `output:`."""
RESERVED = frozenset({"input", "zeros", "layer", "depth", "progress", *ELEMENTWISE, *STRUCTURAL})

COMMA = "inside { } or [ ], a text with a comma in it is written in quotes"
"""What to do where YAML has cut a text in two."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}\Z")
_ODD = re.compile(r"[^\t -~]|[#;\\]")
_LET = re.compile(r"\s*([^\W\d]\w*)\s*:=")

Operator = Literal["+", "-", "*", "/"]
Range = tuple[int, int]


class ExpressionError(ValueError):
    """A text that is not of the language; `start` and `end` are offsets into it."""

    def __init__(self, message: str, start: int = 0, end: int = 0, help: str = "") -> None:
        super().__init__(message)
        self.message, self.start, self.end, self.help = message, start, end, help


class _Tree:
    """What every kind of expression knows about itself, found once."""

    @cached_property
    def size(self) -> int:
        """How many parts it has, itself counted."""
        assert isinstance(self, Expression)
        return 1 + sum(child.size for child in children(self))

    @cached_property
    def names(self) -> frozenset[str]:
        """The names that it reads."""
        assert isinstance(self, Expression)
        return frozenset(e.name for e in subexpressions(self) if isinstance(e, Name))


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

_OPERATORS: Mapping[type[ast.operator], Operator] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
}


# Parsing -----------------------------------------------------------------------------------------


@lru_cache(256)  # of one text in many stages, or of a rate in every layer
def parse_expression(text: str) -> Expression:
    """Parse an expression. Raises `ExpressionError`."""
    tree = _parse(text, "eval")
    assert isinstance(tree, ast.Expression)
    return _Converter(text).expression(tree.body)


@lru_cache(256)
def parse_statement(text: str) -> Statement:
    """Parse one update: `x += F(y)`, `x = …`, `k := …` or `a, b = b, a`. Raises
    `ExpressionError`."""
    let = _LET.match(text)
    if let and not text[let.end() :].strip():
        raise ExpressionError("nothing stands after `:=`", 0, len(text))
    if let:
        # Blanks in place of `k :=` keep the offsets right.
        tree = _parse(" " * let.end() + text[let.end() :], "eval")
        assert isinstance(tree, ast.Expression)
        value = _Converter(text).expression(tree.body)
        return Let(_identifier(let[1], let.start(1)), value, text.strip())
    tree = _parse(text, "exec")
    assert isinstance(tree, ast.Module)
    if len(tree.body) != 1:
        raise ExpressionError("expected one update", 0, len(text), "write one update per line")
    return _Converter(text).statement(tree.body[0])


def _parse(text: str, mode: Literal["eval", "exec"]) -> ast.AST:
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"longer than {MAX_LENGTH} characters", 0, len(text))
    if "\n" in text.strip() or "\r" in text.strip():
        raise ExpressionError("one update is one line", 0, len(text))
    if odd := _ODD.search(text.rstrip()):
        message = f"the character {odd[0]!r} is not used in the update language"
        help = "" if odd[0].isascii() else "names are written in ASCII letters, digits and `_`"
        raise ExpressionError(message, odd.start(), odd.end(), help)
    lead = len(text) - len(text.lstrip())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text.strip(), mode=mode)
    except SyntaxError as error:
        at = lead + max(0, (error.offset or 1) - 1)
        problem = error.msg.split(". ")[0]
        help = COMMA if "never closed" in problem else ""
        raise ExpressionError(f"not readable: {problem}", at, at + 1, help) from None
    except (ValueError, RecursionError, MemoryError):
        raise ExpressionError("not readable as an update", 0, len(text)) from None
    for node in ast.walk(tree):
        if isinstance(node, (ast.expr, ast.stmt)):
            node.col_offset += lead
            node.end_col_offset = (node.end_col_offset or 0) + lead
    return tree


def _identifier(name: str, start: int) -> str:
    if name in RESERVED or iskeyword(name) or not _NAME.match(name):
        raise ExpressionError(f"`{name}` cannot be used as a name here", start, start + len(name))
    return name


class _Converter:
    """Python's syntax tree → ours, by a whitelist."""

    def __init__(self, text: str) -> None:
        self.text = text

    def refusal(self, node: ast.AST, message: str, help: str = "") -> ExpressionError:
        start, end = self.range(node)
        return ExpressionError(message, start, end, help)

    def range(self, node: ast.AST) -> Range:
        start = getattr(node, "col_offset", 0)
        return start, getattr(node, "end_col_offset", None) or start + 1

    def statement(self, node: ast.stmt) -> Statement:
        text = self.text.strip()
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
            if isinstance(target, ast.Tuple):
                return self.permutation(target, node.value, text)
            return Assign(self.target(target), self.expression(node.value), text)
        if isinstance(node, ast.AugAssign) and type(node.op) in _OPERATORS:
            name = self.target(node.target)
            value = self.expression(node.value)
            old = Name(name, self.range(node.target))
            operator = _OPERATORS[type(node.op)]
            return Assign(name, Binary(operator, old, value, self.range(node)), text)
        raise self.refusal(
            node, "not an update", "an update is `x = …`, `x += …`, `k := …` or `a, b = b, a`"
        )

    def target(self, node: ast.expr) -> str:
        if not isinstance(node, ast.Name):
            raise self.refusal(node, "an update rewrites one named stream")
        return _identifier(node.id, node.col_offset)

    def permutation(self, targets: ast.Tuple, value: ast.expr, text: str) -> Permute:
        sources = value.elts if isinstance(value, ast.Tuple) else [value]
        for node in (*targets.elts, *sources):
            if not isinstance(node, ast.Name):
                message = "a permutation moves whole streams: it has names on both sides"
                raise self.refusal(node, message, "write one update per line")
        names = [[self.target(node) for node in side] for side in (targets.elts, sources)]
        return Permute(tuple(names[0]), tuple(names[1]), text)

    def expression(self, node: ast.expr, depth: int = 0) -> Expression:
        if depth > MAX_NESTING:
            raise self.refusal(node, f"nested deeper than {MAX_NESTING} levels")
        at, inner = self.range(node), depth + 1
        if isinstance(node, ast.Constant):
            return Number(self.number(node), at)
        if isinstance(node, ast.Name):
            if not _NAME.match(node.id):
                raise self.refusal(node, f"`{node.id}` is not a name of the update language")
            return Name(node.id, at)
        if isinstance(node, (ast.UnaryOp, ast.BinOp)):
            return self.arithmetic(node, inner)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            if not node.args:
                raise self.refusal(node, f"`{node.func.id}` needs an argument")
            return Call(node.func.id, tuple(self.expression(a, inner) for a in node.args), at)
        raise self.unknown(node)

    def arithmetic(self, node: ast.UnaryOp | ast.BinOp, depth: int) -> Expression:
        at = self.range(node)
        if isinstance(node, ast.UnaryOp):
            if not isinstance(node.op, (ast.USub, ast.UAdd)):
                raise self.unknown(node)
            operand = self.expression(node.operand, depth)
            return Negative(operand, at) if isinstance(node.op, ast.USub) else operand
        left = self.expression(node.left, depth)
        if isinstance(node.op, ast.Pow):
            return Power(left, self.exponent(node.right), at)
        if type(node.op) not in _OPERATORS:
            raise self.unknown(node)
        return Binary(_OPERATORS[type(node.op)], left, self.expression(node.right, depth), at)

    def unknown(self, node: ast.expr) -> ExpressionError:
        written = self.text[slice(*self.range(node))][:40]
        help = "it has numbers, names, + - * / **, and calls such as F(x)"
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitXor):
            help = "powers are written `**`"
        return self.refusal(node, f"`{written}` is not of the update language", help)

    def number(self, node: ast.Constant) -> Fraction:
        written = self.text[slice(*self.range(node))]
        plain = re.fullmatch(r"[0-9.]+(?:[eE][-+]?[0-9]{1,3})?", written)
        if type(node.value) not in (int, float) or not plain or len(written) > MAX_DIGITS:
            raise self.refusal(node, f"`{written[:40]}` is not a number of the update language")
        try:
            return _number(Fraction(written)).value
        except OverflowError:
            raise self.refusal(node, f"`{written[:40]}` is too large or too small") from None

    def exponent(self, node: ast.expr) -> int:
        negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
        inner = node.operand if isinstance(node, ast.UnaryOp) and negative else node
        value = inner.value if isinstance(inner, ast.Constant) else None
        plain = self.text[slice(*self.range(inner))].isdecimal()
        if type(value) is not int or value > MAX_EXPONENT or not plain:
            raise self.refusal(node, f"a power is a whole number of at most {MAX_EXPONENT}")
        return -value if negative else value


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
    builtin = (*ELEMENTWISE, *STRUCTURAL)
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


def _number(value: Fraction) -> Number:
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
        return _number(left.value + right.value)
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
        return _number(-operand.value)
    return operand.operand if isinstance(operand, Negative) else Negative(operand)


def subtract(left: Expression, right: Expression) -> Expression:
    """left - right."""
    if isinstance(left, Number) and isinstance(right, Number):
        return _number(left.value - right.value)
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
        return _number(left.value * right.value)
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
        return _number(left.value / right.value)
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
    return _number(base.value**exponent) if isinstance(base, Number) else Power(base, exponent)


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


def show_number(value: Fraction) -> str:
    """A fraction as a short decimal where that is exact, else as `n/d`."""
    if value.denominator == 1:
        return str(value.numerator)
    decimal = repr(float(value))
    return decimal if Fraction(decimal) == value else f"{value.numerator}/{value.denominator}"


def _show(expression: Expression, outer: int) -> str:
    if isinstance(expression, Number):
        text = show_number(expression.value)
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
