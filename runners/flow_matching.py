"""Flow matching: noise becomes data along straight lines, and a network learns the velocity (Lipman
et al. 2023; Liu et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
"""Of values (B, …) at times (B, 1), of the shape of the values."""
Step = Callable[[Velocity, Tensor, Tensor, float], Tensor]


@dataclass(frozen=True)
class OnTheWay:
    """Where samples are between noise, at time 0, and data, at time 1."""

    values: Tensor
    """(B, …)."""
    time: Tensor
    """(B, 1)."""
    velocity: Tensor
    """(B, …), all the way the same."""


def on_the_way(data: Tensor, noise: Tensor, time: Tensor) -> OnTheWay:
    """Data and standard normal noise (B, …), at times (B, 1) (Lipman et al. 2023, equation 20, with
    their sigma 0)."""
    share = time.view(-1, *(1,) * (data.dim() - 1))
    return OnTheWay((1 - share) * noise + share * data, time, data - noise)


def shown(images: Tensor) -> Tensor:
    """Images from 0 to 1 as the network sees them, from -1 to 1."""
    return 2 * images - 1


def images_of(values: Tensor, levels: int) -> Tensor:
    """Values (B, …) → the nearest images of so many levels, from 0 to 1."""
    return ((values + 1) / 2 * (levels - 1)).round().clamp(0, levels - 1) / (levels - 1)


def guided(velocity: Velocity, anyone: Velocity, guidance: float) -> Velocity:
    """From the velocity towards `anyone` by `guidance` times what sets that towards a class apart
    (Ho and Salimans 2022, equation 6, whose w is guidance - 1)."""

    def both(values: Tensor, time: Tensor) -> Tensor:
        everywhere = anyone(values, time)
        return everywhere + guidance * (velocity(values, time) - everywhere)

    return both


# The way from noise to data -----------------------------------------------------------------------


def euler(velocity: Velocity, values: Tensor, time: Tensor, length: float) -> Tensor:
    """One evaluation a step."""
    return values + length * velocity(values, time)


def midpoint(velocity: Velocity, values: Tensor, time: Tensor, length: float) -> Tensor:
    """Two evaluations a step."""
    half = values + length / 2 * velocity(values, time)
    return values + length * velocity(half, time + length / 2)


def heun(velocity: Velocity, values: Tensor, time: Tensor, length: float) -> Tensor:
    """Two evaluations a step."""
    first = velocity(values, time)
    second = velocity(values + length * first, time + length)
    return values + length / 2 * (first + second)


SOLVERS: Mapping[str, Step] = {"euler": euler, "midpoint": midpoint, "heun": heun}


@torch.no_grad()
def arrive(velocity: Velocity, noise: Tensor, steps: int, step: Step) -> Tensor:
    """Noise (B, …) at time 0 → data (B, …) at time 1, in equal steps."""
    values, length = noise, 1 / steps
    for number in range(steps):
        time = values.new_full((len(values), 1), number * length)
        values = step(velocity, values, time, length)
    return values
