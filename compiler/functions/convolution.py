"""Convolutions, and maps tied to their own transpose."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class Conv(nn.Conv2d):
    """A convolution initialised as in He et al. 2015 (fan-out, for rectifiers)."""

    def reset_parameters(self) -> None:
        """Draw new weights."""
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class TransposeConv(nn.Module):
    """K^T s(K x + b) with one convolution kernel K, on images (B, C, H, W) (Chang et al. 2018)."""

    def __init__(self, channels: int, hidden: int, kernel: int, activation: nn.Module) -> None:
        super().__init__()
        scale = 1 / math.sqrt(channels * kernel**2)
        self.kernel = nn.Parameter(torch.randn(hidden, channels, kernel, kernel) * scale)
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.activation = activation
        self.padding = kernel // 2

    def forward(self, image: Tensor) -> Tensor:
        """The same shape as `image`."""
        inner = functional.conv2d(image, self.kernel, self.bias, padding=self.padding)
        return functional.conv_transpose2d(
            self.activation(inner), self.kernel, padding=self.padding
        )


class TransposeLinear(nn.Module):
    """K^T s(K x + b) with one matrix K, on the channels of tokens or features."""

    def __init__(self, channels: int, hidden: int, activation: nn.Module) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(hidden, channels) / math.sqrt(channels))
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.activation = activation

    def forward(self, tokens: Tensor) -> Tensor:
        """The same shape as `tokens`."""
        inner = functional.linear(tokens, self.kernel, self.bias)
        return functional.linear(self.activation(inner), self.kernel.t())
