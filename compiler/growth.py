"""What a program does to streams when its residual functions are zero.

One layer is then a small matrix M over the streams. The norm of the inverse of all layers together
says how the inverse amplifies rounding; log2(1/|det M|) is the information that a layer destroys,
and that a perfect inverse must keep.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from archspec.expressions import (
    DERIVED,
    LOG_DETERMINANT,
    ONE,
    Binary,
    Call,
    Expression,
    Name,
    Negative,
    Number,
    Power,
    fold,
    names,
)
from archspec.spec import Learned
from compiler.canonical import reads
from compiler.constants import NUMBERS, drawn_combinations, fixed_values, leaves
from compiler.plan import Affine, Constant, Mapped, Permutation, StagePlan, Step, Temporary

FLOAT32_STEP = 2.0**-24
"""The largest relative error of rounding to float32."""
ROUNDING = 0.42
"""The root mean square of the relative error of a rounding, in steps: that of random digits."""

Curve = tuple[float, ...]
"""Relative errors of all streams together (norm of the difference over norm) after 1, 2, … layers
are undone; infinite where numbers overflow."""

_FUNCTIONS: Mapping[str, Callable[[float], float]] = {
    "exp": math.exp,
    "tanh": math.tanh,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "sin": math.sin,
    "cos": math.cos,
    "relu": lambda x: max(x, 0.0),
}


@dataclass(frozen=True)
class Stability:
    """The linear part of a stage's inverse."""

    growth: float
    """Spectral norm of the inverse over all layers, or over the `store_every` that it is the worst
    of; 1 amplifies nothing."""
    bits: float
    """Bits per element that the layers destroy in all."""


def stability(plan: StagePlan) -> Stability | None:
    """The growth and the bits of an invertible stage: the worst over its draws in training,
    over the start and the end of training, and over its learned coefficients where they start and
    at both ends of their ranges.

    Learned maps of the channels count as the identity: `actnorm` starts as that and
    `invertible_linear` as a rotation, and what they learn is not in these numbers.

    None where they are not a matter of the linear part: a scale that reads a stream has its values
    from the data, and some programs have no linear part at zero (`y/F(y)`).
    """
    if any(isinstance(step, Affine) and _reads_streams(step, plan) for step in plan.steps):
        return None
    try:
        found = [
            _stability(plan, {**drawn, **learned, "progress": progress})
            for drawn in drawn_combinations(plan.constants)
            for learned in learned_values(plan.constants)
            for progress in plan.ends_of_training
        ]
    except (ArithmeticError, RuntimeError):  # singular matrices are RuntimeErrors
        return None
    return Stability(max(s.growth for s in found), max(s.bits for s in found))


def learned_values(constants: Mapping[str, Constant]) -> Iterator[dict[str, float]]:
    """Learned coefficients where they start, then all at the low, then all at the high end of
    their ranges. Those without a range, which no scale may read, stay where they start."""
    learned = {name: c for name, c in constants.items() if isinstance(c, Learned)}
    yield {name: c.learn for name, c in learned.items()}
    if any(c.within for c in learned.values()):
        yield {name: c.within[0] if c.within else c.learn for name, c in learned.items()}
        yield {name: c.within[1] if c.within else c.learn for name, c in learned.items()}


def _reads_streams(step: Affine, plan: StagePlan) -> bool:
    """Whether a step's scale depends on more than coefficients."""
    return bool(names(step.scale) - set(plan.constants) - set(NUMBERS))


def _stability(plan: StagePlan, values: Mapping[str, float]) -> Stability:
    layers = range(plan.depth if _reads_layer(plan) else 1)
    matrices = [layer_matrix(plan, layer, values) for layer in layers]
    bits = -sum(math.log2(abs(float(torch.linalg.det(m)))) for m in matrices)
    if len(matrices) == 1:
        power = torch.linalg.matrix_power(torch.linalg.inv(matrices[0]), plan.store_every)
        return Stability(_norm(power), max(0.0, bits * plan.depth))
    starts = range(0, plan.depth, plan.store_every)
    growth = max(_inverse_norm(matrices[n : n + plan.store_every]) for n in starts)
    return Stability(growth, max(0.0, bits))


def _inverse_norm(matrices: Sequence[Tensor]) -> float:
    """Spectral norm of the inverse of some layers."""
    inverse = torch.eye(len(matrices[0]), dtype=torch.float64)
    for matrix in matrices:
        inverse = inverse @ torch.linalg.inv(matrix)
    return _norm(inverse)


def _norm(matrix: Tensor) -> float:
    finite = bool(torch.isfinite(matrix).all())
    return float(torch.linalg.matrix_norm(matrix, ord=2)) if finite else math.inf


def _reads_layer(plan: StagePlan) -> bool:
    """Whether the program is another in every layer."""
    read = frozenset(name for step in plan.steps for name in reads(step))
    return any("layer" in leaves(Name(name), plan.constants) for name in read)


def layer_matrix(plan: StagePlan, layer: int, coefficients: Mapping[str, float]) -> Tensor:
    """M of one layer, (streams, streams) in float64: row i is stream i afterwards, by those before.
    `coefficients` gives the learned and the drawn ones. Raises ArithmeticError."""
    streams = [stream.name for stream in plan.streams]
    size = len(streams)
    unit = torch.eye(size, dtype=torch.float64)
    values = {name: _Linear(0.0, unit[i]) for i, name in enumerate(streams)}
    none = torch.zeros(size, dtype=torch.float64)
    values.update({name: _Linear(value, none) for name, value in coefficients.items()})
    values.update({side.name: _Linear(0.0, none) for side in plan.side})
    fixed = fixed_values(plan.constants, layer, plan.depth)
    for step in plan.steps:
        if isinstance(step, Permutation):
            values.update(zip(step.targets, [values[s] for s in step.sources], strict=True))
            continue
        if isinstance(step, Mapped):  # squeezes move elements about; learned maps: see `stability`
            continue
        scope = {**values, **{call.result: _Linear(0.0, none) for call in step.calls}}
        if isinstance(step, Affine):
            scale = _evaluate(fold(step.scale, fixed), scope, none)
            rest = _evaluate(fold(step.rest, fixed), scope, none)
            old = values[step.target]
            values[step.target] = _Linear(0.0, scale.constant * old.part + rest.part)
        else:
            name = step.name if isinstance(step, Temporary) else step.target
            values[name] = _evaluate(fold(step.value, fixed), scope, none)
    return torch.stack([values[name].part for name in streams])


def unit_scale(step: Step, fixed: Mapping[str, Expression]) -> int:
    """The scale of a step's target where it is 1 or -1, else 0."""
    scale = fold(step.scale, fixed) if isinstance(step, Affine) else None
    if isinstance(scale, Negative):
        return -int(scale.operand == ONE)
    return int(scale.value) if isinstance(scale, Number) and abs(scale.value) == 1 else 0


# Errors ------------------------------------------------------------------------------------------


def linear_errors(
    plan: StagePlan,
    *,
    every: int | None = None,
    sizes: Tensor | None = None,
    coefficients: Sequence[Mapping[str, float]] | None = None,
) -> Curve | None:
    """The error to expect of float32 streams from the linear part of the layers alone, where
    streams are kept after every `every`-th layer (by default, as the plan says).

    Each layer adds the rounding of the streams that it rewrites, and its inverse hands on what was
    there before as M^-1 does: C ← E[M^-1 (C + N') M^-T] + N, for the covariance C of the errors of
    one element over the streams, and over the draws. That is an average, where `Stability.growth`
    is a bound. It is low where residual functions amplify, and a little high where they are so
    small that sums and differences are exact.

    `sizes` (depth + 1, streams) are root mean squares of the streams before each layer and after
    the last; all alike by default. `coefficients` gives each layer's learned coefficients and
    `progress`; by default the worst of the ends of their ranges. None as for `stability`.
    """
    if any(isinstance(step, Affine) and _reads_streams(step, plan) for step in plan.steps):
        return None
    if sizes is None:
        sizes = torch.ones(plan.depth + 1, len(plan.streams), dtype=torch.float64)
    choices = [coefficients] if coefficients is not None else _ends(plan)
    try:
        every = every or plan.store_every
        return max((_linear_errors(plan, every, sizes, c) for c in choices), key=max)
    except (ArithmeticError, RuntimeError):  # singular matrices are RuntimeErrors
        return None


def _ends(plan: StagePlan) -> list[list[Mapping[str, float]]]:
    """The coefficients of each layer, at each end of training and of the ranges learned in."""
    return [
        [{**learned, "progress": progress}] * plan.depth
        for learned in learned_values(plan.constants)
        for progress in plan.ends_of_training
    ]


def _linear_errors(
    plan: StagePlan, every: int, sizes: Tensor, coefficients: Sequence[Mapping[str, float]]
) -> Curve:
    counts = [math.prod(s.shape.sizes) * (s.name != LOG_DETERMINANT) for s in plan.streams]
    elements = torch.tensor(counts, dtype=torch.float64)
    draws = list(drawn_combinations(plan.constants))
    covariance = torch.zeros(len(elements), len(elements), dtype=torch.float64)
    errors: list[float] = []
    inverses, known = torch.empty(0), None
    for layer in reversed(range(plan.depth)):
        values = (coefficients[layer], layer if _reads_layer(plan) else 0)
        if values != known:
            matrices = [layer_matrix(plan, layer, {**d, **coefficients[layer]}) for d in draws]
            inverses, known = torch.linalg.inv(torch.stack(matrices)), values
        before, after = _rounded(plan, layer)
        if (layer + 1) % every == 0:  # kept streams start anew
            covariance = torch.zeros_like(covariance)
        covariance = covariance + torch.diag((sizes[layer + 1] * after).square())
        covariance = (inverses @ covariance @ inverses.mT).mean(0)
        covariance = covariance + torch.diag((sizes[layer] * before).square())
        mean = float((elements * covariance.diagonal()).sum())
        size = float((elements * sizes[layer].square()).sum())
        errors.append(FLOAT32_STEP * ROUNDING * _root(mean, size))
    return tuple(errors)


def _root(mean: float, size: float) -> float:
    if not math.isfinite(mean) or not math.isfinite(size):
        return math.inf
    return math.sqrt(mean / size) if size > 0 else 0.0


def _rounded(plan: StagePlan, layer: int) -> tuple[Tensor, Tensor]:
    """How many roundings' variances: 1 for the streams that a layer's inverse rounds, and 1 for
    those that the layer itself rounds. What was added with a scale of 1 or -1 is taken away without
    an error of its own."""
    fixed = fixed_values(plan.constants, layer, plan.depth)
    streams = [stream.name for stream in plan.streams]
    held = {name: name for name in streams}  # which stream of the layer's start a name holds
    inverse, forward = set(), set()
    for step in plan.steps:
        if isinstance(step, Permutation):
            held.update(zip(step.targets, [held[s] for s in step.sources], strict=True))
        elif isinstance(step, (Affine, Mapped)):
            forward.add(held[step.target])
            if not unit_scale(step, fixed):
                inverse.add(held[step.target])
    before = [float(name in inverse) for name in streams]
    after = [float(held[name] in forward) for name in streams]
    return tuple(torch.tensor(flags, dtype=torch.float64) for flags in (before, after))  # type: ignore[return-value]


# Linear parts ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Linear:
    """constant + part · streams."""

    constant: float
    part: Tensor


def _evaluate(expression: Expression, scope: Mapping[str, _Linear], none: Tensor) -> _Linear:
    if isinstance(expression, Number):
        return _Linear(float(expression.value), none)
    if isinstance(expression, Name):
        return scope[expression.name]
    if isinstance(expression, Negative):
        inner = _evaluate(expression.operand, scope, none)
        return _Linear(-inner.constant, -inner.part)
    if isinstance(expression, Power):
        return _Linear(
            _evaluate(expression.base, scope, none).constant ** expression.exponent, none
        )
    if isinstance(expression, Call) and expression.function in DERIVED:  # changes no stream
        return _Linear(0.0, none)
    if isinstance(expression, Call):
        inner = _evaluate(expression.arguments[0], scope, none)
        return _Linear(_FUNCTIONS[expression.function](inner.constant), none)
    assert isinstance(expression, Binary)
    left = _evaluate(expression.left, scope, none)
    right = _evaluate(expression.right, scope, none)
    if expression.operator == "+":
        return _Linear(left.constant + right.constant, left.part + right.part)
    if expression.operator == "-":
        return _Linear(left.constant - right.constant, left.part - right.part)
    if expression.operator == "/":
        return _Linear(left.constant / right.constant, left.part / right.constant)
    part = left.part * right.constant + right.part * left.constant
    return _Linear(left.constant * right.constant, part)
