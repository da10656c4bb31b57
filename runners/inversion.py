"""Images through the first layers of a network and back by the derived inverse: what drift looks
like."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from archspec.diagnostics import Diagnostic, SpecError
from compiler.bijections import whole_input
from compiler.body import entry_of
from compiler.drift import Given, given_by
from compiler.network import Network
from compiler.round_trips import ARITHMETICS, Arithmetic, read_back, round_trip, with_constants
from compiler.stage import Stage
from runners.pictures import write_grid

SHOWN = 12
"""Images of the strip."""
AMPLIFIED = 10.0
"""So many times the differences of the strip are."""


@dataclass(frozen=True)
class Trips:
    """Which round trips."""

    layers: tuple[int, ...]
    """After how many layers streams turn back; a quarter, half and all of them by default."""
    constant: tuple[str, tuple[float, ...]] | None = None
    """A constant of the stage with other values than its own, in turn."""


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


@dataclass(frozen=True)
class Inversion:
    """What came back of the images of a split."""

    stage: str
    images: int
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Strip:
    """Images, and what came back of them after all layers, by arithmetic."""

    originals: Tensor
    reconstructions: dict[str, Tensor]


Unit = Callable[[Tensor], Tensor]


@torch.no_grad()
def invert_images(
    network: Network, images: Tensor, prepare: Unit, levels: int, asked: Trips
) -> tuple[Inversion, Strip]:
    """Images (N, C, H, W) from 0 to 1, of so many `levels`, to the streams of the first stage,
    through layers and back, and to images again, by first-order least squares where the stem has no
    inverse. `prepare` makes of images what the network sees, by a scale and a shift. Raises
    `SpecError` for a network whose first stage has no inverse, or does not start from its input,
    and for constants that it has not.
    """
    network = network.cpu().eval()
    (stage, *_) = network.stages
    _check(stage)
    values = prepare(images)
    given = given_by(network, values)[stage.plan.name]
    reader = _Reader(network.stem, values, images, prepare, levels)
    depths = asked.layers or _quarters(stage.plan.depth)
    if max(depths) > stage.plan.depth:
        message = f"stage `{stage.plan.name}` has {stage.plan.depth} layers, and not {max(depths)}"
        raise SpecError([Diagnostic("E604", message)])
    rows, shown = [], {}
    for text, trial in _with_constants(stage, asked):
        for layers in depths:
            for arithmetic in ARITHMETICS:
                row, back = _row(trial, given, layers, text, arithmetic, reader)
                rows.append(row)
                if back is not None and layers == max(depths):
                    name = f"{text}, {arithmetic}" if text else arithmetic
                    shown[name] = back[:SHOWN]
    return Inversion(stage.plan.name, len(images), tuple(rows)), Strip(images[:SHOWN], shown)


def _check(stage: Stage) -> None:
    why = ""
    if not stage.plan.invertible:
        why = f"its first stage, `{stage.plan.name}`, has no inverse"
    elif whole_input(stage.plan) is None:
        why = f"no streams of its first stage, `{stage.plan.name}`, are the input as it stands"
    elif isinstance(stage.transition, nn.Sequential) and len(stage.transition):
        why = f"its first stage, `{stage.plan.name}`, begins with a transition"
    if why:
        raise SpecError([Diagnostic("E604", f"images do not come back from this network: {why}")])


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
    stage: Stage, given: Given, layers: int, text: str, arithmetic: Arithmetic, reader: _Reader
) -> tuple[Row, Tensor | None]:
    found = round_trip(stage, given, layers, arithmetic)
    if found is None or not math.isfinite(found.error):
        return Row(layers, text, arithmetic, None), None
    names = list(found.before)
    before, back = (
        entry_of(stage.plan, [values[name].double() for name in names])
        for values in (found.before, found.back)
    )
    images = reader.image(back - before)
    apart = (images - reader.images).abs()
    squares = float(apart.square().mean())
    same = reader.level(images) == reader.level(reader.images.double())
    return Row(
        layers,
        text,
        arithmetic,
        found.error,
        -10 * math.log10(squares) if squares > 0 else None,
        float(apart.max()),
        float(same.double().mean()),
    ), images.float()


@dataclass(frozen=True)
class _Reader:
    """Reads images from what reaches the first stage."""

    stem: nn.Module
    values: Tensor
    images: Tensor
    prepare: Unit
    levels: int

    def image(self, moved: Tensor) -> Tensor:
        """The images (N, C, H, W) whose streams are moved by so much, in float64."""
        if not bool(moved.any()):
            return self.images.double()
        stem = deepcopy(self.stem).double().eval()
        values = self.values.double()
        change = read_back(stem, values, moved) - values
        # The scale of what the network sees, by which errors are brought back to that of pixels.
        zeros = torch.zeros_like(self.images[:1])
        scale = (self.prepare(zeros + 1) - self.prepare(zeros)).double()
        return self.images.double() + change / scale

    def level(self, images: Tensor) -> Tensor:
        """Images as whole levels."""
        return (images * (self.levels - 1)).round()


def write_strip(strip: Strip, path: Path) -> None:
    """Write the originals, and below each reconstruction its difference, amplified. Raises
    OSError."""
    rows = [strip.originals]
    for images in strip.reconstructions.values():
        apart = (images - strip.originals).abs() * AMPLIFIED
        rows += [images.clamp(0, 1), apart.clamp(0, 1)]
    write_grid(torch.cat(rows), path, len(strip.originals))
