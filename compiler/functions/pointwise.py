"""Layers that treat every element, channel or sample alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
}


class DropPath(nn.Module):
    """Drop a whole branch, per sample, in training; the others grow by 1/(1 - rate) (Huang et al.
    2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, value: Tensor) -> Tensor:
        """(B, …) → the same, some samples zero."""
        if not self.training or self.rate == 0:
            return value
        shape = (value.shape[0],) + (1,) * (value.dim() - 1)
        keep = torch.empty(shape, device=value.device).bernoulli_(1 - self.rate)
        return value * keep.div_(1 - self.rate).to(value.dtype)

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        return f"rate={self.rate:g}"


class Scale(nn.Module):
    """A learned factor per channel (layer scale, Touvron et al. 2021)."""

    def __init__(self, channels: int, init: float, channel_dimension: int) -> None:
        super().__init__()
        self.init = init
        self.factor = nn.Parameter(torch.full((channels,), init))
        self.trailing = -1 - channel_dimension

    def forward(self, value: Tensor) -> Tensor:
        """(B, …) → the same shape."""
        return value * self.factor.view(-1, *(1,) * self.trailing)


class Sinusoids(nn.Module):
    """cos(1000 t f) and sin(1000 t f) of `count`/2 frequencies f each, which fall from 1 towards
    1e-4 by equal factors (Vaswani et al. 2017; Peebles and Xie 2023)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, value: Tensor) -> Tensor:
        """(B, 1) → (B, count)."""
        half = self.count // 2
        steps = torch.arange(half, dtype=value.dtype, device=value.device)
        angles = 1000 * value * torch.exp(-math.log(10_000) * steps / half)
        return torch.cat([angles.cos(), angles.sin()], 1)

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        return str(self.count)


class SoftThreshold(nn.Module):
    """sign(x)·max(|x| - t, 0), with a learned t ≥ 0 for each channel (Gregor and LeCun 2010)."""

    def __init__(self, channels: int, init: float, channel_dimension: int) -> None:
        super().__init__()
        self.init = init
        self.threshold = nn.Parameter(torch.full((channels,), init))
        self.trailing = -1 - channel_dimension

    def forward(self, value: Tensor) -> Tensor:
        """(B, …) → the same shape."""
        # Training may take the parameter below zero; its size is the threshold.
        threshold = self.threshold.abs().view(-1, *(1,) * self.trailing)
        return value.sign() * torch.relu(value.abs() - threshold)


class Modulate(nn.Module):
    """Scale and shift of every channel by linear maps of a vector (Perez et al. 2018); at first,
    no change."""

    def __init__(self, channels: int, condition: int, channel_dimension: int) -> None:
        super().__init__()
        self.project = nn.Linear(condition, 2 * channels)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        self.trailing = -1 - channel_dimension

    def forward(self, value: Tensor, condition: Tensor) -> Tensor:
        """(B, …) and (B, K) → the shape of the first."""
        found: Tensor = self.project(condition)
        middle = (1,) * (value.dim() - 2 - self.trailing)
        # Not `len`, which a trace takes for a constant.
        shape = (found.shape[0], *middle, -1, *(1,) * self.trailing)
        scale, shift = (part.reshape(shape) for part in found.chunk(2, dim=1))
        return value * (1 + scale) + shift


class Residual(nn.Module):
    """x → shortcut(x) + body(x)."""

    def __init__(self, body: nn.Sequential, shortcut: nn.Sequential) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, value: Tensor) -> Tensor:
        """What both lists of layers make of `value`, added."""
        result: Tensor = self.shortcut(value) + self.body(value)
        return result


class ConcatArguments(nn.Module):
    """Several arguments joined along their channels."""

    def __init__(self, channel_dimension: int) -> None:
        super().__init__()
        self.channel_dimension = channel_dimension

    def forward(self, *arguments: Tensor) -> Tensor:
        """Tensors alike but for their channels → one."""
        return torch.cat(arguments, self.channel_dimension)


class AddArguments(nn.Module):
    """Several arguments added up."""

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        """Tensors of one shape → their sum."""
        for other in others:
            first = first + other
        return first
