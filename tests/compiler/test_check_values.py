"""Where coefficients may lie: interval arithmetic, layer by layer, draw by draw."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from one_stage import stage_plan

from archspec.diagnostics import SpecError
from archspec.expressions import Binary, Call, Expression, Name, Negative, Number, Power, show
from archspec.parsing import parse_expression
from compiler.constants import REALS, Interval, interval

# Interval arithmetic -----------------------------------------------------------------------------

FUNCTIONS: dict[str, Callable[[float], float]] = {
    "exp": math.exp,
    "tanh": math.tanh,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)) if x > -700 else 0.0,
    "sin": math.sin,
    "cos": math.cos,
    "relu": lambda x: max(x, 0.0),
    "F": lambda x: x,
}
numbers = st.fractions(min_value=-20, max_value=20, max_denominator=20).map(Number)
trees = st.recursive(
    numbers | st.sampled_from(["a", "b", "u"]).map(Name),
    lambda inner: (
        inner.map(Negative)
        | st.builds(Binary, st.sampled_from("+-*/"), inner, inner)
        | st.builds(Power, inner, st.integers(-4, 4))
        | st.builds(Call, st.sampled_from(list(FUNCTIONS)), st.tuples(inner))
    ),
    max_leaves=8,
)
ends = st.floats(-30, 30) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-300, 1e200, -1e200])
inside = st.floats(0, 1)


def value(tree: Expression, at: dict[str, float]) -> float:
    """What an expression comes to in floating point."""
    if isinstance(tree, Number):
        return float(tree.value)
    if isinstance(tree, Name):
        return at[tree.name]
    if isinstance(tree, Negative):
        return -value(tree.operand, at)
    if isinstance(tree, Power):
        return value(tree.base, at) ** tree.exponent
    if isinstance(tree, Call):
        return FUNCTIONS[tree.function](value(tree.arguments[0], at))
    left, right = value(tree.left, at), value(tree.right, at)
    return {
        "+": lambda: left + right,
        "-": lambda: left - right,
        "*": lambda: left * right,
        "/": lambda: left / right,
    }[tree.operator]()


def within(bounds: Interval, number: float) -> bool:
    """Whether a number lies in an interval, but for rounding and what float32 cannot hold."""
    slack = 1e-6 * max(1.0, abs(number)) + 1e-30
    return bounds.low - slack <= number <= bounds.high + slack


@settings(max_examples=600, deadline=None, derandomize=True)
@given(
    trees, st.tuples(ends, ends), st.tuples(ends, ends), st.lists(inside, min_size=2, max_size=2)
)
@example(parse_expression("a - a"), (1e200, 1e200), (0.0, 0.0), [0.0, 0.0])
@example(parse_expression("b*(a*a - a*a) + 1"), (1e200, 1e200), (0.0, 1.0), [0.0, 0.5])
@example(parse_expression("1/a"), (-1.0, 0.0), (0.0, 0.0), [0.5, 0.0])
@example(parse_expression("a**-2"), (-2.0, -1.0), (0.0, 0.0), [0.5, 0.0])
@example(parse_expression("exp(a)"), (1e200, 1e200), (0.0, 0.0), [0.0, 0.0])
def test_values_stay_inside_their_interval(
    tree: Expression, a: tuple[float, float], b: tuple[float, float], shares: list[float]
) -> None:
    known = {"a": Interval(min(a), max(a)), "b": Interval(min(b), max(b))}
    bounds = interval(tree, known)
    assert bounds.low <= bounds.high
    at = {"u": 3.0}
    for (name, i), share in zip(known.items(), shares, strict=True):
        at[name] = min(max(i.low + share * (i.high - i.low), i.low), i.high)
    try:
        number = value(tree, at)
    except (ZeroDivisionError, OverflowError):
        assume(False)
        raise
    assume(math.isfinite(number))
    assert within(bounds, number), f"{show(tree)} = {number}, not in {bounds}"


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("2 + 1/4", 2.25, 2.25), ("-a", -0.9, -0.5), ("1 - a", 0.1, 0.5), ("a*b", -0.9, 1.8),
        ("b/a", -2, 4), ("a/b", -math.inf, math.inf), ("b**2", 0, 4), ("a**2", 0.25, 0.81),
        ("a**-1", 1 / 0.9, 2), ("(b - 3)**-2", 1 / 16, 1), ("b**3", -1, 8), ("b**0", 1, 1),
        ("exp(b)", math.exp(-1), math.exp(2)), ("exp(u)", 0, math.inf), ("tanh(u)", -1, 1),
        ("sin(a)", -1, 1), ("sigmoid(u)", 0, 1), ("exp(a - 1000)", 0, math.exp(-87)),
        ("exp(a + 1000)", math.exp(88), math.inf), ("F(a)", -math.inf, math.inf), ("0*u", 0, 0),
        ("u - u", -math.inf, math.inf), ("tanh(tanh(u))", math.tanh(-1), math.tanh(1)),
    ],
)  # fmt: skip
def test_intervals(text: str, low: float, high: float) -> None:
    found = interval(parse_expression(text), {"a": Interval(0.5, 0.9), "b": Interval(-1, 2)})
    assert (found.low, found.high) == pytest.approx((low, high))


def test_the_smallest_absolute_value() -> None:
    assert [Interval(-2, 3).smallest, Interval(1, 2).smallest, Interval(-2, -1).smallest] == [
        0,
        1,
        1,
    ]
    assert REALS.smallest == 0


# Draws, evaluation, layers -----------------------------------------------------------------------


def said(update: str, constants: dict[str, Any], **stage: Any) -> str:
    with pytest.raises(SpecError) as caught:
        stage_plan(update, constants, **stage)
    return str(caught.value)


@pytest.mark.parametrize(
    ("evaluate", "invertible"), [(0, False), (1e-9, False), (1e30, False), (0.5, True), (-1, True)]
)
def test_a_factor_may_vanish_in_evaluation_alone(evaluate: float, invertible: bool) -> None:
    gamma = {"draw": [0.5, -0.5], "evaluate": evaluate}
    plan = stage_plan("x = gamma*x + (1 - gamma)*y + F(y); x, y = y, x", {"gamma": gamma})
    assert plan.invertible
    assert plan.invertible_in_evaluation is invertible


@pytest.mark.parametrize(("evaluate", "invertible"), [(2, False), (9, True)])
def test_evaluation_is_checked_at_every_layer(evaluate: float, invertible: bool) -> None:
    constants = {"d": {"draw": [4, 5], "evaluate": evaluate}, "g": "d - layer"}
    plan = stage_plan("x = g*x + F(y)", constants)
    assert plan.invertible
    assert plan.invertible_in_evaluation is invertible


@pytest.mark.parametrize(
    ("update", "constants", "message"),
    [
        ("x = (layer - 2)*x + F(y)", {}, "forgets `x`: its factor is 0 at layer 2"),
        ("x = F(y)", {}, "forgets `x`: its factor is 0\n"),
        ("x = g*x", {"g": {"draw": [1, 0], "evaluate": 1}}, "its factor is 0 when `g` is 0\n"),
        (
            "x = (g - layer)*x*tanh(F(y))",
            {"g": {"draw": [9], "evaluate": 1}},
            "may be anything from -9 to 9 at layer 0 when `g` is 9",
        ),
        (
            "x = S(y)*x + F(y)",
            {},
            "`S(y)` of `x` must stay away from zero and infinity, and it may be anything from -inf "
            "to inf\n",
        ),
    ],
)
def test_the_error_says_where_the_factor_fails(
    update: str, constants: dict[str, Any], message: str
) -> None:
    assert message in said(update, constants)


def test_each_update_tells_its_own_obstacle() -> None:
    program = "k := F(y); x += k; y += G(y); x += k; y = y*y; x = x*S(y)"
    found = [d.code for d in stage_plan(program, backward="store").obstacles]
    assert found == ["E301", "E304", "E302", "E303"]


# Arithmetic, whatever the strategy ---------------------------------------------------------------

ZERO = {"draw": [1, 0], "evaluate": 1}
LATER_ZERO = {"draw": [1], "evaluate": 0}


@pytest.mark.parametrize("backward", ["reversible", "store"])
@pytest.mark.parametrize(
    ("update", "constants", "message"),
    [
        ("x += F(y)/0", {}, "divides by zero"),
        ("x = x/0 + F(y)", {}, "divides by zero"),
        ("x += F(y)/g", {"g": 0}, "divides by zero"),
        ("x = x/g + F(y)", {"g": 0.0}, "divides by zero"),
        ("x += F(y/g)", {"g": "h - 1", "h": 1}, "divides by zero"),
        ("x += F(y)*g**-2", {"g": 0}, "divides by zero"),
        ("x += F(y)/layer", {}, "divides by zero at layer 0"),
        ("x += F(y)/(depth - layer - 1)", {}, "divides by zero at layer 3"),
        ("x += F(y)/g", {"g": ZERO}, "divides by zero when `g` is 0"),
        ("x += F(y)/g", {"g": LATER_ZERO}, "divides by zero when `g` is 0"),
        ("x += F(y)/(g + layer)", {"g": ZERO}, "divides by zero at layer 0 when `g` is 0"),
        ("x += 10**16*10**16*F(y)", {}, "a constant here is too large"),
        ("x = 10**16*x*10**16 + F(y)", {}, "too large"),
        ("x += g**2*F(y)", {"g": "10**16"}, "a constant here is too large"),
        ("x += g*F(y)", {"g": "1/layer"}, "a constant divides by zero at layer 0"),
        (
            "x += g*F(y)",
            {"g": "(layer + 1)*10**16*10**14"},
            "a constant grows too large at layer 1",
        ),
    ],
)
def test_arithmetic_that_fails_in_some_layer_is_told(
    update: str, constants: dict[str, Any], message: str, backward: str
) -> None:
    error = said(update, constants, backward=backward)
    assert message in error
    assert "E206" in error


@pytest.mark.parametrize(
    "stage", [{"streams": {"x": "input/g", "y": "input"}}, {"output": "x/g + y"}]
)
def test_starts_and_output_are_checked_too(stage: dict[str, Any]) -> None:
    assert "E206] this divides by zero" in said("x += g*F(y)", {"g": 0}, **stage)


def test_constants_that_would_grow_without_end_are_refused_at_once() -> None:
    doubling = {f"c{i}": f"c{i - 1}*c{i - 1} + c{i - 1}" for i in range(1, 40)}
    constants = {"c0": {"learn": 0.9}, **doubling}
    assert "E206] a constant grows too large" in said("x += c39*F(y)", constants)
    powers = {"c0": 10, **{f"c{i}": f"c{i - 1}**16" for i in range(1, 40)}}
    assert "E206] a constant grows too large" in said("x += c39*F(y)", powers)


def test_draws_with_too_many_combinations_are_refused_at_once() -> None:
    constants = {
        f"c{i}": {"draw": [float(j) for j in range(1, 65)], "evaluate": 1} for i in range(12)
    }
    update = [f"x += c{i}*F(y)" for i in range(12)]
    with pytest.raises(SpecError, match="more than 256 combinations"):
        stage_plan(update, constants)


@pytest.mark.parametrize(
    ("learned", "message"),
    [
        ({"learn": 0.4, "within": [0.5, 1]}, "0.4 does not lie inside the range from 0.5 to 1.0"),
        ({"learn": 0.5, "within": [0.5, 1]}, "does not lie inside"),
        ({"learn": 0.7, "within": [1, 0.5]}, "does not lie inside"),
        ({"learn": 0.5, "within": [-1e30, 1]}, "does not lie inside"),
        ({"learn": 0.5, "within": [-1e308, 1e308]}, "does not lie inside"),
    ],
)
def test_a_learned_constant_starts_well_inside_its_range(learned: Any, message: str) -> None:
    assert message in said("x += g*F(y)", {"g": learned})


@pytest.mark.parametrize(
    "constant",
    [
        {"learn": 1e308},
        {"learn": 0.5, "within": [-1.5e30, 1.5e30]},
        {"draw": [1, -1e39], "evaluate": 1},
        {"draw": [1], "evaluate": 1e308},
    ],
)
def test_a_coefficient_that_float32_cannot_hold_is_refused(constant: Any) -> None:
    assert "E206] a coefficient is at most 1.26765e+30" in said("x += g*F(y)", {"g": constant})


def test_a_layer_scale_that_float32_cannot_hold_is_refused() -> None:
    error = said("x += F(y)", {}, functions={"F": [{"scale": -1e308}]})
    assert "E401] `scale` does not fit here: a factor is at most 1.26765e+30" in error
