"""The rules that make a program invertible, checked in single-assignment form.

Each update makes a new version of its stream. The inverse runs the updates backwards, so an
update can be undone if its right-hand side can be computed again from what is there afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from archspec.expressions import (
    Assign,
    Binary,
    Expression,
    Let,
    Name,
    Power,
    calls,
    fold,
    names,
    show,
    subexpressions,
)
from archspec.spec import Drawn
from archspec.tree import Path
from compiler.canonical import NotAffineError, lift_calls, reads, split, unlift
from compiler.constants import (
    Interval,
    drawn_combinations,
    evaluation_values,
    fixed_values,
    interval,
    leaves,
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
                _check_scale(step, steps, program.constants, depth, place, mistakes)
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
    value, lifted = lift_calls(statement.value)
    part: Expression = statement.value
    try:
        split(value, target)
    except NotAffineError as error:
        part = unlift(error.part, lifted)
    message = f"`{show(part)}` is not linear in `{target}`, the stream that this update rewrites"
    help = (
        f"write the update as `{target} = scale*{target} + rest`, with neither reading `{target}`"
    )
    mistakes.text("E302", message, place, part.at, help, _REVERSIBLE)


# Rule 2: scales ----------------------------------------------------------------------------------


def _check_scale(
    step: Affine,
    steps: Sequence[Step],
    constants: Mapping[str, Constant],
    depth: int,
    place: Path,
    mistakes: Mistakes,
) -> None:
    temporaries = {s.name: s.value for s in steps if isinstance(s, Temporary)}
    read = leaves(step.scale, {**constants, **temporaries})
    for layer in range(depth if "layer" in read else 1):
        fixed = fixed_values(constants, layer, depth)
        for drawn in drawn_combinations(constants):
            bounds = scale_range(step, steps, constants, fixed, drawn)
            if not _is_safe(bounds):
                where = f" at layer {layer}" if "layer" in read else ""
                message = _unsafe(step, bounds) + where + _when(drawn, read)
                note = "".join((_REVERSIBLE, *_where_set(read & set(constants), place, mistakes)))
                mistakes.value("E303", message, place, _SCALE_HELP, note)
                return


def _where_set(names: frozenset[str], place: Path, mistakes: Mistakes) -> Iterator[str]:
    """Where constants stand: often far from the update, which may come from a coupling file."""
    for name in sorted(names):
        yield f"; `{name}` is set at {mistakes.tree.where((*place[:-2], 'constants', name))}"


def _is_safe(bounds: Interval) -> bool:
    """Whether a factor stays away from zero and from infinity."""
    finite = bounds.low > -_INFINITE and bounds.high < _INFINITE
    return finite and bounds.smallest >= SMALLEST_SCALE


def _unsafe(step: Affine, bounds: Interval) -> str:
    if bounds.low == bounds.high == 0:
        return f"this update forgets `{step.target}`: its factor is 0"
    return (
        f"the factor `{show(unlift(step.scale, step.calls))}` of `{step.target}` must stay away "
        f"from zero and infinity, and it may be anything from {bounds.low:g} to {bounds.high:g}"
    )


def _when(drawn: Mapping[str, float], read: frozenset[str]) -> str:
    values = [f"`{name}` is {value:g}" for name, value in drawn.items() if name in read]
    return f" when {' and '.join(values)}" if values else ""


_INFINITE = 1e30
_SCALE_HELP = (
    "a factor is a constant other than 0, a learned one with `within:`, or a bounded function "
    "of other streams such as `exp(tanh(S(y)))`"
)


def scale_range(
    step: Affine,
    steps: Sequence[Step],
    constants: Mapping[str, Constant],
    fixed: Mapping[str, Expression],
    drawn: Mapping[str, float],
) -> Interval:
    """Where the factor of a step's target may lie, for one layer and one set of draws."""
    known = ranges(constants, drawn)
    for other in steps:
        if isinstance(other, Temporary):
            known[other.name] = interval(fold(other.value, fixed), known)
    return interval(fold(step.scale, fixed), known)


def invertible_in_evaluation(
    steps: Sequence[Step], constants: Mapping[str, Constant], depth: int
) -> bool:
    """Whether every scale stays away from zero with the evaluation values of drawn constants."""
    if not any(isinstance(constant, Drawn) for constant in constants.values()):
        return True
    drawn = evaluation_values(constants)
    return all(
        _is_safe(scale_range(step, steps, constants, fixed_values(constants, layer, depth), drawn))
        for layer in range(depth)
        for step in steps
        if isinstance(step, Affine)
    )


# Arithmetic, for every backward strategy ---------------------------------------------------------


def check_arithmetic(
    program: Program, steps: Sequence[Step], depth: int, path: Path, mistakes: Mistakes
) -> None:
    """Note each division by zero, and each constant that is too large."""
    texts: list[tuple[Path, tuple[Expression, ...]]] = [
        (("streams", name), (start,)) for name, start in program.starts.items()
    ]
    texts += [(("update", index), _expressions(step)) for index, step in enumerate(steps)]
    texts.append((("output",), (program.output,)))
    for place, expressions in texts:
        if problem := _problem(expressions, program.constants, depth):
            mistakes.value("E206", problem, (*path, *place))


def _expressions(step: Step) -> tuple[Expression, ...]:
    if isinstance(step, Permutation):
        return ()
    own = (step.scale, step.rest) if isinstance(step, Affine) else (step.value,)
    return (*own, *(argument for call in step.calls for argument in call.arguments))


def _problem(
    expressions: tuple[Expression, ...], constants: Mapping[str, Constant], depth: int
) -> str | None:
    """What goes wrong in some layer, or with some draw."""
    read = frozenset(name for e in expressions for name in leaves(e, constants))
    for layer in range(depth if "layer" in read else 1):
        fixed = fixed_values(constants, layer, depth)
        where = f" at layer {layer}" if "layer" in read else ""
        try:
            folded = [fold(expression, fixed) for expression in expressions]
        except ZeroDivisionError:
            return f"this divides by zero{where}"
        except OverflowError:
            return f"a constant here is too large{where}"
        divisors = [d for e in folded for part in subexpressions(e) for d in _divisor(part)]
        for drawn in (*drawn_combinations(constants), evaluation_values(constants)):
            known = ranges(constants, drawn)
            if any(interval(divisor, known) == Interval(0.0, 0.0) for divisor in divisors):
                return f"this divides by zero{where}{_when(drawn, read)}"
    return None


def _divisor(part: Expression) -> tuple[Expression, ...]:
    if isinstance(part, Binary) and part.operator == "/":
        return (part.right,)
    return (part.base,) if isinstance(part, Power) and part.exponent < 0 else ()
