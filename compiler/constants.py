"""Coefficients: their values layer by layer, and the ranges they stay in."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from archspec.expressions import (
    Binary,
    Call,
    Expression,
    Name,
    Negative,
    Number,
    Power,
    fold,
    names,
    subexpressions,
)
from archspec.spec import Drawn, Learned
from compiler.plan import Constant

NUMBERS = ("layer", "depth", "progress")
"""Names that stand for numbers in every update."""
MAX_COMBINATIONS = 256
MAX_PARTS = 100
"""Of a constant that learned or drawn ones are put into."""


@dataclass(frozen=True)
class Interval:
    """All values from `low` to `high`, both included."""

    low: float
    high: float

    @property
    def smallest(self) -> float:
        """The least absolute value."""
        return 0.0 if self.low <= 0 <= self.high else min(abs(self.low), abs(self.high))


REALS = Interval(-math.inf, math.inf)


def fixed_values(
    constants: Mapping[str, Constant], layer: int, depth: int
) -> dict[str, Expression]:
    """The constants that are numbers at this layer, by name; expressions of learned or drawn
    constants stay expressions. Raises ArithmeticError."""
    return LayerValues(constants, depth).at(layer)


class LayerValues:
    """The fixed values of constants in every layer. What is the same in all layers is computed
    once, and each layer once."""

    def __init__(self, constants: Mapping[str, Constant], depth: int) -> None:
        """Raises ArithmeticError."""
        self._same: dict[str, Expression] = {"depth": Number(Fraction(depth))}
        self._varying: dict[str, Expression] = {}
        self._known: dict[int, dict[str, Expression]] = {}
        for name, constant in settled(constants).items():
            if constant.names & {"layer", *self._varying}:
                self._varying[name] = constant
            else:
                self._same[name] = _fixed(constant, self._same)

    def at(self, layer: int) -> dict[str, Expression]:
        """The values in one layer. Raises ArithmeticError."""
        if layer not in self._known:
            values = {**self._same, "layer": Number(Fraction(layer))}
            for name, constant in self._varying.items():
                values[name] = _fixed(constant, values)
            self._known[layer] = values
        return self._known[layer]

    @property
    def work(self) -> int:
        """How many parts are evaluated anew in each layer."""
        return sum(constant.size for constant in self._varying.values())


def _fixed(constant: Expression, values: Mapping[str, Expression]) -> Expression:
    value = fold(constant, values)
    if value.size > MAX_PARTS:
        raise OverflowError("a constant here is too long")
    return value


def settled(constants: Mapping[str, Constant]) -> dict[str, Expression]:
    """The constants that are expressions, each after those that it reads."""
    pending = {n: c for n, c in constants.items() if isinstance(c, Expression)}
    found: dict[str, Expression] = {}

    def settle(name: str) -> None:
        constant = pending.pop(name)
        for other in sorted(constant.names):
            if other in pending:
                settle(other)
        found[name] = constant

    while pending:
        settle(next(iter(pending)))
    return found


def part_counts(constants: Mapping[str, Constant]) -> dict[str, int]:
    """How many parts, at most, each constant is made of where its value has been put in."""
    counts: dict[str, int] = {}
    for name, constant in settled(constants).items():
        leaf = [constants.get(n) for n in leaves(constant, constants)]
        coefficients = any(isinstance(c, (Learned, Drawn)) for c in leaf)
        counts[name] = min(count_parts(constant, counts), MAX_PARTS) if coefficients else 1
    return counts


def count_parts(expression: Expression, counts: Mapping[str, int]) -> int:
    """How many parts an expression has where names stand for so many."""
    parts = (p.name for p in subexpressions(expression) if isinstance(p, Name))
    return expression.size + sum(counts.get(name, 1) - 1 for name in parts)


def leaves(
    expression: Expression, constants: Mapping[str, Expression | Constant]
) -> frozenset[str]:
    """The names that an expression comes down to, constants looked into."""
    found: set[str] = set()
    frontier = set(names(expression))
    while frontier:
        name = frontier.pop()
        found.add(name)
        constant = constants.get(name)
        if isinstance(constant, Expression):
            frontier |= names(constant) - found
    return frozenset(found)


def count_combinations(
    constants: Mapping[str, Constant], read: Collection[str] | None = None
) -> int:
    """How many combinations of values drawn constants, or those that are `read`, have in
    training."""
    wanted = constants if read is None else read
    drawn = {name: c for name, c in constants.items() if isinstance(c, Drawn) and name in wanted}
    return math.prod(len(c.draw) for c in drawn.values())


def drawn_combinations(
    constants: Mapping[str, Constant], read: Collection[str] | None = None
) -> Iterator[dict[str, float]]:
    """Every combination of the values that drawn constants, or those that are `read`, take in
    training."""
    wanted = constants if read is None else read
    drawn = {n: c.draw for n, c in constants.items() if isinstance(c, Drawn) and n in wanted}
    for values in itertools.product(*drawn.values()):
        yield dict(zip(drawn, values, strict=True))


def evaluation_values(constants: Mapping[str, Constant]) -> dict[str, float]:
    """The values of drawn constants in evaluation."""
    return {name: c.evaluate for name, c in constants.items() if isinstance(c, Drawn)}


def ranges(
    constants: Mapping[str, Constant], drawn: Mapping[str, float], since: float = 0.0
) -> dict[str, Interval]:
    """Where learned constants stay, `progress` from `since` on, and drawn ones at the given
    values."""
    found = {"progress": Interval(since, 1.0)}
    found |= {name: Interval(value, value) for name, value in drawn.items()}
    for name, constant in constants.items():
        if isinstance(constant, Learned) and constant.within:
            found[name] = Interval(*constant.within)
    return found


def interval(expression: Expression, known: Mapping[str, Interval]) -> Interval:
    """Bounds of an expression by interval arithmetic; unknown names may have any value."""
    if isinstance(expression, Number):
        value = float(expression.value)
        return Interval(value, value)
    if isinstance(expression, Name):
        return known.get(expression.name, REALS)
    if isinstance(expression, Negative):
        inner = interval(expression.operand, known)
        return Interval(-inner.high, -inner.low)
    if isinstance(expression, Power):
        return _power(interval(expression.base, known), expression.exponent)
    if isinstance(expression, Call):
        return _call(expression, known)
    assert isinstance(expression, Binary)
    left, right = interval(expression.left, known), interval(expression.right, known)
    if expression.operator == "+":
        return _hull((left.low + right.low, left.high + right.high))
    if expression.operator == "-":
        return _hull((left.low - right.high, left.high - right.low))
    if expression.operator == "/":
        if right.smallest == 0:
            return REALS
        right = Interval(1 / right.high, 1 / right.low)
    return _hull(_product(a, b) for a in (left.low, left.high) for b in (right.low, right.high))


def _hull(values: Iterable[float]) -> Interval:
    found = list(values)
    # The difference of two infinities may be anything.
    return REALS if any(map(math.isnan, found)) else Interval(min(found), max(found))


def _product(left: float, right: float) -> float:
    return 0.0 if 0 in (left, right) else left * right  # 0 times infinity bounds by 0


def _power(base: Interval, exponent: int) -> Interval:
    if exponent < 0:
        if base.smallest == 0:
            return REALS
        return _power(Interval(1 / base.high, 1 / base.low), -exponent)
    try:
        ends = [base.low**exponent, base.high**exponent]
    except OverflowError:
        return REALS
    if exponent and exponent % 2 == 0 and base.smallest == 0:
        ends.append(0.0)
    return Interval(min(ends), max(ends))


def _call(call: Call, known: Mapping[str, Interval]) -> Interval:
    inner = interval(call.arguments[0], known)
    if call.function == "exp":
        # Past these bounds float32 overflows or underflows.
        low, high = (min(max(end, -87.0), 88.0) for end in (inner.low, inner.high))
        return Interval(
            0.0 if inner.low < -87 else math.exp(low),
            math.inf if inner.high > 88 else math.exp(high),
        )
    if call.function == "tanh":
        return Interval(math.tanh(inner.low), math.tanh(inner.high))
    if call.function == "relu":
        return Interval(max(inner.low, 0.0), max(inner.high, 0.0))
    if call.function == "sigmoid":
        return Interval(_sigmoid(inner.low), _sigmoid(inner.high))
    return Interval(-1.0, 1.0) if call.function in ("sin", "cos") else REALS


def _sigmoid(x: float) -> float:
    return 0.0 if x < -700 else 1 / (1 + math.exp(-x))
