"""The proof that comes with every build: round trips and gradients, measured.

Each stage is run in float32 and in float64: on random streams, all different (streams that start
equal hide mistakes), and, for gradients, also on streams as they start in the network (velocities
that start at zero are harder to recover).

Where coefficients change over training, it is run with those of the start, or of where reversing
starts, and with those of the end, which training reaches for certain; and, for a warning, with
learned coefficients at the ends of their ranges, where training may take them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from archspec.shapes import Shape
from archspec.spec import Learned
from compiler.coefficients import Coefficients
from compiler.engine import Values
from compiler.exact import Grid
from compiler.information import Information
from compiler.network import Network
from compiler.rounding import wide
from compiler.stage import Stage

FLOAT32_TOLERANCE = 1e-2
"""The largest relative error of a float32 round trip or gradient that training is to live with."""
FLOAT64_TOLERANCE = 1e-8
"""Past this, even float64 is wrong: the engine, or a hopeless inverse."""
SMALL_GRADIENT = 1e-3
"""A gradient smaller than this share of the largest one is measured against that share."""
PERTURBATION = 1e-6
END_LOGIT = 8.0
"""The parameter of a learned coefficient at the end of its range: within 4e-4 of it."""


class VerificationError(RuntimeError):
    """A stage that cannot be run as verification has to; the message says which, and why."""


@dataclass(frozen=True)
class RangeEnd:
    """Learned coefficients, all at one end of their ranges."""

    names: tuple[str, ...]
    end: str
    """"low" or "high"."""
    gradient_error: float
    """As that of the stage, float32."""


@dataclass(frozen=True)
class StageVerification:
    """Relative errors (norm of the difference over norm). None: there is nothing to measure."""

    name: str
    roundtrip_error: float | None
    """Streams → forward → derived inverse → streams, float32."""
    roundtrip_error_float64: float | None
    perturbation_gain: float | None
    """How much the inverse enlarges a small relative change of the final streams."""
    gradient_error: float | None
    """Against stored activations, float32: the worst of the gradients of single parameters and
    streams."""
    gradient_error_float64: float | None
    repeatable: bool = True
    """False where gradients are off because functions do not give the same twice."""
    range_ends: tuple[RangeEnd, ...] = ()
    """Where training may take what a reversible stage learns; they do not count as failures."""

    @property
    def passed(self) -> bool:
        """Whether the stage can be trained with its strategy in float32."""
        within = (
            (self.roundtrip_error, FLOAT32_TOLERANCE),
            (self.gradient_error, FLOAT32_TOLERANCE),
            (self.gradient_error_float64, FLOAT64_TOLERANCE),
            (self.roundtrip_error_float64, FLOAT64_TOLERANCE),
        )
        # Written so that NaN fails.
        return all(error is None or error <= bound for error, bound in within)


def verify(network: Network, batch: int = 2, seed: int = 0) -> list[StageVerification]:
    """Measure every stage of a network; the network and the global generators stay as they are.
    Raises `VerificationError`."""
    return [verify_stage(stage, batch, seed) for stage in network.stages]


def verify_stage(stage: Stage, batch: int = 2, seed: int = 0) -> StageVerification:
    """Measure one stage. Raises `VerificationError`."""
    name = stage.plan.name
    try:
        single, double = (
            _worst(
                _measure(_trial(stage, dtype, progress), dtype, batch, seed)
                for progress in stage.plan.ends_of_training
            )
            for dtype in (torch.float32, torch.float64)
        )
        ends = _range_ends(stage, batch, seed)
    except RuntimeError as error:
        raise VerificationError(f"stage `{name}` cannot be verified: {error}") from error
    return StageVerification(
        name,
        single.roundtrip,
        double.roundtrip,
        double.gain,
        single.gradient,
        double.gradient,
        single.repeatable and double.repeatable,
        ends,
    )


@dataclass(frozen=True)
class _Measured:
    roundtrip: float | None
    gain: float | None
    gradient: float | None
    repeatable: bool


def _worst(measured: Iterable[_Measured]) -> _Measured:
    found = list(measured)

    def largest(of: Callable[[_Measured], float | None]) -> float | None:
        values = [value for value in map(of, found) if value is not None]
        return worst(values) if values else None

    return _Measured(
        largest(lambda m: m.roundtrip),
        largest(lambda m: m.gain),
        largest(lambda m: m.gradient),
        all(m.repeatable for m in found),
    )


def _trial(stage: Stage, dtype: torch.dtype, progress: float) -> Stage:
    """A copy that may be changed, that far in training."""
    trial = copy.deepcopy(stage).to("cpu", dtype)
    trial.set_progress(progress)
    return trial


def _range_ends(stage: Stage, batch: int, seed: int) -> tuple[RangeEnd, ...]:
    """Measured in float32 where what is learned can spoil a reconstruction."""
    constants = stage.plan.constants
    names = tuple(n for n, c in constants.items() if isinstance(c, Learned) and c.within)
    if not names or stage.backward != "reversible":
        return ()
    found = []
    for end, logit in (("low", -END_LOGIT), ("high", END_LOGIT)):
        errors = []
        for progress in stage.plan.ends_of_training:
            trial = _trial(stage, torch.float32, progress)
            _move(trial, names, logit)
            errors.append(_measure(trial, torch.float32, batch, seed).gradient)
        found.append(RangeEnd(names, end, worst(e for e in errors if e is not None)))
    return tuple(found)


@torch.no_grad()
def _move(trial: Stage, names: Iterable[str], logit: float) -> None:
    for module in trial.modules():
        if isinstance(module, Coefficients):
            leaves = module.leaves()
            for name in names:
                leaves[name].fill_(logit)


def _measure(trial: Stage, dtype: torch.dtype, batch: int, seed: int) -> _Measured:
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        # Drawn in double precision, so that both precisions see the same.
        streams = [_gridded(_random(batch, s.shape, dtype), trial) for s in trial.plan.streams]
        side = {s.name: _random(batch, s.shape, dtype) for s in trial.plan.side}
        invertible = trial.backward == "reversible"
        roundtrip, gain = _roundtrip(trial, streams, side) if invertible else (None, None)
        gradients = []
        if trial.backward != "store":
            entry = _random(batch, trial.plan.input, dtype)
            started = [stream.detach() for stream in trial.start(entry)]
            gradients = [_gradient_error(trial, s, side, seed) for s in (streams, started)]
    return _Measured(
        roundtrip,
        gain,
        worst(error for error, _ in gradients) if gradients else None,
        all(repeatable for _, repeatable in gradients),
    )


def _random(batch: int, shape: Shape, dtype: torch.dtype) -> Tensor:
    return torch.randn(batch, *shape.sizes, dtype=torch.float64).to(dtype)


def _gridded(value: Tensor, stage: Stage) -> Tensor:
    """The nearest value that the streams of a stage can have."""
    bits = stage.plan.fraction_bits
    return value if bits is None else Grid(bits).rounded(value)


def worst(errors: Iterable[float]) -> float:
    """The largest error; NaN, if any is."""
    found = list(errors)
    return math.nan if any(map(math.isnan, found)) else max(found)


@torch.no_grad()
def _roundtrip(
    stage: Stage, streams: Sequence[Tensor], side: Mapping[str, Any]
) -> tuple[float, float | None]:
    # Dropout and batch statistics are off; where only the training program has an inverse, the
    # stage itself stays in training.
    stage.eval()
    stage.training = not stage.plan.invertible_in_evaluation
    draws, information = stage.draw(streams[0]), Information()
    error, gain = 0.0, None
    for part, drawn in _parts(stage, draws):
        final = part(*streams, draws=drawn, information=information, **side)
        back = part.inverse(*final, draws=drawn, information=information, **side)
        error = worst((error, _relative(back, streams)))
        if stage.plan.fraction_bits is None:  # a grid has nothing between its points
            moved = [s + PERTURBATION * _norm([s]) / _norm([n]) * n for s, n in _with_noise(final)]
            apart = _relative(part.inverse(*moved, draws=drawn, **side), back)
            gain = worst((gain or 0.0, apart / PERTURBATION))
        streams = final
    stage.train()
    return error, gain


def _parts(stage: Stage, draws: Sequence[Values]) -> Iterator[tuple[Stage, Sequence[Values]]]:
    """The layers that are reconstructed together, as stages of their own, and their draws."""
    for first in range(0, stage.plan.depth, stage.plan.store_every):
        several = slice(first, first + stage.plan.store_every)
        part = copy.copy(stage)
        part._modules = {**stage._modules, "layers": stage.layers[several]}
        yield part, draws[several]


def _with_noise(streams: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(stream, torch.randn_like(stream)) for stream in streams]


def _gradient_error(
    stage: Stage, streams: Sequence[Tensor], side: Mapping[str, Tensor], seed: int
) -> tuple[float, bool]:
    """The error, and whether the functions give the same twice; looked at where it is too large."""
    strategy = stage.backward
    final = stage.plan.final
    cotangents = [
        s.new_empty(len(s), *f.sizes).normal_() for s, f in zip(streams, final, strict=True)
    ]
    stage.train()
    # The strategy comes first: what a function may not do is refused there.
    found = _gradients(stage, streams, side, cotangents, seed)
    stage.backward = "store"
    expected = _gradients(stage, streams, side, cotangents, seed)
    error = gradient_distance(found, expected)
    tolerance = FLOAT64_TOLERANCE if streams[0].dtype == torch.float64 else FLOAT32_TOLERANCE
    repeatable = True
    if not error <= tolerance:
        again = _gradients(stage, streams, side, cotangents, seed)
        # Written so that NaN is no reason to blame the functions.
        repeatable = not gradient_distance(again, expected) > tolerance
    stage.backward = strategy
    return error, repeatable


def gradient_distance(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The worst relative difference of single gradients."""
    floor = SMALL_GRADIENT * max(_norm([gradient]) for gradient in expected)
    apart = [(_norm([f - e]), max(_norm([e]), floor)) for f, e in zip(found, expected, strict=True)]
    return worst(difference / size if size else difference for difference, size in apart)


def _gradients(
    stage: Stage,
    streams: Sequence[Tensor],
    side: Mapping[str, Tensor],
    cotangents: Sequence[Tensor],
    seed: int,
) -> list[Tensor]:
    torch.manual_seed(seed + 1)  # the same dropout and draws for each strategy
    leaves = [stream.clone().requires_grad_() for stream in streams]
    others = {name: value.clone().requires_grad_() for name, value in side.items()}
    wanted = [*leaves, *others.values(), *(p for p in stage.parameters() if p.requires_grad)]
    # Given as copies, which a function that changes its argument can change, and is refused.
    given = {name: value.clone() for name, value in others.items()}
    final = stage(*(leaf.clone() for leaf in leaves), **given)
    found = torch.autograd.grad(final, wanted, cotangents, allow_unused=True)
    return [g if g is not None else torch.zeros_like(w) for g, w in zip(found, wanted, strict=True)]


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(wide(t).square().sum()) for t in tensors))


def _relative(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    size = _norm(expected)
    apart = _norm([a - b for a, b in zip(found, expected, strict=True)])
    return apart / size if size > 0 else apart
