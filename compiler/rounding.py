"""The drift of an inverse, predicted: a round trip in which every rounding is a random number.

Let e be the error of the streams when a step of a layer is undone. It becomes

    J (e + n') + n

where J is the derivative of the step's inverse, n' the rounding of the target's new value in the
forward pass, and n that of its old value in the inverse. The error is followed from step to step
through the network as it is, J by a finite difference along the error itself. Its direction stays
as small as that needs, and its size is kept apart, so that the prediction goes on where the streams
themselves would be lost. It is in steps of the number format, whichever that is; no error of
float32 or bfloat16 is looked at.

Where the scale is 1 or -1, sums are nearly free of error: what was added is taken away again to the
last bit, unless the sum needed a coarser grid than the stream did. And on a grid an error smaller
than its step vanishes mostly, and is a whole step now and then.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from archspec.expressions import LOG_DETERMINANT
from compiler import engine
from compiler.constants import fixed_values
from compiler.engine import Values
from compiler.growth import FLOAT32_STEP, Curve, unit_scale
from compiler.plan import Affine, StagePlan, Temporary
from compiler.stage import Stage

PROBES = 2
"""How many random round trips a prediction is made of."""
FUNCTION_ROUNDING = 3.0
"""The error of a function's result, in those of one rounding: about ten in a row."""
LARGEST = math.sqrt(torch.finfo(torch.float32).max)
"""Past this, norms overflow in float32 and bfloat16."""
CERTAIN = 2.0**22
"""Errors so many grid steps large are not changed by rounding."""


@torch.no_grad()
def predicted_errors(
    stage: Stage,
    streams: Sequence[Tensor],
    read: Sequence[Values],
    *,
    every: int | None = None,
    probes: int = PROBES,
    seed: int = 0,
) -> Curve:
    """The error to expect of float32 streams, where they are kept after every `every`-th layer (by
    default, as the plan says): the root mean square of so many random round trips. `read` is what
    each layer reads besides streams. The stage gives the same each time it is run; it and the
    streams are best in float64."""
    depth = stage.plan.depth
    layers = zip(map(in_floats, stage.program()), read, strict=True)
    atoms = [
        atom
        for i, (layer, more) in enumerate(layers)
        for atom in _atoms(stage.plan, i, layer, more)
    ]
    kept = [dict(zip(stage.facts.streams, streams, strict=True))]
    for atom in atoms:
        kept.append(engine.run([atom.layer], kept[-1], [atom.read]))
    if not all(float(value.abs().max()) < LARGEST for values in kept for value in values.values()):
        return (math.inf,) * depth
    random = torch.Generator(streams[0].device).manual_seed(seed)
    every = every or stage.plan.store_every
    curves = [list(_followed(atoms, kept, every, random)) for _ in range(probes)]
    return tuple(FLOAT32_STEP * _root_mean_square(errors) for errors in zip(*curves, strict=True))


def _root_mean_square(errors: Sequence[float]) -> float:
    largest = max(errors)
    if not all(map(math.isfinite, errors)):
        return math.inf
    if largest == 0:
        return 0.0
    return largest * math.sqrt(sum((e / largest) ** 2 for e in errors) / len(errors))


# Layers, step by step ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Atom:
    """One step of a layer, with the temporaries that it reads, as a layer of its own."""

    layer: engine.Layer
    silent: engine.Layer | None
    """The same without its functions, where it has some: their results have errors of their own."""
    read: Values
    target: str | None
    """The stream that it rewrites; None where it only moves streams."""
    sign: int
    """The scale where it is 1 or -1, else 0."""
    ends: int | None
    """The layer that is undone with it."""


def _atoms(plan: StagePlan, index: int, layer: engine.Layer, read: Values) -> Iterator[_Atom]:
    fixed = fixed_values(plan.constants, index, plan.depth)
    silent = _silent(plan, layer)
    ends: int | None = index
    for planned, step in zip(plan.steps, layer.steps, strict=True):
        if isinstance(planned, Temporary):
            continue
        steps = (*_definitions(layer, step), step)
        calls = isinstance(planned, Affine) and any(
            bool(s.calls) for s in steps if isinstance(s, engine.Update)
        )
        yield _Atom(
            replace(layer, steps=steps),
            replace(silent, steps=steps) if calls else None,
            read,
            None if isinstance(step, engine.Permute) else step.target,
            unit_scale(planned, fixed),
            ends,
        )
        ends = None


def _definitions(layer: engine.Layer, step: engine.Step) -> list[engine.Step]:
    """Those of the temporaries that a step reads, through others too, in their order."""
    wanted = set(step.temporaries) if isinstance(step, engine.Update) else set()
    found: list[engine.Step] = []
    for other in reversed(layer.steps):
        if isinstance(other, engine.Update) and other.is_temporary and other.target in wanted:
            wanted |= set(other.temporaries)
            found.insert(0, other)
    return found


def in_floats(layer: engine.Layer) -> engine.Layer:
    """A layer in floating-point arithmetic."""
    steps = (replace(s, exact=None) if isinstance(s, engine.Update) else s for s in layer.steps)
    return replace(layer, steps=tuple(steps))


def _silent(plan: StagePlan, layer: engine.Layer) -> engine.Layer:
    """The layer without its functions."""
    nothing = {function.name: _Nothing(function.result.sizes) for function in plan.functions}
    return replace(layer, functions={**layer.functions, **nothing})


class _Nothing(nn.Module):
    """A function of which nothing comes."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes = sizes

    def forward(self, value: Tensor, *others: Tensor) -> Tensor:
        """Zeros."""
        del others
        return value.new_zeros(len(value), *self.sizes)


# Errors ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Error:
    """size · direction, where the direction is of norm 1; nothing where the size is 0."""

    direction: Values
    size: float

    def of(self, name: str, like: Tensor) -> Tensor:
        """That of one stream."""
        found = self.direction.get(name)
        return torch.zeros_like(like) if found is None else self.size * found

    def plus(self, noise: Values) -> _Error:
        """With an independent error more."""
        if self.size == 0:
            return _error(noise, 1.0)
        if not math.isfinite(self.size):
            return self
        shares = {name: value / self.size for name, value in noise.items()}
        summed = {n: d + shares.get(n, 0) for n, d in self.direction.items()}
        return _error({**shares, **summed}, self.size)


NO_ERROR = _Error({}, 0.0)


def _error(values: Values, unit: float) -> _Error:
    size = norm(values)
    if size == 0 or not math.isfinite(size):
        return _Error({}, size)
    return _Error({name: value / size for name, value in values.items()}, size * unit)


def _followed(
    atoms: Sequence[_Atom], kept: Sequence[Values], every: int, random: torch.Generator
) -> Iterator[float]:
    """The relative error after each layer undone, in steps of the number format."""
    error = NO_ERROR
    for index in reversed(range(len(atoms))):
        layer, before = atoms[index].ends, kept[index]
        error = _undone(atoms[index], error, before, kept[index + 1], random)
        if layer is not None:
            size = norm(before)
            yield error.size / size if size > 0 else error.size
            error = NO_ERROR if layer % every == 0 else error  # kept streams start anew


def _undone(
    atom: _Atom, error: _Error, before: Values, after: Values, random: torch.Generator
) -> _Error:
    """The error after a step is undone."""
    target = atom.target
    if target is None:
        return _through(atom, error, before, after)
    old, new = before[target], after[target]
    noise = _rounding(new, random)
    if atom.sign:
        noise = torch.where(_grid(new) > _grid(old), noise, 0)
    if atom.silent is not None and error.size > 0:
        called = new - engine.run([atom.silent], before, [atom.read])[target]
        noise = noise + FUNCTION_ROUNDING * _rounding(called.nan_to_num(0, 0, 0), random)
    error = _through(atom, error.plus({target: noise}), before, after)
    if not atom.sign:
        return error.plus({target: _rounding(old, random)})
    return error.plus({target: _snapping(error.of(target, old), _grid(old), random)})


def _through(atom: _Atom, error: _Error, before: Values, after: Values) -> _Error:
    """The error as the step's inverse hands it on."""
    if error.size == 0 or not math.isfinite(error.size):
        return error
    precise = next(iter(after.values())).dtype == torch.float64
    distance = (1e-6 if precise else 1e-3) * norm(after)
    moved = {
        name: value + distance * error.direction[name] if name in error.direction else value
        for name, value in after.items()
    }
    back = engine.invert([atom.layer], moved, [atom.read])
    return _error({n: (back[n] - value) / distance for n, value in before.items()}, error.size)


def norm(values: Mapping[str, Tensor]) -> float:
    """That of all streams together; the log-determinant, of whatever size, is not one that
    residual functions read."""
    streams = (value for name, value in values.items() if name != LOG_DETERMINANT)
    return math.sqrt(sum(float(wide(value).square().sum()) for value in streams))


def wide(values: Tensor) -> Tensor:
    """In float64, on devices that have it."""
    return values.float() if values.device.type == "mps" else values.double()


# Roundings, in steps of the number format ---------------------------------------------------------


def _grid(values: Tensor) -> Tensor:
    """The distance between neighbouring numbers where the values are."""
    return torch.exp2(torch.floor(torch.log2(values.abs())) + 1)


def _rounding(values: Tensor, random: torch.Generator) -> Tensor:
    """Random errors of rounding: up to half the grid either way."""
    return (_uniform(values, random) - 0.5) * _grid(values)


def _snapping(errors: Tensor, grid: Tensor, random: torch.Generator) -> Tensor:
    """What rounding sums to a grid adds to their errors: small ones vanish mostly, and are a whole
    step now and then."""
    share = errors / grid.clamp(min=torch.finfo(grid.dtype).tiny)
    change = (torch.floor(share + _uniform(share, random)) - share) * grid
    return torch.where(share.abs() < CERTAIN, change, 0)


def _uniform(like: Tensor, random: torch.Generator) -> Tensor:
    return torch.rand(like.shape, dtype=like.dtype, device=like.device, generator=random)
