"""The rules of invertibility: for each, programs that look harmless and break it, and their twins
that do not."""

from __future__ import annotations

from typing import Any

import pytest
from one_stage import stage_plan

from archspec.diagnostics import SpecError
from compiler.plan import Affine, General

WITHIN = {"learn": 0.9, "within": [0.5, 0.99]}
SIGN = {"draw": [0.5, -0.5], "evaluate": 0.5}

# title: code, what breaks the rule, what does not; a program alone or with its constants
Program = Any
RULES: dict[str, tuple[str, Program, Program]] = {
    # 1. An update rewrites its target as scale*target + rest, and neither reads the target.
    "a function of the target": ("E301", "x += F(x)", "x += F(y)"),
    "a function of a sum with the target": ("E301", "x += F(y + x)", "x += F(y + y)"),
    "a function of a function of the target": ("E301", "x += F(G(x))", "x += F(G(y))"),
    "one argument of several is the target": ("E301", "x += H(y, x)", "x += H(y, y)"),
    "the target in a factor's call": ("E301", "x = x*exp(tanh(S(x)))", "x *= exp(tanh(S(y)))"),
    "the target through a temporary": ("E301", "k := F(x); x += k", "k := F(x); y += k"),
    "the target through two temporaries": (
        "E301",
        "k := F(x); m := G(k); x += m",
        "k := F(x); m := G(k); y += m",
    ),
    "the target through a function of a temporary": (
        "E301",
        "k := 2*x; x += F(k)",
        "k := 2*x; y += F(k)",
    ),
    "the target through a temporary in the factor": (
        "E301",
        "k := tanh(x); x = exp(k)*x",
        "k := tanh(y); x = exp(k)*x",
    ),
    "a temporary of both streams": ("E301", "k := x + y; x += F(k)", "k := y + y; x += F(k)"),
    "the second use of a temporary is its stream": (
        "E301",
        "k := F(y); x += k; y += k",
        "k := F(y); x += k; x += k",
    ),
    "a square": ("E302", "x = x*x + F(y)", "x = y*y + x"),
    "a power": ("E302", "x = x**2 + F(y)", "x = y**2 + 2*x"),
    "the target times itself, bracketed": ("E302", "x = (x + y)*(x - y)", "x = (x + y)*(2 - 1)"),
    "a product of the target and what reads it": ("E302", "x = x*(y + x)", "x = 2*x*(2 + tanh(y))"),
    "the target over itself": ("E302", "x = y/x", "x = x/(2 + tanh(y))"),
    "the target inside tanh": ("E302", "x = tanh(x) + F(y)", "x = x + tanh(F(y))"),
    "the target inside exp": ("E302", "x += exp(x)", "x += exp(y)"),
    "the target in an exponent's function": ("E302", "x = x*exp(tanh(x))", "x = x*exp(tanh(y))"),
    # 2. The factor is bounded away from zero at every layer.
    "the old value is forgotten": ("E303", "x = F(y)", "x = F(y) + x"),
    "the old value cancels": ("E303", "x = x - x + F(y)", "x = x - 2*x + F(y)"),
    "a factor of 0 by way of a constant": (
        "E303",
        ("x = g*x + F(y)", {"g": 0.0}),
        ("x = g*x + F(y)", {"g": -1}),
    ),
    "a factor of 0 by way of an expression": (
        "E303",
        ("x = g*x + F(y)", {"g": "1 - h", "h": 1.0}),
        ("x = g*x + F(y)", {"g": "1 - h", "h": 0.9}),
    ),
    "a factor of 0 at one layer": (
        "E303",
        ("x = g*x + F(y)", {"g": "layer - 2"}),
        ("x = g*x + F(y)", {"g": "layer - 4"}),
    ),
    "a factor of 0 at the last layer": (
        "E303",
        "x = (1 - layer/(depth - 1))*x + F(y)",
        "x = (1 - layer/depth)*x + F(y)",
    ),
    "a factor too near to 0": (
        "E303",
        ("x = g*x + F(y)", {"g": 1e-7}),
        ("x = g*x + F(y)", {"g": 1e-5}),
    ),
    "a factor too far from 0": (
        "E303",
        ("x = g**2*x + F(y)", {"g": "10**15"}),
        ("x = g**2*x + F(y)", {"g": "10**10"}),
    ),
    "a learned factor without a range": (
        "E303",
        ("x = g*x + F(y)", {"g": {"learn": 0.9}}),
        ("x = g*x + F(y)", {"g": WITHIN}),
    ),
    "a learned range across 0": (
        "E303",
        ("x = g*x + F(y)", {"g": {"learn": 0.9, "within": [-0.1, 1.0]}}),
        ("x = g*x + F(y)", {"g": {"learn": -0.9, "within": [-1.0, -0.1]}}),
    ),
    "a learned range that ends at 0": (
        "E303",
        ("x = g*x + F(y)", {"g": {"learn": 0.9, "within": [0, 1]}}),
        ("x = g*x + F(y)", {"g": {"learn": 0.9, "within": [0.001, 1]}}),
    ),
    "one minus a range that ends at 1": (
        "E303",
        ("x = (1 - g)*x + F(y)", {"g": {"learn": 0.9, "within": [0.5, 1.0]}}),
        ("x = (1 - g)*x + F(y)", {"g": WITHIN}),
    ),
    "a learned range scaled to 0 at a layer": (
        "E303",
        ("x = h*x + F(y)", {"g": WITHIN, "h": "g*layer"}),
        ("x = h*x + F(y)", {"g": WITHIN, "h": "g*(layer + 1)"}),
    ),
    "a difference of learned factors": (
        "E303",
        ("x = (g - h)*x + F(y)", {"g": WITHIN, "h": WITHIN}),
        ("x = (g + h)*x + F(y)", {"g": WITHIN, "h": WITHIN}),
    ),
    "a draw of 0": (
        "E303",
        ("x = g*x + F(y)", {"g": {"draw": [0.5, 0], "evaluate": 1}}),
        ("x = g*x + F(y)", {"g": SIGN}),
    ),
    "two draws that cancel": (
        "E303",
        ("x = (g + h)*x + F(y)", {"g": SIGN, "h": SIGN}),
        ("x = (g + h)*x + F(y)", {"g": SIGN, "h": {"draw": [1, 2], "evaluate": 1}}),
    ),
    "a stream as the factor": ("E303", "x = y*x", "x = (2 + tanh(y))*x"),
    "a function as the factor": ("E303", "x = S(y)*x + T(y)", "x = (1.5 + sin(S(y)))*x + T(y)"),
    "a sigmoid as the factor": ("E303", "x = sigmoid(S(y))*x", "x = (1 + sigmoid(S(y)))*x"),
    "exp of anything": ("E303", "x = exp(S(y))*x", "x = exp(tanh(S(y)))*x"),
    "exp of a square": ("E303", "x = exp(-S(y)**2)*x", "x = exp(-tanh(S(y))**2)*x"),
    "exp of a large bound": ("E303", "x = exp(50*tanh(S(y)))*x", "x = exp(5*tanh(S(y)))*x"),
    "exp of a large number": ("E303", "x = exp(1000)*x", "x = exp(10)*x"),
    "exp of a large negative number": ("E303", "x = exp(-1000)*x", "x = exp(-10)*x"),
    "a factor that touches 0": ("E303", "x = (1 + tanh(S(y)))*x", "x = (1.1 + tanh(S(y)))*x"),
    "an even power across 0": ("E303", "x = sin(y)**2*x", "x = (2 + sin(y))**2*x"),
    "a square without end": ("E303", "x = (1 + y**2)*x", "x = (1 + tanh(y)**2)*x"),
    "division by what may be 0": ("E303", "x = x/y", "x = x/(3 + cos(y))"),
    "division by a range across 0": (
        "E303",
        ("x = x/g", {"g": {"learn": 0.5, "within": [-1, 1]}}),
        ("x = x/g", {"g": WITHIN}),
    ),
    "a factor through a temporary": ("E303", "k := S(y); x = k*x", "k := 2 + tanh(S(y)); x = k*x"),
    "a factor through two temporaries": (
        "E303",
        "k := S(y); m := exp(k); x = m*x",
        "k := tanh(S(y)); m := exp(k); x = m*x",
    ),
    "a temporary that is 0 at a layer": (
        "E303",
        "k := layer*exp(tanh(y)); x = k*x",
        "k := (layer + 1)*exp(tanh(y)); x = k*x",
    ),
    # 4. A temporary is used while every stream that it read is as it was.
    "a temporary after its stream changed": (
        "E304",
        "k := F(y); y += G(x); x += k",
        "k := F(y); x += k; y += G(x)",
    ),
    "a temporary used on both sides of a change": (
        "E304",
        "k := F(y); x += k; y += G(x); x += k",
        "k := F(y); x += k; x -= G(y); x += k",
    ),
    "a temporary after a permutation": (
        "E304",
        "k := F(y); x, y = y, x; x += k",
        "k := F(y); x += k; x, y = y, x",
    ),
    "a temporary of a temporary that is stale": (
        "E304",
        "k := F(y); y += G(x); m := 2*k; x += m",
        "k := F(y); m := 2*k; x += m; y += G(x)",
    ),
    "a stale temporary in an argument": (
        "E304",
        "k := F(y); y += 1; x += G(k)",
        "y += 1; k := F(y); x += G(k)",
    ),
    "a stale temporary in a factor": (
        "E304",
        "k := tanh(S(y)); y += F(x); x = exp(k)*x",
        "y += F(x); k := tanh(S(y)); x = exp(k)*x",
    ),
    "a temporary after its stream changed and came back": (
        "E304",
        "k := F(y); y += x; y -= x; x += k",
        "y += x; y -= x; k := F(y); x += k",
    ),
}  # fmt: skip


@pytest.mark.parametrize("title", RULES)
def test_a_program_that_breaks_a_rule_is_refused(title: str) -> None:
    code, program, _ = RULES[title]
    update, constants = program if isinstance(program, tuple) else (program, {})
    with pytest.raises(SpecError) as caught:
        stage_plan(update, constants)
    assert {d.code for d in caught.value.diagnostics} == {code}
    for diagnostic in caught.value.diagnostics:
        assert diagnostic.span
        assert diagnostic.help
        assert "`checkpoint` and `store` take any program" in diagnostic.note
        assert "@" not in str(diagnostic)


@pytest.mark.parametrize("backward", ["store", "checkpoint"])
@pytest.mark.parametrize("title", RULES)
def test_it_is_legal_where_nothing_is_inverted(title: str, backward: str) -> None:
    code, program, _ = RULES[title]
    update, constants = program if isinstance(program, tuple) else (program, {})
    plan = stage_plan(update, constants, backward=backward)
    assert not plan.invertible
    assert not plan.invertible_in_evaluation
    assert {d.code for d in plan.obstacles} == {code}
    assert any(isinstance(step, General) for step in plan.steps) or code in ("E301", "E303", "E304")


@pytest.mark.parametrize("title", RULES)
def test_its_twin_that_keeps_the_rule_is_legal(title: str) -> None:
    _, _, program = RULES[title]
    update, constants = program if isinstance(program, tuple) else (program, {})
    plan = stage_plan(update, constants, backward="reversible")
    assert plan.invertible
    assert plan.invertible_in_evaluation
    assert not any(isinstance(step, General) for step in plan.steps)
    assert any(isinstance(step, Affine) for step in plan.steps)
