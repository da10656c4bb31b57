"""The rules that make a program invertible, checked in single-assignment form.

Each update makes a new version of its stream. The inverse runs the updates backwards, so an
update can be undone if its right-hand side can be computed again from what is there afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    LayerValues,
    count_combinations,
    count_parts,
    drawn_combinations,
    evaluation_values,
    interval,
    leaves,
    part_counts,
    ranges,
)
from compiler.places import Mistakes
from compiler.plan import Affine, Constant, General, Mapped, Permutation, Step, Temporary
from compiler.program import Program

SMALLEST_SCALE = 1e-6
"""A scale that can come nearer to zero than this is not bounded away from it."""

SMALLEST_EXACT = 2.0**-18
"""Of exact arithmetic: the bits that a smaller factor loses do not fit a word with those before."""

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
    since: float = 0.0,
) -> None:
    """Note each rule that a program breaks where `progress` is `since` or more, with what to write
    instead."""
    versions = _Versions(dict.fromkeys(program.starts, 0))
    values = LayerValues(program.constants, depth)
    for index, (statement, step) in enumerate(zip(program.update, steps, strict=True)):
        place = (*path, "update", index)
        if isinstance(step, (Permutation, Mapped)):
            for name in step.targets if isinstance(step, Permutation) else (step.target,):
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
                factor = Factor(step, steps, program.constants)
                _check_scale(factor, program.constants, values, depth, place, mistakes, since)
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


class Factor:
    """The factor of a step's target, with the temporaries that it is made of."""

    def __init__(
        self, step: Affine, steps: Sequence[Step], constants: Mapping[str, Constant]
    ) -> None:
        temporaries = {s.name: s.value for s in steps if isinstance(s, Temporary)}
        self.step = step
        self.read = leaves(step.scale, {**constants, **temporaries})
        self.parts = {name: value for name, value in temporaries.items() if name in self.read}

    def layers(self, depth: int) -> range:
        """The layers in which it may differ."""
        return range(depth if "layer" in self.read else 1)

    def bounds(
        self, fixed: Mapping[str, Expression], draws: Iterable[Mapping[str, Interval]]
    ) -> Iterator[Interval]:
        """Where it may lie, for one layer and each of several sets of draws."""
        parts = {name: fold(value, fixed) for name, value in self.parts.items()}
        scale = fold(self.step.scale, fixed)
        for drawn in draws:
            known = dict(drawn)
            for name, value in parts.items():
                known[name] = interval(value, known)
            yield interval(scale, known)


def _check_scale(
    factor: Factor,
    constants: Mapping[str, Constant],
    values: LayerValues,
    depth: int,
    place: Path,
    mistakes: Mistakes,
    since: float,
) -> None:
    read = factor.read
    combinations = list(drawn_combinations(constants, read))
    known = [ranges(constants, drawn, since) for drawn in combinations]
    for layer in factor.layers(depth):
        found = factor.bounds(values.at(layer), known)
        for drawn, bounds in zip(combinations, found, strict=True):
            if not _is_safe(bounds):
                where = f" at layer {layer}" if "layer" in read else ""
                message = _unsafe(factor.step, bounds) + where + _when(drawn)
                note = "".join((_REVERSIBLE, *_where_set(read & set(constants), place, mistakes)))
                help = _SCALE_HELP + (_FROM_HELP if "progress" in read else "")
                mistakes.value("E303", message, place, help, note)
                return


def check_exact(
    program: Program,
    steps: Sequence[Step],
    depth: int,
    path: Path,
    mistakes: Mistakes,
    since: float = 0.0,
) -> None:
    """Note each factor of an invertible program that is too small for exact arithmetic."""
    values = LayerValues(program.constants, depth)
    for index, step in enumerate(steps):
        if not isinstance(step, Affine):
            continue
        factor = Factor(step, steps, program.constants)
        evaluation = evaluation_values(program.constants)
        drawn = [*drawn_combinations(program.constants, factor.read), evaluation]
        known = [ranges(program.constants, values, since) for values in drawn]
        bounds = (b for n in factor.layers(depth) for b in factor.bounds(values.at(n), known))
        # A factor of 0, which only evaluation may have, is never undone.
        smallest = min((b.smallest for b in bounds if b != Interval(0.0, 0.0)), default=1.0)
        if smallest < SMALLEST_EXACT:
            message = (
                f"the factor `{show(unlift(step.scale, step.calls))}` of `{step.target}` may be as "
                f"small as {smallest:g}, and exact arithmetic takes none below {SMALLEST_EXACT:g}"
            )
            help = "bound it further from 0, or use `arithmetic: float`"
            mistakes.value("E305", message, (*path, "update", index), help)


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


def _when(drawn: Mapping[str, float]) -> str:
    values = [f"`{name}` is {value:g}" for name, value in drawn.items()]
    return f" when {' and '.join(values)}" if values else ""


_INFINITE = 1e30
_SCALE_HELP = (
    "a factor is a constant other than 0, a learned one with `within:`, or a bounded function "
    "of other streams such as `exp(tanh(S(y)))`"
)
_FROM_HELP = (
    "; where it is too small only as training begins, `backward: {reversible: {from: 0.1}}` "
    "checkpoints the stage until `progress` is 0.1"
)


def invertible_in_evaluation(
    steps: Sequence[Step], constants: Mapping[str, Constant], depth: int, since: float = 0.0
) -> bool:
    """Whether every scale stays away from zero with the evaluation values of drawn constants."""
    if not any(isinstance(constant, Drawn) for constant in constants.values()):
        return True
    known = [ranges(constants, evaluation_values(constants), since)]
    values = LayerValues(constants, depth)
    factors = [Factor(step, steps, constants) for step in steps if isinstance(step, Affine)]
    return all(
        _is_safe(bounds)
        for factor in factors
        for layer in factor.layers(depth)
        for bounds in factor.bounds(values.at(layer), known)
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
    constants = program.constants
    values = LayerValues(constants, depth)
    work = values.work * depth + _work([e for _, es in texts for e in es], steps, constants, depth)
    if not mistakes.affords(work, (*path, "update")):
        return
    for place, expressions in texts:
        problems = (_problem(expression, constants, values, depth) for expression in expressions)
        if problem := next(filter(None, problems), None):
            mistakes.value("E206", problem, (*path, *place))


def _expressions(step: Step) -> tuple[Expression, ...]:
    if isinstance(step, (Permutation, Mapped)):
        return ()
    own = (step.scale, step.rest) if isinstance(step, Affine) else (step.value,)
    return (*own, *(argument for call in step.calls for argument in call.arguments))


def _problem(
    expression: Expression, constants: Mapping[str, Constant], values: LayerValues, depth: int
) -> str | None:
    """What goes wrong in some layer, or with some draw."""
    by_layer = "layer" in leaves(expression, constants)
    for layer in range(depth if by_layer else 1):
        where = f" at layer {layer}" if by_layer else ""
        try:
            folded = fold(expression, values.at(layer))
        except ZeroDivisionError:
            return f"this divides by zero{where}"
        except OverflowError:
            return f"a constant here is too large{where}"
        for divisor in _divisors(folded):
            for given in _given(divisor.names, constants):
                if interval(divisor, ranges(constants, given)) == Interval(0.0, 0.0):
                    return f"this divides by zero{where}{_when(given)}"
    return None


def _given(read: frozenset[str], constants: Mapping[str, Constant]) -> Iterator[dict[str, float]]:
    """The values that what is read may have in training, and in evaluation, at both ends of
    training."""
    evaluation = {n: v for n, v in evaluation_values(constants).items() if n in read}
    ends = ({"progress": 0.0}, {"progress": 1.0}) if "progress" in read else ({},)
    for drawn in (*drawn_combinations(constants, read), evaluation):
        for end in ends:
            yield {**drawn, **end}


def _divisors(expression: Expression) -> Iterator[Expression]:
    for part in subexpressions(expression):
        if isinstance(part, Binary) and part.operator == "/":
            yield part.right
        elif isinstance(part, Power) and part.exponent < 0:
            yield part.base


def _work(
    expressions: Sequence[Expression],
    steps: Sequence[Step],
    constants: Mapping[str, Constant],
    depth: int,
) -> int:
    """How many parts of expressions are evaluated to check a program, at most: in each layer where
    they read `layer`, and for each combination of draws where they are factors or divide."""
    counts, total = part_counts(constants), 0
    for expression in expressions:
        read = leaves(expression, constants)
        known = (expression, *(c for n in read if isinstance(c := constants.get(n), Expression)))
        divide = any(divisor.names for e in known for divisor in _divisors(e))
        draws = 1 + count_combinations(constants, read) if divide else 1
        total += count_parts(expression, counts) * (depth if "layer" in read else 1) * draws
    for step in steps:
        if isinstance(step, Affine):
            factor = Factor(step, steps, constants)
            parts = (step.scale, *factor.parts.values())
            size = sum(count_parts(part, counts) for part in parts)
            draws = 1 + count_combinations(constants, factor.read)
            total += size * len(factor.layers(depth)) * draws
    return total
