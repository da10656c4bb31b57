"""The proof that comes with every build: round trips and gradients, measured.

Each stage is run in float32 and in float64: on random streams, all different (streams that start
equal hide mistakes), and, for gradients, also on streams as they start in the network (velocities
that start at zero are harder to recover).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from archspec.shapes import Shape
from compiler.network import Network
from compiler.stage import Stage

FLOAT32_TOLERANCE = 1e-2
"""The largest relative error of a float32 round trip or gradient that training is to live with."""
FLOAT64_TOLERANCE = 1e-8
"""Past this, even float64 is wrong: the engine, or a hopeless inverse."""
SMALL_GRADIENT = 1e-3
"""A gradient smaller than this share of the largest one is measured against that share."""
PERTURBATION = 1e-6


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
    """Measure every stage of a network; the network and the global generators stay as they are."""
    return [verify_stage(stage, batch, seed) for stage in network.stages]


def verify_stage(stage: Stage, batch: int = 2, seed: int = 0) -> StageVerification:
    """Measure one stage."""
    single = _measure(stage, torch.float32, batch, seed)
    double = _measure(stage, torch.float64, batch, seed)
    return StageVerification(
        stage.plan.name,
        single.roundtrip,
        double.roundtrip,
        double.gain,
        single.gradient,
        double.gradient,
    )


@dataclass(frozen=True)
class _Measured:
    roundtrip: float | None
    gain: float | None
    gradient: float | None


def _measure(stage: Stage, dtype: torch.dtype, batch: int, seed: int) -> _Measured:
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        trial = copy.deepcopy(stage).to("cpu", dtype)
        # Drawn in double precision, so that both precisions see the same.
        streams = [_random(batch, s.shape, dtype) for s in stage.plan.streams]
        side = {s.name: _random(batch, s.shape, dtype) for s in stage.plan.side}
        invertible = stage.backward == "reversible"
        roundtrip, gain = _roundtrip(trial, streams, side) if invertible else (None, None)
        gradient = None
        if stage.backward != "store":
            entry = _random(batch, stage.plan.input, dtype)
            started = [stream.detach() for stream in trial.start(entry)]
            gradient = worst(_gradient_error(trial, s, side, seed) for s in (streams, started))
    return _Measured(roundtrip, gain, gradient)


def _random(batch: int, shape: Shape, dtype: torch.dtype) -> Tensor:
    return torch.randn(batch, *shape.sizes, dtype=torch.float64).to(dtype)


def worst(errors: Iterable[float]) -> float:
    """The largest error; NaN, if any is."""
    found = list(errors)
    return math.nan if any(map(math.isnan, found)) else max(found)


@torch.no_grad()
def _roundtrip(
    stage: Stage, streams: Sequence[Tensor], side: Mapping[str, Tensor]
) -> tuple[float, float]:
    # Dropout and batch statistics are off; where only the training program has an inverse, the
    # stage itself stays in training.
    stage.eval()
    stage.training = not stage.plan.invertible_in_evaluation
    draws = stage.draw(streams[0])
    final = stage(*streams, draws=draws, **side)
    back = stage.inverse(*final, draws=draws, **side)
    moved = [s + PERTURBATION * _norm([s]) / _norm([n]) * n for s, n in _with_noise(final)]
    apart = _relative(stage.inverse(*moved, draws=draws, **side), back)
    stage.train()
    return _relative(back, streams), apart / PERTURBATION


def _with_noise(streams: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(stream, torch.randn_like(stream)) for stream in streams]


def _gradient_error(
    stage: Stage, streams: Sequence[Tensor], side: Mapping[str, Tensor], seed: int
) -> float:
    strategy = stage.backward
    final = stage.plan.final
    cotangents = [
        s.new_empty(len(s), *f.sizes).normal_() for s, f in zip(streams, final, strict=True)
    ]
    stage.train()
    stage.backward = "store"
    expected = _gradients(stage, streams, side, cotangents, seed)
    stage.backward = strategy
    found = _gradients(stage, streams, side, cotangents, seed)
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
    final = stage(*leaves, **others)
    found = torch.autograd.grad(final, wanted, cotangents, allow_unused=True)
    return [g if g is not None else torch.zeros_like(w) for g, w in zip(found, wanted, strict=True)]


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors))


def _relative(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    size = _norm(expected)
    apart = _norm([a - b for a, b in zip(found, expected, strict=True)])
    return apart / size if size > 0 else apart
