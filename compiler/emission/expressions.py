"""Expressions as Python text: the same operations in the same order as `compiler.lower` runs."""

from __future__ import annotations

from collections.abc import Callable

from archspec.expressions import (
    DERIVED,
    Binary,
    Call,
    Expression,
    Name,
    Negative,
    Number,
    Power,
    names,
)
from compiler.emission.numbers import marked
from compiler.lower import lower
from compiler.shapes import chunk_numbers, zeros_channels

SUM, PRODUCT, SIGN, POWER, ATOM = range(5)
"""How tightly a text binds."""


def python(expression: Expression, name: Callable[[str], str], channel_dimension: int = -1) -> str:
    """The text of an expression; `name` gives the text of a name, which must bind as an atom."""
    return _Printer(name, channel_dimension).text(expression)[0]


class _Printer:
    def __init__(self, name: Callable[[str], str], channel_dimension: int) -> None:
        self.name, self.channel_dimension = name, channel_dimension

    def text(self, expression: Expression) -> tuple[str, int]:
        """The text of an expression, and how tightly it binds."""
        if isinstance(expression, Name):
            return self.name(expression.name), ATOM
        if not names(expression) and not isinstance(expression, Negative):
            return self.number(expression)
        if isinstance(expression, Negative):
            return f"-{self.inside(expression.operand, SIGN)}", SIGN
        if isinstance(expression, Power):
            return f"{self.inside(expression.base, ATOM)}**{expression.exponent}", POWER
        if isinstance(expression, Call):
            return self.call(expression), ATOM
        assert isinstance(expression, Binary)
        level = SUM if expression.operator in "+-" else PRODUCT
        # Tighter on the right: a + (b + c) rounds differently from a + b + c.
        left = self.inside(expression.left, level)
        right = self.inside(expression.right, level + 1)
        return f"{left} {expression.operator} {right}", level

    def inside(self, expression: Expression, level: int) -> str:
        text, binds = self.text(expression)
        return text if binds >= level else f"({text})"

    def number(self, expression: Expression) -> tuple[str, int]:
        """What has no names in it is a number."""
        value = float(expression.value) if isinstance(expression, Number) else lower(expression)({})
        assert isinstance(value, float)
        return marked(value), SIGN if value < 0 else ATOM

    def call(self, call: Call) -> str:
        if call.function == "chunk":
            part, count = chunk_numbers(call)
            whole = self.text(call.arguments[0])[0]
            return f"torch.chunk({whole}, {count}, {self.channel_dimension})[{part - 1}]"
        if call.function == "zeros":
            return self.zeros(zeros_channels(call))
        arguments = ", ".join(self.text(argument)[0] for argument in call.arguments)
        if call.function == "concat":
            return f"torch.cat([{arguments}], {self.channel_dimension})"
        prefix = "" if call.function in DERIVED else "torch."
        return f"{prefix}{call.function}({arguments})"

    def zeros(self, channels: int) -> str:
        """Zeros like the input, of so many channels."""
        shape = f"{self.name('input')}.shape"
        grid = "" if self.channel_dimension == -1 else f", *{shape}[{self.channel_dimension + 1}:]"
        sizes = f"*{shape}[:{self.channel_dimension}], {channels}{grid}"
        return f"{self.name('input')}.new_zeros({sizes})"
