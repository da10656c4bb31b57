"""What an emitted file does when it is run: every stage against stored activations.

This file imports torch and its two neighbours alone: `archspec build --emit` writes it out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from compiler.base_network import BaseNetwork
from compiler.base_stage import BaseStage
from compiler.exact import Grid
from compiler.information import Information

Gradients = Sequence[Tensor | None]
TOLERANCE = 1e-8
"""Of float64; exact arithmetic is to have no error at all."""
TAKEN = ("self", "torch", "invoke", "grid", "kept", "on_grid")
"""Names that emitted methods use themselves: a stream of that name has a variable with a `_`."""


def self_check(network: BaseNetwork, batch: int = 2) -> bool:
    """Check every stage in float64 on random streams, all different; print what was found."""
    right = True
    for stage in network.stages:
        tolerance = _tolerance(stage)
        torch.manual_seed(0)
        trial = copy.deepcopy(stage).double()
        trial.reach_inverse()
        for what, error in (
            ("gradients against stored activations", gradient_error(trial, batch)),
            ("layers written out against the engine", plain_error(trial, batch)),
            ("round trip through the derived inverse", roundtrip_error(trial, batch)),
        ):
            if error is not None:
                right &= error <= tolerance
                print(f"{stage.facts.name}: {what}: {error:.2g}")
    error = network_error(copy.deepcopy(network).double(), batch)
    right &= error <= max(map(_tolerance, network.stages), default=TOLERANCE)
    print(f"the whole network: gradients against stored activations: {error:.2g}")
    print("right" if right else "WRONG")
    return right


def _tolerance(stage: BaseStage) -> float:
    return TOLERANCE if stage.facts.fraction_bits is None else 0.0


def network_error(network: BaseNetwork, batch: int) -> float:
    """The network as it is against the same with stored activations: the worst gradient."""
    value = torch.randn(batch, *network.input, dtype=torch.float64)
    side = {n: torch.randn(batch, *s, dtype=torch.float64) for n, s in network.side.items()}
    wanted = list(network.parameters())
    found = []
    for stored in (False, True):
        if stored:
            network.set_backward("store")
        torch.manual_seed(1)
        loss = network(value, **side).square().sum()
        found.append(torch.autograd.grad(loss, wanted, allow_unused=True) if wanted else ())
    return _worst_gradient(*found)


def gradient_error(stage: BaseStage, batch: int) -> float:
    """The stage's own strategy against stored activations: the worst gradient."""
    stage.train()
    streams, side = _inputs(stage, batch)
    wanted = [*streams, *side.values(), *stage.parameters()]
    final = stage.facts.final.values()
    cotangents = [torch.randn(batch, *sizes, dtype=torch.float64) for sizes in final]
    found = []
    strategy = stage.backward
    for backward in (strategy, "store"):
        stage.backward = backward
        torch.manual_seed(1)
        outputs = stage(*streams, **side)
        found.append(torch.autograd.grad(outputs, wanted, cotangents, allow_unused=True))
    stage.backward = strategy
    return _worst_gradient(*found)


def _worst_gradient(found: Gradients, wanted: Gradients) -> float:
    """The largest difference, relative to the gradient wanted, or to a thousandth of the largest
    one. A gradient that is missing is zero; NaN, if any is."""
    least = 1e-3 * max((float(g.norm()) for g in wanted if g is not None), default=0.0)
    errors = [0.0]
    for one, other in zip(found, wanted, strict=True):
        known = other if other is not None else one
        if known is not None:
            a, b = (torch.zeros_like(known) if g is None else g for g in (one, other))
            errors.append(float((a - b).norm()) / max(float(b.norm()), least, 1e-30))
    return _worst(errors)


def _worst(errors: Sequence[float]) -> float:
    """The largest; NaN, if any is."""
    return math.nan if any(map(math.isnan, errors)) else max(errors)


@torch.no_grad()
def plain_error(stage: Any, batch: int) -> float:
    """The statements of the layers' `forward` against the engine: streams, and what they keep."""
    streams, side, draws = _evaluated(stage, batch)
    values: tuple[Tensor, ...] = tuple(streams)
    # Where there is no inverse, a scale may be 0, of which nothing can be kept.
    kept, information = (Information(keeps=not stage.facts.obstacles) for _ in range(2))
    for layer, drawn in zip(stage.layers, draws, strict=True):
        values = layer(*values, **_given(stage, drawn, side, kept))
    final = stage(*streams, draws=draws, information=information, **side)
    found, wanted = kept.tensors(), information.tensors()
    if len(found) != len(wanted):
        return math.inf
    return _worst([_relative(values, final), _relative(found, wanted)])


@torch.no_grad()
def roundtrip_error(stage: Any, batch: int) -> float | None:
    """Streams → stage → streams, by the engine and by the statements of `inverse`: the worse."""
    facts = stage.facts
    if facts.obstacles:
        return None
    streams, side, draws = _evaluated(stage, batch)
    information = Information()
    if facts.store_every is not None:
        return _parts_error(stage, streams, side, draws)
    final = stage(*streams, draws=draws, information=information, **side)
    values, kept = final, information.copy()
    for layer, drawn in zip(reversed(stage.layers), reversed(draws), strict=True):
        values = layer.inverse(*values, **_given(stage, drawn, side, kept))
    back = stage.inverse(*final, draws=draws, information=information, **side)
    return _worst([_relative(back, streams), _relative(values, streams)])


def _parts_error(
    stage: Any,
    streams: Sequence[Tensor],
    side: Mapping[str, Tensor],
    draws: Sequence[Mapping[str, Tensor]],
) -> float:
    """Where streams are kept on the way, from each of them to those kept before: the worst."""
    every, kept, errors = stage.facts.store_every, Information(), []
    layers = list(zip(stage.layers, draws, strict=True))
    values: tuple[Tensor, ...] = tuple(streams)
    for start in range(0, len(layers), every):
        before, part = values, layers[start : start + every]
        for layer, drawn in part:
            values = layer(*values, **_given(stage, drawn, side, kept))
        back = values
        for layer, drawn in reversed(part):
            back = layer.inverse(*back, **_given(stage, drawn, side, kept))
        errors.append(_relative(back, before))
    return _worst(errors)


def _inputs(stage: BaseStage, batch: int) -> tuple[list[Tensor], dict[str, Tensor]]:
    def random(sizes: tuple[int, ...]) -> Tensor:
        return torch.randn(batch, *sizes, dtype=torch.float64).requires_grad_()

    streams = [random(sizes) for sizes in stage.facts.streams.values()]
    return streams, {name: random(sizes) for name, sizes in stage.facts.side.items()}


def _evaluated(stage: BaseStage, batch: int) -> tuple[list[Tensor], dict[str, Tensor], Any]:
    """Inputs, as they are on the grid, and draws, without dropout; where only the training program
    has an inverse, its draws."""
    stage.eval()
    stage.training = not stage.facts.invertible_in_evaluation
    streams, side = _inputs(stage, batch)
    if stage.facts.fraction_bits is not None:
        streams = list(map(Grid(stage.facts.fraction_bits).rounded, streams))
    return streams, side, stage.draw(streams[0])


def _given(
    stage: BaseStage, drawn: Mapping[str, Tensor], side: Mapping[str, Tensor], kept: Information
) -> dict[str, Any]:
    """What a layer's statements take besides streams."""
    progress = {"progress": stage.progress} if stage.facts.reads_progress else {}
    given = {**drawn, **progress, **side}
    renamed = {f"_{name}" if name in TAKEN else name: value for name, value in given.items()}
    return renamed if stage.facts.fraction_bits is None else {**renamed, "kept": kept}


def _relative(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    pairs = [(a.double(), b.double()) for a, b in zip(found, wanted, strict=True)]
    apart = sum(float((a - b).square().sum()) for a, b in pairs)
    return float((apart / max(1e-30, sum(float(b.square().sum()) for _, b in pairs))) ** 0.5)
