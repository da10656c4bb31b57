"""The canonical form of updates, and the couplings that are shipped."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from one_stage import spec

from archspec.diagnostics import SpecError
from archspec.expressions import Assign, Binary, Expression, Name, Negative, Number, names, show
from archspec.finding import zoo
from archspec.loading import load, read_file
from archspec.parsing import parse_statement
from compiler.canonical import NotAffineError, canonical, lift_calls, split, unlift
from compiler.plan import Affine, General, Permutation, Temporary
from compiler.resolve import resolve

numbers = st.fractions(min_value=-9, max_value=9, max_denominator=6).map(Number)
trees = st.recursive(
    numbers | st.sampled_from(["t", "t", "a", "b"]).map(Name),
    lambda inner: inner.map(Negative) | st.builds(Binary, st.sampled_from("+-*/"), inner, inner),
    max_leaves=8,
)


def value(tree: Expression, at: dict[str, Fraction]) -> Fraction:
    if isinstance(tree, Number):
        return tree.value
    if isinstance(tree, Name):
        return at[tree.name]
    if isinstance(tree, Negative):
        return -value(tree.operand, at)
    assert isinstance(tree, Binary)
    left, right = value(tree.left, at), value(tree.right, at)
    if tree.operator == "/":
        return left / right
    return {"+": left + right, "-": left - right, "*": left * right}[tree.operator]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(trees)
def test_scale_and_rest_make_up_the_update(tree: Expression) -> None:
    at = {"t": Fraction(3, 7), "a": Fraction(-5, 3), "b": Fraction(11, 2)}
    try:
        expected = value(tree, at)
        scale, rest = split(tree, "t")
        found = value(scale, at) * at["t"] + value(rest, at)
    except (ArithmeticError, NotAffineError):
        assume(False)
        raise
    assert "t" not in names(scale) | names(rest)
    assert found == expected


@pytest.mark.parametrize(
    ("update", "scale", "rest"),
    [
        ("x += F(y)", "1", "F(y)"),
        ("x -= h*F(y)", "1", "-h*F(y)"),
        ("x *= 2", "2", "0"),
        ("x /= 2", "0.5", "0"),
        ("v = gamma*v + (1 - gamma)*F(x)", "gamma", "(1 - gamma)*F(x)"),
        ("a = -a + 2*b + h**2*F(b)", "-1", "2*b + h**2*F(b)"),
        ("z = 2*y - z", "-1", "2*y"),
        ("x = x*exp(tanh(S(y))) + T(y)", "exp(tanh(S(y)))", "T(y)"),
        ("x = (x + F(y))*g/h", "g/h", "F(y)*g/h"),
        ("x = g*(x - (y - x))", "g*2", "-g*y"),
        ("x = F(G(y) + H(y, F(y)))", "0", "F(G(y) + H(y, F(y)))"),
    ],
)
def test_the_canonical_form(update: str, scale: str, rest: str) -> None:
    step = canonical(parse_statement(update))
    assert isinstance(step, Affine)
    assert (show(unlift(step.scale, step.calls)), show(unlift(step.rest, step.calls))) == (
        scale,
        rest,
    )


def test_calls_are_lifted_inner_ones_first() -> None:
    statement = parse_statement("x += F(G(y) + H(y, F(y)))")
    assert isinstance(statement, Assign)
    lifted, calls = lift_calls(statement.value)
    assert [(c.result, c.function, [show(a) for a in c.arguments]) for c in calls] == [
        ("G@0", "G", ["y"]),
        ("F@1", "F", ["y"]),
        ("H@2", "H", ["y", "F@1"]),
        ("F@3", "F", ["G@0 + H@2"]),
    ]
    assert show(lifted) == "x + F@3"
    assert unlift(lifted, calls) == statement.value


# The library of couplings -------------------------------------------------------------------------

KINDS: dict[str, tuple[str, bool, bool]] = {
    # the kinds of its steps; whether it is inverted in training, and in evaluation
    "additive": ("AA", True, True),
    "affine": ("AA", True, True),
    "asynchronous_leapfrog": ("AAA", True, True),
    "bdia": ("AP", True, False),
    "bdia_transformer": ("TAP", True, False),
    "euler": ("G", False, False),
    "leapfrog": ("AP", True, True),
    "midpoint": ("AP", True, True),
    "momentum": ("AA", True, True),
    "momentum_nesterov": ("AAAA", True, True),
    "momentum_one": ("AAA", True, True),
    "momentum_pair": ("AAAA", True, True),
    "momentum_shared": ("AAAA", True, True),
    "residual": ("G", False, False),
    "residual_pair": ("GG", False, False),
    "reversible_heun": ("AAA", True, True),
    "rk2": ("TG", False, False),
    "rk4": ("TTTTA", False, False),
    "verlet": ("AA", True, True),
}
LETTERS = {Affine: "A", General: "G", Permutation: "P", Temporary: "T"}


@pytest.mark.parametrize("path", sorted((zoo() / "couplings").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_couplings(path: Path) -> None:
    functions = read_file(path).map["functions"].plain()
    assert isinstance(functions, list)
    text = spec("x = x")
    layers = {name: [{"linear": "channels"}] for name in functions}
    trunk = {"depth": 3, "coupling": path.stem, "functions": layers, "backward": "store"}
    text["stages"] = {"trunk": trunk}
    plan = resolve(load(text)).stages[0]
    steps, training, evaluation = KINDS[path.stem]
    assert "".join(LETTERS[type(step)] for step in plan.steps) == steps
    assert (plan.invertible, plan.invertible_in_evaluation) == (training, evaluation)
    trunk["backward"] = "reversible"
    if training:
        assert resolve(load(text)).stages[0].invertible
    else:
        with pytest.raises(SpecError, match=rf"couplings/{path.stem}\.yaml:.*E30"):
            resolve(load(text))
