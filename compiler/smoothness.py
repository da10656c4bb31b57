"""The factor of the penalty on weights that change with depth (Chang et al. 2018)."""

from __future__ import annotations

from archspec.expressions import Number, fold
from archspec.spec import Stage
from archspec.tree import Path
from compiler.constants import fixed_values
from compiler.places import Mistakes
from compiler.program import Program


def smoothness_factor(stage: Stage, program: Program, path: Path, mistakes: Mistakes) -> float:
    """What `smoothness` of the stage at `path` comes to, 0 where none is written. Mistakes are
    noted: a stage whose layers share their weights, and what is no number from 0 on."""
    if program.smoothness is None:
        return 0.0
    place = (*path, "smoothness")
    if stage.share:
        message = "with `share: true` all layers have the same weights, which cannot change"
        mistakes.key("E205", message, place, "leave out one of `smoothness` and `share`")
        return 0.0
    try:
        value = fold(program.smoothness, fixed_values(program.constants, 0, stage.depth))
    except ArithmeticError:
        mistakes.value("E206", "this divides by zero, or grows too large", place)
        return 0.0
    if not isinstance(value, Number):
        mistakes.value("E206", "this is arithmetic on numbers alone", place)
    elif value.value < 0:
        mistakes.value("E206", f"expected a number from 0 on, found {float(value.value):g}", place)
    else:
        return float(value.value)
    return 0.0
