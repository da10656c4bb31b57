"""The rules that make a program invertible, checked in single-assignment form.

Each update makes a new version of its stream. The inverse runs the updates backwards, so an
update can be undone if its right-hand side can be computed again from what is there afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from archspec.expressions import (
    Assign,
    Expression,
    Let,
    Name,
    calls,
    fold,
    names,
    show,
    subexpressions,
)
from archspec.spec import Drawn
from archspec.tree import Path
from compiler.canonical import NotAffineError, lift_calls, reads, split
from compiler.constants import (
    Interval,
    drawn_combinations,
    evaluation_values,
    fixed_values,
    interval,
    ranges,
)
from compiler.places import Mistakes
from compiler.plan import Affine, Constant, General, Permutation, Step, Temporary
from compiler.program import Program

SMALLEST_SCALE = 1e-6
"""A scale that can come nearer to zero than this is not bounded away from it."""

Version = tuple[str, int]


@dataclass
class _Versions:
    """How often each stream has changed so far in a layer, and what temporaries have read."""

    streams: dict[str, int]
    read: dict[str, frozenset[Version]] = field(default_factory=dict)

    def of(self, name: str) -> frozenset[Version]:
        """The stream versions behind a name: a stream's own, or all that a temporary read."""
        if name in self.streams:
            return frozenset({(name, self.streams[name])})
        return self.read.get(name, frozenset())


def check_invertible(
    program: Program,
    steps: Sequence[Step],
    depth: int,
    path: Path,
    mistakes: Mistakes,
) -> None:
    """Note each rule that a program breaks, with what to write instead."""
    versions = _Versions(dict.fromkeys(program.starts, 0))
    for index, (statement, step) in enumerate(zip(program.update, steps, strict=True)):
        place = (*path, "update", index)
        if isinstance(step, Permutation):
            for name in step.targets:
                versions.streams[name] += 1
            continue
        _check_temporaries(step, program.update[index], versions, place, mistakes)
        if isinstance(statement, Let):
            read = (versions.of(name) for name in reads(step))
            versions.read[statement.name] = frozenset().union(*read)
        elif isinstance(step, (Affine, General)):
            assert isinstance(statement, Assign)
            if isinstance(step, General):
                _explain_general(statement, place, mistakes)
            elif not _reads_target_indirectly(step, versions):
                _check_scale(step, program.constants, depth, place, mistakes)
            versions.streams[step.target] += 1


def _reads_target_indirectly(step: Affine | General, versions: _Versions) -> bool:
    return any(
        (step.target, versions.streams[step.target]) in versions.read.get(name, ())
        for name in reads(step)
    )


def _check_temporaries(
    step: Step, statement: object, versions: _Versions, place: Path, mistakes: Mistakes
) -> None:
    """Rules 1 and 4 for the temporaries that a step uses."""
    assert isinstance(statement, (Assign, Let))
    target = step.target if isinstance(step, (Affine, General)) else None
    for part in subexpressions(statement.value):
        if not isinstance(part, Name) or part.name not in versions.read:
            continue
        for stream, version in sorted(versions.read[part.name]):
            if stream == target and version == versions.streams[stream]:
                message = (
                    f"`{part.name}` was computed from `{stream}`, the stream that this update "
                    f"rewrites, so `{stream}` cannot be recovered"
                )
                help = _other_stream(stream)
                mistakes.text("E301", message, place, part.at, help, _REVERSIBLE)
            elif version != versions.streams[stream]:
                message = (
                    f"`{part.name}` was computed from `{stream}`, which has changed since, so "
                    f"`{part.name}` cannot be computed again in the inverse"
                )
                help = f"use `{part.name}` before `{stream}` changes, or compute it anew here"
                mistakes.text("E304", message, place, part.at, help, _REVERSIBLE)


_REVERSIBLE = "the stage says `backward: reversible`; `checkpoint` and `store` take any program"


def _other_stream(stream: str) -> str:
    return (
        f"read another stream instead: with two streams, `{stream} += F(y)` then "
        f"`y += G({stream})` can be undone"
    )


def _explain_general(statement: Assign, place: Path, mistakes: Mistakes) -> None:
    """Why an update is not of the form scale*target + rest."""
    target = statement.target
    for call in calls(statement.value):
        if any(target in names(argument) for argument in call.arguments):
            message = (
                f"{call.function} reads {target}, the stream that this update rewrites, "
                f"so {target} cannot be recovered"
            )
            help = _other_stream(target)
            mistakes.text("E301", message, place, call.at, help, _REVERSIBLE)
            return
    part: Expression = statement.value
    try:
        split(lift_calls(statement.value)[0], target)
    except NotAffineError as error:
        part = error.part
    message = f"`{show(part)}` is not linear in `{target}`, the stream that this update rewrites"
    help = (
        f"write the update as `{target} = scale*{target} + rest`, with neither reading `{target}`"
    )
    mistakes.text("E302", message, place, part.at, help, _REVERSIBLE)


# Rule 2: scales ----------------------------------------------------------------------------------


def _check_scale(
    step: Affine, constants: Mapping[str, Constant], depth: int, place: Path, mistakes: Mistakes
) -> None:
    for layer in range(depth):
        fixed = fixed_values(constants, layer, depth)
        for drawn in drawn_combinations(constants):
            bounds = scale_range(step, constants, fixed, drawn)
            if (
                bounds.smallest >= SMALLEST_SCALE
                and bounds.low > -_INFINITE
                and bounds.high < _INFINITE
            ):
                continue
            text = show(step.scale)
            at_layer = f" at layer {layer}" if "layer" in _leaves(step.scale, constants) else ""
            if step.scale == fold(step.scale, {}) and bounds.low == bounds.high == 0:
                message = f"this update forgets `{step.target}`: its factor is 0{at_layer}"
            else:
                message = (
                    f"the factor `{text}` of `{step.target}` must stay away from zero and "
                    f"infinity, and it may be anything from {bounds.low:g} to {bounds.high:g}{at_layer}"
                )
            mistakes.value("E303", message, place, _SCALE_HELP, _REVERSIBLE)
            return
        if "layer" not in _leaves(step.scale, constants):
            return


_INFINITE = 1e30
_SCALE_HELP = (
    "a factor is a constant other than 0, a learned one with `within:`, or a bounded function "
    "of other streams such as `exp(tanh(S(y)))`"
)


def _leaves(expression: Expression, constants: Mapping[str, Constant]) -> frozenset[str]:
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


def scale_range(
    step: Affine,
    constants: Mapping[str, Constant],
    fixed: Mapping[str, Expression],
    drawn: Mapping[str, float],
) -> Interval:
    """Where the factor of a step's target may lie, for one layer and one set of draws."""
    return interval(fold(step.scale, fixed), ranges(constants, drawn))


def invertible_in_evaluation(
    steps: Sequence[Step], constants: Mapping[str, Constant], depth: int
) -> bool:
    """Whether every scale stays away from zero with the evaluation values of drawn constants."""
    if not any(isinstance(constant, Drawn) for constant in constants.values()):
        return True
    drawn = evaluation_values(constants)
    return all(
        scale_range(step, constants, fixed_values(constants, layer, depth), drawn).smallest
        >= SMALLEST_SCALE
        for layer in range(depth)
        for step in steps
        if isinstance(step, Affine)
    )
