"""Images through the layers of a stage and back by the derived inverse: what drift looks like."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from archspec.diagnostics import Diagnostic, SpecError, nearest
from compiler.base_flow import input_of_streams
from compiler.bijections import parts_of, whole_input
from compiler.body import reach
from compiler.drift import given_by
from compiler.network import Network
from compiler.round_trips import ARITHMETICS, Arithmetic, read_back, round_trip, with_constants
from compiler.stage import Stage
from runners.as_data import AsData
from runners.likeness import Likeness, measure_names
from runners.pictures import as_bytes, write_grid

SHOWN = 12
"""Images of the strip."""
AMPLIFIED = 10.0
"""So many times the differences of the strip are."""


@dataclass(frozen=True)
class Beside:
    """That reconstructions are held against their originals by features."""

    features: str
    """What they are called."""
    measure: Callable[[Tensor, Tensor], Likeness]
    """Images (N, C, H, W) of bytes beside others."""


@dataclass(frozen=True)
class Trips:
    """Which round trips."""

    layers: tuple[int, ...] = ()
    """After how many layers streams turn back; a quarter, half and all of them by default."""
    constant: tuple[str, tuple[float, ...]] | None = None
    """A constant of the stage with other values than its own, in turn."""
    stage: str | None = None
    """The first one by default."""
    images: int = 64
    """So many go through the layers and back."""
    beside: Beside | None = None


@dataclass(frozen=True)
class Row:
    """One round trip of some images."""

    layers: int
    constant: str
    """`gamma=0.9`, where one was changed."""
    arithmetic: str
    stream_error: float | None
    """The norm of the difference of streams over their norm. None where this arithmetic cannot
    hold them: then nothing else is known either."""
    psnr: float | None = None
    """Peak signal-to-noise ratio of the images, dB; None where they are the same."""
    largest_error: float | None = None
    """Of a pixel, from 0 to 1."""
    exact_pixels: float | None = None
    """The share of pixels that are of the same level."""
    likeness: Likeness | None = None
    """Of what came back to the images, by features; None where it was not asked for."""


@dataclass(frozen=True)
class Inversion:
    """What came back of the images of a split."""

    stage: str
    images: int
    features: str | None
    """By which images are compared, where that was asked for."""
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Strip:
    """Images, and what came back of them after all layers, by arithmetic."""

    originals: Tensor
    reconstructions: dict[str, Tensor]


@torch.no_grad()
def invert_images(network: Network, data: AsData, asked: Trips) -> tuple[Inversion, Strip]:
    """Images to the streams of a stage, through layers and back, and to images again: by
    first-order least squares where what is before the stage has no inverse. Raises `SpecError` for
    a stage that has no inverse, or does not start from its input, and for constants that it has
    not; and what `Beside.measure` raises.
    """
    network = network.cpu().eval()
    stage = stage_of(network, asked)
    given = given_by(network, data.values, dict(data.side))[stage.plan.name]
    parts = parts_of(stage.plan)
    depths = asked.layers or _quarters(stage.plan.depth)
    wide = deepcopy(network).double().set_backward("store")
    rows, shown = [], {}
    for text, trial in _with_constants(stage, asked):
        for layers in depths:
            for arithmetic in ARITHMETICS:
                found = round_trip(trial, given, layers, arithmetic)
                if found is None or not math.isfinite(found.error):
                    rows.append(Row(layers, text, arithmetic, None))
                    continue
                streams = [
                    [values[name].double() for name in stage.facts.streams]
                    for values in (found.before, found.back)
                ]
                before, back = (input_of_streams(parts, each) for each in streams)
                images = _read(wide, stage.plan.name, data, back - before)
                rows.append(_row(layers, text, arithmetic, found.error, data, images, asked.beside))
                if layers == max(depths):
                    name = f"{text}, {arithmetic}" if text else arithmetic
                    shown[name] = images[:SHOWN].float()
    features = None if asked.beside is None else asked.beside.features
    inversion = Inversion(stage.plan.name, len(data.images), features, tuple(rows))
    return inversion, Strip(data.images[:SHOWN], shown)


def stage_of(network: Network, asked: Trips) -> Stage:
    """The stage of some round trips. Raises `SpecError` as `invert_images` does."""
    stage = _chosen(network, asked.stage)
    _check(stage)
    deepest = max(asked.layers, default=0)
    if deepest > stage.plan.depth:
        message = f"stage `{stage.plan.name}` has {stage.plan.depth} layers, and not {deepest}"
        raise SpecError([Diagnostic("E604", message)])
    _with_constants(stage, asked)
    return stage


def _chosen(network: Network, name: str | None) -> Stage:
    stages: dict[str, Stage] = {stage.plan.name: stage for stage in network.stages}
    if name is not None and name not in stages:
        message = f"{network.plan.name} has no stage `{name}`"
        raise SpecError([Diagnostic("E604", message, None, nearest(name, stages))])
    return stages[name or next(iter(stages))]


def _check(stage: Stage) -> None:
    why = ""
    if not stage.plan.invertible:
        why = f"its stage `{stage.plan.name}` has no inverse"
    elif whole_input(stage.plan) is None:
        why = f"no streams of its stage `{stage.plan.name}` are the input as it stands"
    if why:
        raise SpecError([Diagnostic("E604", f"images do not come back from this network: {why}")])


def _read(wide: Network, stage: str, data: AsData, moved: Tensor) -> Tensor:
    """The images (N, C, H, W) that a stage is entered with a change of, by the network in
    float64."""
    images, values = data.images.double(), data.values.double()
    if not bool(moved.any()):
        return images
    side = {name: value.double() for name, value in data.side.items()}
    change = read_back(lambda given: reach(wide, stage, given, **side), values, moved) - values
    # Apart from what rounding the values to float32 has lost.
    return images + (data.back(values + change) - data.back(values))


def _quarters(depth: int) -> tuple[int, ...]:
    return tuple(dict.fromkeys(max(1, math.ceil(depth * share)) for share in (0.25, 0.5, 1)))


def _with_constants(stage: Stage, asked: Trips) -> list[tuple[str, Stage]]:
    if asked.constant is None:
        return [("", stage)]
    name, values = asked.constant
    try:
        return [(f"{name}={value:g}", with_constants(stage, {name: value})) for value in values]
    except ValueError as error:
        raise SpecError([Diagnostic("E604", str(error))]) from None


def _row(
    layers: int,
    constant: str,
    arithmetic: Arithmetic,
    error: float,
    data: AsData,
    images: Tensor,
    beside: Beside | None,
) -> Row:
    apart = (images - data.images).abs()
    squares = float(apart.square().mean())
    levels = data.levels - 1
    same = (images * levels).round() == (data.images.double() * levels).round()
    row = Row(
        layers,
        constant,
        arithmetic,
        error,
        -10 * math.log10(squares) if squares > 0 else None,
        float(apart.max()),
        float(same.double().mean()),
    )
    if beside is None:
        return row
    return replace(row, likeness=beside.measure(as_bytes(data.images), as_bytes(images)))


def header(found: Inversion) -> tuple[str, ...]:
    """Of a table of its rows, behind their titles."""
    known = ("layers", "streams", "PSNR, dB", "largest", "same level")
    if found.features is None:
        return known
    return (*known, measure_names(found.features)[1], "precision", "recall")


def cells(row: Row) -> tuple[str, ...]:
    """The texts of a row, its title first."""
    title = f"{row.constant}, {row.arithmetic}" if row.constant else row.arithmetic
    if row.stream_error is None:
        return (title, str(row.layers), "out of range", "", "", "")
    like = row.likeness
    likeness: tuple[str, ...] = ()
    if like is not None:
        likeness = (f"{like.frechet_distance:.3g}", f"{like.precision:.3f}", f"{like.recall:.3f}")
    return (
        title,
        str(row.layers),
        f"{row.stream_error:.1e}",
        "exact" if row.psnr is None else f"{row.psnr:.1f}",
        f"{row.largest_error:.1e}",
        f"{row.exact_pixels:.2%}",
        *likeness,
    )


def write_strip(strip: Strip, path: Path) -> None:
    """Write the originals, and below each reconstruction its difference, amplified. Raises
    OSError."""
    rows = [strip.originals]
    for images in strip.reconstructions.values():
        apart = (images - strip.originals).abs() * AMPLIFIED
        rows += [images.clamp(0, 1), apart.clamp(0, 1)]
    write_grid(torch.cat(rows), path, len(strip.originals))
