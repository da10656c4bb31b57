"""The update language: reading, printing, exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from archspec.expressions import (
    ONE,
    Assign,
    Binary,
    Call,
    Expression,
    Let,
    Name,
    Negative,
    Number,
    Permute,
    Power,
    calls,
    fold,
    names,
    show,
    subexpressions,
)
from archspec.parsing import ExpressionError, parse_expression, parse_statement

# Printing and reading ----------------------------------------------------------------------------

fractions = st.fractions(min_value=-50, max_value=50, max_denominator=60) | st.sampled_from(
    [Fraction(1, 10**7), Fraction(10**18), Fraction(1, 3), Fraction(10**30), Fraction(-1, 10**150)]
)
leaves = fractions.map(Number) | st.sampled_from(["a", "b", "c", "x1"]).map(Name)
trees = st.recursive(
    leaves,
    lambda inner: (
        inner.map(Negative)
        | st.builds(Binary, st.sampled_from("+-*/"), inner, inner)
        | st.builds(Power, inner, st.integers(-4, 4))
        | st.builds(Call, st.just("F"), st.tuples(inner) | st.tuples(inner, inner))
        | st.builds(Call, st.sampled_from(["exp", "tanh"]), st.tuples(inner))
    ),
    max_leaves=10,
)
POINTS = [dict(zip(("a", "b", "c", "x1"), p, strict=True)) for p in ((2, -3, 5, 7), (1, 11, -4, 3))]


def value(expression: Expression, at: dict[str, int]) -> Fraction:
    """What an expression comes to, its calls taken for some arithmetic of their arguments."""
    if isinstance(expression, Number):
        return expression.value
    if isinstance(expression, Name):
        return Fraction(at[expression.name])
    if isinstance(expression, Negative):
        return -value(expression.operand, at)
    if isinstance(expression, Power):
        return value(expression.base, at) ** expression.exponent
    if isinstance(expression, Call):
        inner = [value(a, at) for a in expression.arguments]
        return sum((i * v for i, v in enumerate(inner, 2)), Fraction(len(expression.function)))
    left, right = value(expression.left, at), value(expression.right, at)
    return {
        "+": lambda: left + right,
        "-": lambda: left - right,
        "*": lambda: left * right,
        "/": lambda: left / right,
    }[expression.operator]()


def values(expression: Expression) -> list[Fraction]:
    """The expression at some points; the example is given up where it divides by zero."""
    try:
        return [value(expression, at) for at in POINTS]
    except ZeroDivisionError:
        assume(False)
        raise


@settings(max_examples=300, deadline=None, derandomize=True)
@given(trees)
def test_what_is_shown_reads_back(tree: Expression) -> None:
    text = show(tree)
    assume(len(text) <= 1000)
    back = parse_expression(text)
    assert values(back) == values(tree)
    assert names(back) == names(tree)
    assert [c.function for c in calls(back)] == [c.function for c in calls(tree)]
    for part in subexpressions(back):
        assert values(parse_expression(text[slice(*part.at)])) == values(part)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(trees, st.fractions(max_denominator=9, min_value=-9, max_value=9))
def test_folding_is_exact(tree: Expression, number: Fraction) -> None:
    try:
        folded = fold(tree, {"c": Number(number), "b": Negative(Name("a"))})
    except ArithmeticError:
        assume(False)
        raise
    assert names(folded) <= {"a", "x1"}
    at = {"a": 2, "x1": 7}
    try:
        expected = value(tree, {**at, "b": -2, "c": number})  # type: ignore[dict-item]
    except ZeroDivisionError:
        return  # 0*(1/0) is folded to 0
    assert value(folded, at) == expected
    assert fold(folded, {}) == folded


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("1 - 0.9", "0.1"), ("0.1 + 0.2", "0.3"), ("h/6", "h/6"), ("1/3 + 1/6", "0.5"),
        ("1/3", "1/3"), ("0*x", "0"), ("x + 0", "x"), ("0 - x", "-x"), ("x - -y", "x + y"),
        ("-x*-y", "x*y"), ("1*x/1", "x"), ("x**1", "x"), ("x**0", "1"), ("2**-2", "0.25"),
        ("(2*h)**1", "2*h"), ("-(-x)", "x"), ("x/-1", "-x"), ("+x", "x"), ("--x", "x"),
        ("2*(3*x)", "2*(3*x)"), ("a - (b - c)", "a - (b - c)"), ("a/(b*c)", "a/(b*c)"),
        ("(a + b)*c", "(a + b)*c"), ("(-a)**2", "(-a)**2"), ("-a**2", "-a**2"),
        ("F(a, -b)", "F(a, -b)"), ("1e-7*x", "1e-07*x"),
    ],
)  # fmt: skip
def test_folded(text: str, folded: str) -> None:
    assert show(fold(parse_expression(text), {})) == folded


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("1/0", ZeroDivisionError),
        ("x/(2 - 2)", ZeroDivisionError),
        ("(1 - 1)**-1", ZeroDivisionError),
        ("10**16*10**16", OverflowError),
        ("((((9**16)**16)**16)**16)**16", OverflowError),
        ("((((0.9**16)**16)**16)**16)**16", OverflowError),
        ("*".join(["1e-99"] * 5), OverflowError),
    ],
)
def test_arithmetic_without_a_value_ends_at_once(text: str, error: type[ArithmeticError]) -> None:
    with pytest.raises(error):
        fold(parse_expression(text), {})


# Updates -----------------------------------------------------------------------------------------


def test_the_kinds_of_update() -> None:
    x, call = Name("x"), Call("F", (Name("y"),))
    assert parse_statement("x = F(y)") == Assign("x", call, "x = F(y)")
    assert parse_statement(" x += F(y) ") == Assign("x", Binary("+", x, call), "x += F(y)")
    assert parse_statement("x -= F(y)") == Assign("x", Binary("-", x, call), "x -= F(y)")
    assert parse_statement("x *= 2") == Assign("x", Binary("*", x, Number(Fraction(2))), "x *= 2")
    assert parse_statement("x /= y") == Assign("x", Binary("/", x, Name("y")), "x /= y")
    assert parse_statement("k := F(y)") == Let("k", call, "k := F(y)")
    assert parse_statement("k:=F(y)") == Let("k", call, "k:=F(y)")
    assert parse_statement("a, b = b, a") == Permute(("a", "b"), ("b", "a"), "a, b = b, a")
    assert parse_statement("(a, b) = (b, a)") == Permute(("a", "b"), ("b", "a"), "(a, b) = (b, a)")
    assert parse_statement("x = x**0") == Assign("x", Power(x, 0), "x = x**0")
    assert fold(parse_expression("x**0"), {}) == ONE


@pytest.mark.parametrize(
    "text",
    [
        "  k  :=  F(y) + z ",
        " x = F(y) + z",
        "x +=   F(y) + z",
        "F(y) + z",
    ],
)
def test_offsets_are_those_of_the_text(text: str) -> None:
    update = "=" in text
    expression = parse_statement(text).value if update else parse_expression(text)  # type: ignore[union-attr]
    for part in subexpressions(expression):
        if isinstance(part, (Name, Call)) and part.at != (0, len(text)):
            assert text[slice(*part.at)] == show(part)


REFUSED = [
    # text, the part that the error points at, message
    ("x = ", "", "not readable"),
    ("x = y z", "", "not readable"),
    ("x = (y", "(", "not readable: '(' was never closed"),
    ("k := y) + (z", ")", "not readable: unmatched ')'"),
    ("k := ", "k := ", "nothing stands after `:=`"),
    ("k := m := y", ":", "not readable"),
    ("x = y; y = x", ";", "the character ';' is not used in the update language"),
    ("x = y # why", "#", "the character '#' is not used in the update language"),
    ("x = y\\", "\\", "the character '\\\\' is not used in the update language"),
    ("x = y\x0c", None, None),
    ("x =\x0cy", "\x0c", "the character '\\x0c' is not used in the update language"),
    ("(1 +\r 2)", "(1 +\r 2)", "one update is one line"),
    ("x = y\ny = x", "x = y\ny = x", "one update is one line"),
    ("x = é", "é", "the character 'é' is not used in the update language"),
    ("x = 𝐱", "𝐱", "the character '𝐱' is not used in the update language"),
    ("k := \xa0y", "\xa0", "the character '\\xa0' is not used in the update language"),
    ("é := y", None, "cannot be used as a name here"),
    ("x", "x", "not an update"),
    ("x == y", "x == y", "not an update"),
    ("x = y = z", "x = y = z", "not an update"),
    ("x: y = z", "x: y = z", "not an update"),
    ("x **= 2", "x **= 2", "not an update"),
    ("x @= y", "x @= y", "not an update"),
    ("del x", "del x", "not an update"),
    ("import os", "import os", "not an update"),
    ("x.y = z", "x.y", "an update rewrites one named stream"),
    ("x[0] = z", "x[0]", "an update rewrites one named stream"),
    ("[a, b] = b, a", "[a, b]", "an update rewrites one named stream"),
    ("x = y, z", "y, z", "`y, z` is not of the update language"),
    ("a, b = b, a + c", "a + c", "a permutation moves whole streams"),
    ("a, b = F(b), a", "F(b)", "a permutation moves whole streams"),
    ("a, b = c", None, None),
    ("a, b = 1", "1", "a permutation moves whole streams"),
    ("a, *b = b, a", "*b", "a permutation moves whole streams"),
    ("input = y", "input", "`input` cannot be used as a name here"),
    ("exp = y", "exp", "`exp` cannot be used as a name here"),
    ("layer := y", "layer", "`layer` cannot be used as a name here"),
    ("lambda := y", "lambda", "`lambda` cannot be used as a name here"),
    ("_k := y", "_k", "`_k` cannot be used as a name here"),
    ("x = __class__", "__class__", "`__class__` is not a name of the update language"),
    (f"x = {'y' * 41}", "y" * 41, "is not a name of the update language"),
    ("x = 'y'", "'y'", "`'y'` is not a number of the update language"),
    ("x = True*y", "True", "`True` is not a number of the update language"),
    ("x = None", "None", "`None` is not a number of the update language"),
    ("x = ...", "...", "`...` is not a number of the update language"),
    ("x = 1j", "1j", "`1j` is not a number of the update language"),
    ("x = 0x10", "0x10", "`0x10` is not a number of the update language"),
    ("x = 1_000", "1_000", "`1_000` is not a number of the update language"),
    ("x = 1e999*y", "1e999", "`1e999` is too large or too small"),
    ("x = 1e31*y", "1e31", "`1e31` is too large or too small"),
    ("x = 1e-999*y", "1e-999", "`1e-999` is too large or too small"),
    ("x = y // z", "y // z", "`y // z` is not of the update language"),
    ("x = y % z", "y % z", "`y % z` is not of the update language"),
    ("x = y @ z", "y @ z", "`y @ z` is not of the update language"),
    ("x = y if z else w", "y if z else w", "is not of the update language"),
    ("x = y and z", "y and z", "is not of the update language"),
    ("x = not y", "not y", "`not y` is not of the update language"),
    ("x = ~y", "~y", "`~y` is not of the update language"),
    ("x = y < z", "y < z", "`y < z` is not of the update language"),
    ("x = y.z", "y.z", "`y.z` is not of the update language"),
    ("x = y[0]", "y[0]", "`y[0]` is not of the update language"),
    ("x = [y]", "[y]", "`[y]` is not of the update language"),
    ("x = (y := z)", "y := z", "`y := z` is not of the update language"),
    ("x = lambda: y", "lambda: y", "`lambda: y` is not of the update language"),
    ("x = f'{y}'", "f'{y}'", "is not of the update language"),
    ("x = (yield)", "(yield)", None),
    ("x = F()", "F()", "`F` needs an argument"),
    ("x = F(y=z)", "F(y=z)", "`F(y=z)` is not of the update language"),
    ("x = F(*y)", "*y", "`*y` is not of the update language"),
    ("x = F(**y)", "F(**y)", "`F(**y)` is not of the update language"),
    ("x = F(y for y in z)", None, "is not of the update language"),
    ("x = F(y)(z)", "F(y)(z)", "`F(y)(z)` is not of the update language"),
    ("x = y.F(z)", "y.F(z)", "`y.F(z)` is not of the update language"),
    ("x = y**z", "z", "a power is a whole number of at most 16"),
    ("x = y**17", "17", "a power is a whole number of at most 16"),
    ("x = y**-17", "-17", "a power is a whole number of at most 16"),
    ("x = y**0.5", "0.5", "a power is a whole number of at most 16"),
    ("x = y**2.0", "2.0", "a power is a whole number of at most 16"),
    ("x = y**0x2", "0x2", "a power is a whole number of at most 16"),
    ("x = y**True", "True", "a power is a whole number of at most 16"),
    ("x = 2**3**2", "3**2", "a power is a whole number of at most 16"),
    ("x = " + "(" * 150 + "y" + ")" * 150, None, None),
    ("x = " + "(" * 300 + "y" + ")" * 300, None, "not readable"),
    ("x = " + "-" * 900 + "y", None, ""),
    ("x = " + "F(" * 70 + "y" + ")" * 70, None, "nested deeper than 60 levels"),
    ("x = " + "+".join("y" * 400), None, "nested deeper than 60 levels"),
    ("x = " + "y" * 1000, None, "longer than 1000 characters"),
    ("", "", ""),
    ("   ", "", ""),
    ("\t", "", ""),
]  # fmt: skip


@pytest.mark.parametrize(("text", "at", "message"), [r for r in REFUSED if r[2] is not None])
def test_what_is_not_of_the_language_is_refused_at_its_place(
    text: str, at: str | None, message: str
) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse_statement(text)
    error = caught.value
    assert message in error.message
    assert 0 <= error.start < max(error.end, 1)
    if at:
        assert text[error.start : error.end] == at


@pytest.mark.parametrize("text", [r[0] for r in REFUSED if r[2] is None])
def test_odd_but_clear_texts_are_read(text: str) -> None:
    try:
        parse_statement(text)
    except ExpressionError:
        assert "yield" in text


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(alphabet="xyFk01.e+-*/(),=: \t\n\r#;@~!<'\"[]{}_é\\", max_size=25))
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_expression, parse_statement):
        try:
            parse(text)
        except ExpressionError as error:
            assert error.message  # noqa: PT017
