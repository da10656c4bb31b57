"""The densities of a flow's latents: normal, of fixed or learned mean and scale.

This file imports torch: `archspec build --emit` writes it out.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

PriorKind = Literal["gaussian", "learned"]
Moments = tuple[Tensor, Tensor]
"""Mean and logarithm of the scale, which go with a latent (B, …)."""


class Prior(nn.Module):
    """Independent normal numbers (B, …), a sample of these sizes."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes = sizes

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

    def __init__(self, sizes: tuple[int, ...], channel_dimension: int) -> None:
        super().__init__(sizes)
        self.moment = nn.Parameter(torch.zeros(2, sizes[channel_dimension]))
        self.trailing = -1 - channel_dimension

    def moments(self, like: Tensor) -> Moments:
        """Both as (C, 1, …)."""
        mean, log_scale = self.moment.view(2, -1, *(1,) * self.trailing)
        return mean, log_scale


class ConditionalPrior(Prior):
    """A mean and a scale for each number, by a layer that reads what the latent was left behind by
    (Kingma and Dhariwal 2018; as in their code)."""

    def __init__(self, sizes: tuple[int, ...], channel_dimension: int, context: int) -> None:
        """`context` is how many channels it reads: of an image, by a convolution."""
        super().__init__(sizes)
        self.dimension, self.context = channel_dimension, context
        out = 2 * sizes[channel_dimension]
        self.project: nn.Module = (
            nn.Conv2d(context, out, 3, padding=1)
            if channel_dimension == -3
            else nn.Linear(context, out)
        )
        for parameter in self.project.parameters():
            nn.init.zeros_(parameter)

    def moments(self, like: Tensor) -> Moments:
        """Both of the shape of the latent."""
        mean, log_scale = self.project(like).to(like.dtype).chunk(2, self.dimension)
        return mean, log_scale
