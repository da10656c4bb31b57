"""Texts of the update language into trees.

Python's own grammar is used (`ast.parse` on the text, never `eval`); a whitelist turns its nodes
into the six kinds of `archspec.expressions`.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from keyword import iskeyword
from typing import Literal

from archspec.expressions import (
    RESERVED,
    Assign,
    Binary,
    Call,
    Expression,
    Let,
    Name,
    Negative,
    Number,
    Operator,
    Permute,
    Power,
    Range,
    Statement,
    constant,
)

MAX_LENGTH = 1000
MAX_EXPONENT = 16
MAX_DIGITS = 310
MAX_NESTING = 60

COMMA = "inside { } or [ ], a text with a comma in it is written in quotes"
"""What to do where YAML has cut a text in two."""
TIMES = "multiplication is written `*`"

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}\Z")
_ODD = re.compile(r"[^\t -~]|[#;\\]")
_FACTOR = r"\s*(?!(?:if|else|for|in|is|and|or|not)\b)[A-Za-z_(]"
_NUMBER = r"(?<![\w.])(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+|(?![eE][-+]?[0-9]))"
_PRODUCT = re.compile(rf"(?:\)|{_NUMBER}){_FACTOR}")
"""What mathematics takes for a product: a name or a bracket right after a bracket or a number."""
_LET = re.compile(r"\s*([^\W\d]\w*)\s*:=")

_OPERATORS: Mapping[type[ast.operator], Operator] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
}


class ExpressionError(ValueError):
    """A text that is not of the language; `start` and `end` are offsets into it."""

    def __init__(self, message: str, start: int = 0, end: int = 0, help: str = "") -> None:
        super().__init__(message)
        self.message, self.start, self.end, self.help = message, start, end, help


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
        help = TIMES if _PRODUCT.search(text) else ""
        if "never closed" in problem:
            help = f"close this `{problem[1]}`; {COMMA}"
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
        elif isinstance(node, ast.Call) and not isinstance(node.func, ast.Name | ast.Attribute):
            help = TIMES
        return self.refusal(node, f"`{written}` is not of the update language", help)

    def number(self, node: ast.Constant) -> Fraction:
        written = self.text[slice(*self.range(node))]
        plain = re.fullmatch(r"[0-9.]+(?:[eE][-+]?[0-9]{1,3})?", written)
        if type(node.value) not in (int, float) or not plain or len(written) > MAX_DIGITS:
            raise self.refusal(node, f"`{written[:40]}` is not a number of the update language")
        try:
            return constant(Fraction(written)).value
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
