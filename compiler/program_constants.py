"""The constants of a program: numbers, in every layer, that coefficients can hold."""

from __future__ import annotations

from collections.abc import Mapping

from archspec.expressions import LARGEST, Call, Expression, Name, subexpressions
from archspec.spec import Drawn, Learned
from archspec.tree import Path
from compiler.constants import MAX_COMBINATIONS, NUMBERS, LayerValues, count_combinations, leaves
from compiler.places import Mistakes
from compiler.plan import Constant


def check_constants(
    constants: Mapping[str, Constant], depth: int, path: Path, mistakes: Mistakes
) -> None:
    """Check every constant at every layer."""
    before = len(mistakes.found)
    for name, constant in constants.items():
        if isinstance(constant, (Learned, Drawn)):
            _check_size(constant, (*path, name), mistakes)
        if isinstance(constant, Learned):
            _check_learned(constant, (*path, name), mistakes)
        elif isinstance(constant, Expression):
            _check_constant(name, constant, constants, (*path, name), mistakes)
    if len(mistakes.found) > before:
        return
    if count_combinations(constants) > MAX_COMBINATIONS:
        message = f"the draws here have more than {MAX_COMBINATIONS} combinations"
        mistakes.key("E206", message, path)
    layer = 0
    try:
        values = LayerValues(constants, depth)
        if values.work and mistakes.affords(values.work * depth, path):
            for layer in range(depth):
                values.at(layer)
    except ArithmeticError as error:
        what = "divides by zero" if isinstance(error, ZeroDivisionError) else "grows too large"
        mistakes.key("E206", f"a constant {what} at layer {layer}", path)


def _check_size(constant: Learned | Drawn, path: Path, mistakes: Mistakes) -> None:
    """Coefficients are tensors of float32, which end soon after the largest constant."""
    if isinstance(constant, Learned):
        values = {"learn": (constant.learn,), "within": constant.within or ()}
    else:
        values = {"draw": constant.draw, "evaluate": (constant.evaluate,)}
    for key, found in values.items():
        if any(abs(value) > LARGEST for value in found):
            message = f"a coefficient is at most {LARGEST:g}, on either side of zero"
            mistakes.value("E206", message, (*path, key))


def _check_learned(learned: Learned, path: Path, mistakes: Mistakes) -> None:
    if learned.within is None:
        return
    low, high = learned.within
    # The parameter is the logit of this place, which float32 must tell from the ends.
    place = (learned.learn - low) / (high - low) if low < high else 0.0
    if not 1e-6 <= place <= 1 - 1e-6:
        message = f"{learned.learn} does not lie inside the range from {low} to {high}"
        help = "the range is written from low to high" if low >= high else ""
        if low <= learned.learn <= high and not help:
            help = "it must lie strictly inside, a millionth of the range from either end"
        mistakes.value("E206", message, (*path, "learn"), help)


def _check_constant(
    name: str, constant: Expression, known: Mapping[str, Constant], path: Path, mistakes: Mistakes
) -> None:
    for part in subexpressions(constant):
        if isinstance(part, Call):
            mistakes.text("E206", "a constant is arithmetic on numbers alone", path, part.at)
        elif isinstance(part, Name) and part.name not in (*known, *NUMBERS):
            help = mistakes.nearest(part.name, [*known, *NUMBERS])
            mistakes.text("E202", f"unknown name `{part.name}`", path, part.at, help)
    if name in leaves(constant, known):
        mistakes.value("E206", f"`{name}` is defined by itself", path)
