"""The program of a stage, in canonical form and checked."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from archspec.diagnostics import Diagnostic
from archspec.expressions import Name
from archspec.spec import Stage
from archspec.tree import Path
from compiler.canonical import canonical, reads
from compiler.check import check_arithmetic, check_exact, check_invertible
from compiler.constants import leaves
from compiler.places import Mistakes
from compiler.plan import Constant, Step
from compiler.program import Program
from compiler.program_parsing import parse_program
from compiler.stage_settings import fraction_bits, reversed_from, strategy


@dataclass(frozen=True)
class Checked:
    """A program without mistakes."""

    program: Program
    steps: tuple[Step, ...]
    """Its update in canonical form, statement by statement."""
    obstacles: tuple[Diagnostic, ...]
    """Why it has no inverse, where the stage is not reversed."""


def check_program(
    stage: Stage, side: Collection[str], path: Path, mistakes: Mistakes
) -> Checked | None:
    """Parse and check the program of the stage at `path`, in which the names `side` stand for side
    inputs; None after noting a mistake."""
    program = parse_program(stage, side, path, mistakes)
    if program is None:
        return None
    steps: list[Step] = []
    for index, statement in enumerate(program.update):
        try:
            steps.append(canonical(statement, stage.maps))
        except ArithmeticError:
            message = "this divides by zero, or by a number too large or small"
            mistakes.value("E206", message, (*path, "update", index))
    if len(steps) < len(program.update):
        return None
    before = len(mistakes.found)
    check_arithmetic(program, steps, stage.depth, path, mistakes)
    if len(mistakes.found) > before:
        return None
    obstacles = Mistakes(mistakes.tree)
    check_invertible(program, steps, stage.depth, path, obstacles, reversed_from(stage))
    if stage.backward.kind == "reversible":
        mistakes.found += obstacles.found
    if fraction_bits(stage) is not None and not obstacles.found:
        check_exact(program, steps, stage.depth, path, mistakes, reversed_from(stage))
    changes = "progress" in all_read(steps, program.constants)
    _check_backward(stage, changes, not obstacles.found, path, mistakes)
    return Checked(program, tuple(steps), tuple(obstacles.found))


def _check_backward(
    stage: Stage, changes: bool, has_inverse: bool, path: Path, mistakes: Mistakes
) -> None:
    """Settings that do not go with one another; `changes` is whether the program does, over
    training."""
    if reversed_from(stage) > 0 and not changes:
        message = "no coefficient of this stage changes over training"
        help = "leave out `from`, which is for coefficients that read `progress`"
        mistakes.value("E305", message, (*path, "backward", "reversible", "from"), help)
    if stage.store_every is not None and strategy(stage, has_inverse) != "reversible":
        message = f"`backward: {stage.backward.kind}` keeps what it needs in every layer"
        help = "leave out `store_every`, which goes with `backward: reversible`"
        mistakes.key("E305", message, (*path, "store_every"), help)
    elif fraction_bits(stage) is not None and stage.store_every is not None:
        message = "streams of exact arithmetic come back as they were, from the end of the stage"
        help = "leave out `store_every`, which is for `arithmetic: float`"
        mistakes.key("E305", message, (*path, "store_every"), help)


def all_read(steps: Sequence[Step], constants: Mapping[str, Constant]) -> frozenset[str]:
    """All that updates read, constants looked into."""
    found = frozenset(name for step in steps for name in reads(step))
    return found | {leaf for name in found for leaf in leaves(Name(name), constants)}
