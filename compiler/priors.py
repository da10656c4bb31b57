"""The densities of a flow's latents: normal, of fixed or learned mean and scale."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from archspec.shapes import Image, Shape, channel_dimension

PriorKind = Literal["gaussian", "learned"]
Moments = tuple[Tensor, Tensor]
"""Mean and logarithm of the scale, which go with a latent (B, …)."""


class Prior(nn.Module):
    """Independent normal numbers (B, …), as many a sample as `shape` has."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.sizes = shape.sizes

    def moments(self, like: Tensor) -> Moments:
        """0 and log 1. `like` is what the latent was left behind by (B, …), or the latent."""
        nothing = like.new_zeros(())
        return nothing, nothing

    def log_density(self, latent: Tensor, like: Tensor) -> Tensor:
        """Of latents (B, …), in nats, (B)."""
        mean, log_scale = self.moments(like)
        standard = (latent - mean) * torch.exp(-log_scale)
        found = -0.5 * (standard.square() + math.log(2 * math.pi)) - log_scale
        return found.flatten(1).sum(1)

    def from_noise(self, noise: Tensor, like: Tensor) -> Tensor:
        """Standard normal numbers (B, `dimensions`) → latents (B, …)."""
        mean, log_scale = self.moments(like)
        return mean + torch.exp(log_scale) * noise.view(-1, *self.sizes)

    @property
    def dimensions(self) -> int:
        """Numbers of a latent."""
        return math.prod(self.sizes)


class LearnedPrior(Prior):
    """A mean and a scale learned for each channel."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.moment = nn.Parameter(torch.zeros(2, shape.channels))
        self.trailing = -1 - channel_dimension(shape)

    def moments(self, like: Tensor) -> Moments:
        """Both as (C, 1, …)."""
        mean, log_scale = self.moment.view(2, -1, *(1,) * self.trailing)
        return mean, log_scale


class ConditionalPrior(Prior):
    """A mean and a scale for each number, by a layer that reads what the latent was left behind by
    (Kingma and Dhariwal 2018; as in their code)."""

    def __init__(self, shape: Shape, context: Shape) -> None:
        super().__init__(shape)
        self.dimension = channel_dimension(shape)
        channels, out = context.channels, 2 * shape.channels
        self.project: nn.Module = (
            nn.Conv2d(channels, out, 3, padding=1)
            if isinstance(shape, Image)
            else nn.Linear(channels, out)
        )
        for parameter in self.project.parameters():
            nn.init.zeros_(parameter)

    def moments(self, like: Tensor) -> Moments:
        """Both of the shape of the latent."""
        mean, log_scale = self.project(like).to(like.dtype).chunk(2, self.dimension)
        return mean, log_scale


def build_prior(kind: PriorKind, latent: Shape, context: Shape | None) -> Prior:
    """The prior of a latent; `context` is the shape of the output of the stage that has left it
    behind, and None for the last output."""
    if kind == "gaussian":
        return Prior(latent)
    if context is None or not _alike(latent, context):
        return LearnedPrior(latent)
    return ConditionalPrior(latent, context)


def _alike(latent: Shape, context: Shape) -> bool:
    """Whether a layer leads from one to the other: tokens and features by channels alone, images
    on one grid."""
    if type(latent) is not type(context) or len(latent.sizes) == 4:
        return False
    return (
        latent.sizes[1:] == context.sizes[1:]
        if isinstance(latent, Image)
        else (latent.sizes[:-1] == context.sizes[:-1])
    )
