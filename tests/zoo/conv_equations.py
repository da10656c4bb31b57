"""What residual networks of images are made of, written out as functions of their weights, which
have the names that they have in the compiled networks."""

from __future__ import annotations

from by_hand import Weights
from torch import Tensor
from torch.nn import functional


def convolved(w: Weights, name: str, x: Tensor, stride: int = 1) -> Tensor:
    """With zeros around the image, half a kernel wide."""
    kernel = w[f"{name}.weight"]
    return functional.conv2d(x, kernel, None, stride, padding=kernel.shape[-1] // 2)


def batch_normed(w: Weights, name: str, x: Tensor) -> Tensor:
    """By the statistics of the batch, as in training."""
    centred = x - x.mean((0, 2, 3), keepdim=True)
    variance = centred.square().mean((0, 2, 3), keepdim=True)
    scale, shift = (w[f"{name}.{part}"][:, None, None] for part in ("weight", "bias"))
    return centred / (variance + 1e-5).sqrt() * scale + shift


def unit(w: Weights, name: str, x: Tensor, stride: int = 1) -> Tensor:
    """Two convolutions, each after a norm and a rectifier (He et al. 2016, identity mappings)."""
    x = convolved(w, f"{name}.conv", batch_normed(w, f"{name}.batch_norm", x).relu(), stride)
    return convolved(w, f"{name}.conv_2", batch_normed(w, f"{name}.batch_norm_2", x).relu())


def classified(w: Weights, x: Tensor) -> Tensor:
    """The mean over an image → classes."""
    return x.mean((2, 3)) @ w["head.linear.weight"].mT + w["head.linear.bias"]
