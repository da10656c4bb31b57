"""Invertible maps of one stream: each has an `inverse`, and neither is touched by autocast, which
is for residual functions."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from compiler.exact import Grid, Monotone
from compiler.information import Information

LIMIT = 3.0
"""Logarithms of scales stay within this, so that no scale comes near to zero."""

ROUNDING = Monotone(math.ceil(math.exp(LIMIT)))
"""The exact form of such scales."""


def log_bounded(logarithm: Tensor) -> Tensor:
    """The logarithm of `bounded`."""
    return LIMIT * torch.tanh(logarithm / LIMIT)


def bounded(logarithm: Tensor) -> Tensor:
    """Scales within e^±`LIMIT`, near e^`logarithm` where it is small."""
    return torch.exp(log_bounded(logarithm))


def full_precision(value: Tensor) -> AbstractContextManager[object]:
    """A context without autocast on a tensor's device."""
    kind = value.device.type
    return nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)


class ActNorm(nn.Module):
    """A scale and a shift per channel of (B, …) (Kingma and Dhariwal 2018)."""

    def __init__(self, channels: int, channel_dimension: int) -> None:
        super().__init__()
        self.logarithm = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))
        self.shape = (channels, *(1,) * (-1 - channel_dimension))

    def forward(self, value: Tensor) -> Tensor:
        """scale·value + shift, of the same shape."""
        with full_precision(value):
            return bounded(self.logarithm).view(self.shape) * value + self.shift.view(self.shape)

    def inverse(self, value: Tensor) -> Tensor:
        """(value - shift)/scale."""
        with full_precision(value):
            return (value - self.shift.view(self.shape)) / bounded(self.logarithm).view(self.shape)

    @torch.no_grad()
    def standardise(self, value: Tensor) -> None:
        """Take the scale and the shift that give the channels of these data mean 0 and variance 1,
        as far as the scale goes."""
        over = [d for d in range(value.dim()) if d != value.dim() - len(self.shape)]
        deviation = value.std(over, correction=0).clamp(min=1e-6)
        wanted = -deviation.log().clamp(-0.99 * LIMIT, 0.99 * LIMIT)
        self.logarithm.copy_(LIMIT * torch.atanh(wanted / LIMIT))
        self.shift.copy_(-bounded(self.logarithm) * value.mean(over))

    def log_determinant(self) -> Tensor:
        """Of the map of one position's channels, ()."""
        return log_bounded(self.logarithm).sum()

    def advance(self, value: Tensor, grid: Grid, kept: Information) -> Tensor:
        """scale·value + shift on the grid."""
        scale, shift = self._exactly(value)
        return ROUNDING.advance(value, scale, shift, grid, kept)

    def retreat(self, value: Tensor, grid: Grid, kept: Information) -> Tensor:
        """The inverse of `advance`."""
        scale, shift = self._exactly(value)
        return ROUNDING.retreat(value, scale, shift, grid, kept)

    def _exactly(self, value: Tensor) -> tuple[Tensor, Tensor]:
        scale = bounded(self.logarithm).view(self.shape)
        return scale, self.shift.view(self.shape).to(value.dtype).expand_as(value)


class InvertibleLinear(nn.Module):
    """W = P·L·U on the channels of (B, …): P a fixed permutation, L unit lower triangular, U upper
    triangular with a diagonal away from zero (Kingma and Dhariwal 2018, section 3.2). At first
    nearly a random rotation."""

    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int, channel_dimension: int) -> None:
        super().__init__()
        self.register_buffer("permutation", torch.empty(channels, channels))
        self.register_buffer("sign", torch.empty(channels))
        self.logarithm = nn.Parameter(torch.empty(channels))
        self.lower = nn.Parameter(torch.empty(channels, channels))
        self.upper = nn.Parameter(torch.empty(channels, channels))
        self.dimension = channel_dimension
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Factor a random rotation."""
        if self.lower.is_meta:  # nothing to factor, and nothing to be drawn
            return
        size = len(self.sign)
        rotation = torch.linalg.qr(torch.randn(size, size, device="cpu"))[0]
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        logarithm = diagonal.abs().log().clamp(-0.9 * LIMIT, 0.9 * LIMIT)
        self.permutation.copy_(permutation)
        self.sign.copy_(torch.where(diagonal < 0, -1.0, 1.0))
        self.logarithm.copy_(LIMIT * torch.atanh(logarithm / LIMIT))
        self.lower.copy_(lower.tril(-1))
        self.upper.copy_(upper.triu(1))

    def factors(self) -> tuple[Tensor, Tensor]:
        """L and U, (C, C)."""
        unit = torch.eye(len(self.sign), dtype=self.lower.dtype, device=self.lower.device)
        diagonal = torch.diag(self.sign * bounded(self.logarithm))
        return self.lower.tril(-1) + unit, self.upper.triu(1) + diagonal

    def forward(self, value: Tensor) -> Tensor:
        """W times each vector of channels."""
        with full_precision(value):
            lower, upper = self.factors()
            columns = value.movedim(self.dimension, -1)
            mixed: Tensor = columns @ (self.permutation @ lower @ upper).mT
            return mixed.movedim(-1, self.dimension)

    def inverse(self, value: Tensor) -> Tensor:
        """W⁻¹ times each vector of channels, by two triangular systems."""
        with full_precision(value):
            lower, upper = self.factors()
            columns = value.movedim(self.dimension, -1)
            rows: Tensor = columns.reshape(-1, columns.shape[-1]) @ self.permutation
            rows = torch.linalg.solve_triangular(lower.mT, rows, upper=True, left=False)
            rows = torch.linalg.solve_triangular(upper.mT, rows, upper=False, left=False)
            return rows.view(columns.shape).movedim(-1, self.dimension)

    def log_determinant(self) -> Tensor:
        """Of the map of one position's channels, ()."""
        return log_bounded(self.logarithm).sum()

    def advance(self, value: Tensor, grid: Grid, kept: Information) -> Tensor:
        """W times each vector of channels, on the grid: U is its diagonal and then one rounded
        addition for each channel of those after it, L one for each of those before it."""
        with full_precision(value):
            diagonal, lower, upper = self._triangles()
            rows, nothing = self._by_channel(value)
            rows = ROUNDING.advance(rows, diagonal, nothing, grid, kept)
            for i in range(len(rows)):
                rows[i] += grid.rounded(upper[i, i + 1 :] @ rows[i + 1 :])
            for i in reversed(range(len(rows))):
                rows[i] += grid.rounded(lower[i, :i] @ rows[:i])
            return self._from_channels(rows[self.permutation.argmax(1)], value)

    def retreat(self, value: Tensor, grid: Grid, kept: Information) -> Tensor:
        """The inverse of `advance`: the same additions taken back, the last one first."""
        with full_precision(value):
            diagonal, lower, upper = self._triangles()
            rows, nothing = self._by_channel(value)
            rows = rows[self.permutation.argmax(0)]
            for i in range(len(rows)):
                rows[i] -= grid.rounded(lower[i, :i] @ rows[:i])
            for i in reversed(range(len(rows))):
                rows[i] -= grid.rounded(upper[i, i + 1 :] @ rows[i + 1 :])
            rows = ROUNDING.retreat(rows, diagonal, nothing, grid, kept)
            return self._from_channels(rows, value)

    def _triangles(self) -> tuple[Tensor, Tensor, Tensor]:
        """The diagonal of U as (C, 1), L, and U divided by its diagonal; in float64."""
        diagonal = (self.sign * bounded(self.logarithm)).double()
        return diagonal[:, None], self.lower.double(), self.upper.double() / diagonal

    def _by_channel(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """A stream as (C, …) in float64, which holds what lies between W's factors; and zeros."""
        rows = value.movedim(self.dimension, 0).flatten(1).double()
        return rows, torch.zeros_like(rows)

    def _from_channels(self, rows: Tensor, like: Tensor) -> Tensor:
        shape = like.movedim(self.dimension, 0).shape
        return rows.view(shape).movedim(0, self.dimension).to(like.dtype)


class Flatten(nn.Flatten):
    """All numbers of a sample as one vector: (B, …) → (B, D)."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes = sizes

    def inverse(self, value: Tensor) -> Tensor:
        """(B, D) → (B, …)."""
        return value.view(value.shape[0], *self.sizes)


class Squeeze(nn.Module):
    """Squares of 2×2 pixels into channels: (B, C, H, W) → (B, 4C, H/2, W/2) (Dinh et al. 2017)."""

    def forward(self, value: Tensor) -> Tensor:
        """Space to depth."""
        return nn.functional.pixel_unshuffle(value, 2)

    def inverse(self, value: Tensor) -> Tensor:
        """Depth to space."""
        return nn.functional.pixel_shuffle(value, 2)


class Unsqueeze(nn.Module):
    """The inverse of `Squeeze`: (B, 4C, H, W) → (B, C, 2H, 2W)."""

    def forward(self, value: Tensor) -> Tensor:
        """Depth to space."""
        return nn.functional.pixel_shuffle(value, 2)

    def inverse(self, value: Tensor) -> Tensor:
        """Space to depth."""
        return nn.functional.pixel_unshuffle(value, 2)
