"""What a program does to streams when its residual functions are zero.

One layer is then a small matrix M over the streams. The norm of the inverse of all layers together
says how the inverse amplifies rounding; log2(1/|det M|) is the information that a layer destroys,
and that a perfect inverse must keep.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from archspec.expressions import (
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
from compiler.plan import Affine, Constant, Mapped, Permutation, StagePlan, Temporary

FLOAT32_STEP = 2.0**-24
"""The largest relative error of rounding to float32."""

_FUNCTIONS: Mapping[str, Callable[[float], float]] = {
    "exp": math.exp,
    "tanh": math.tanh,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "sin": math.sin,
    "cos": math.cos,
}


@dataclass(frozen=True)
class Stability:
    """The linear part of a stage's inverse."""

    growth: float
    """Spectral norm of the inverse over all layers; 1 amplifies nothing."""
    bits: float
    """Bits per element that the layers destroy in all."""

    @property
    def float32_error(self) -> float:
        """The relative error of a float32 inverse that the growth alone lets one expect."""
        return self.growth * FLOAT32_STEP


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
            for progress in ((0.0, 1.0) if plan.reads_progress else (0.0,))
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
    repeated = plan.depth // len(matrices)
    inverse = torch.eye(len(plan.streams), dtype=torch.float64)
    for matrix in matrices:
        inverse = inverse @ torch.linalg.inv(matrix)
    inverse = torch.linalg.matrix_power(inverse, repeated)
    bits = -sum(math.log2(abs(float(torch.linalg.det(m)))) for m in matrices) * repeated
    finite = bool(torch.isfinite(inverse).all())
    growth = float(torch.linalg.matrix_norm(inverse, ord=2)) if finite else math.inf
    return Stability(growth, max(0.0, bits))


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
