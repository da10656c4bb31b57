"""Convolutions, and maps tied to their own transpose."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


def rectifier_weights(convolution: nn.Conv2d | nn.Conv3d) -> None:
    """Draw weights as in He et al. 2015 (fan-out, for rectifiers)."""
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)


class Conv(nn.Conv2d):
    """A convolution of images (B, C, H, W), initialised as in He et al. 2015."""

    def reset_parameters(self) -> None:
        """Draw new weights."""
        rectifier_weights(self)


class VideoConv(nn.Conv3d):
    """A convolution of videos (B, C, T, H, W), initialised as in He et al. 2015."""

    def reset_parameters(self) -> None:
        """Draw new weights."""
        rectifier_weights(self)


class PadChannels(nn.Module):
    """Channels of zeros behind those of (B, C, …), `added` of them."""

    def __init__(self, added: int, channel_dimension: int) -> None:
        super().__init__()
        self.added, self.trailing = added, -1 - channel_dimension

    def forward(self, value: Tensor) -> Tensor:
        """(B, C, …) → (B, C + added, …)."""
        return functional.pad(value, [0, 0] * self.trailing + [0, self.added])


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


class AntisymmetricConv(nn.Module):
    """s((K - K^T) x + b) with one convolution kernel K, on images (B, C, H, W) (Chang et al. 2018):
    the transpose of a convolution has its kernel turned about and its channels exchanged."""

    def __init__(self, channels: int, kernel: int, activation: nn.Module) -> None:
        super().__init__()
        scale = 1 / math.sqrt(2 * channels * kernel**2)
        self.kernel = nn.Parameter(torch.randn(channels, channels, kernel, kernel) * scale)
        self.bias = nn.Parameter(torch.zeros(channels))
        self.activation = activation
        self.padding = kernel // 2

    def forward(self, image: Tensor) -> Tensor:
        """The same shape as `image`."""
        difference = self.kernel - self.kernel.transpose(0, 1).flip(2, 3)
        inner = functional.conv2d(image, difference, self.bias, padding=self.padding)
        result: Tensor = self.activation(inner)
        return result


class AntisymmetricLinear(nn.Module):
    """s((K - K^T) x + b) with one matrix K, on the channels of tokens or features."""

    def __init__(self, channels: int, activation: nn.Module) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(channels, channels) / math.sqrt(2 * channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.activation = activation

    def forward(self, tokens: Tensor) -> Tensor:
        """The same shape as `tokens`."""
        inner = functional.linear(tokens, self.kernel - self.kernel.t(), self.bias)
        result: Tensor = self.activation(inner)
        return result
