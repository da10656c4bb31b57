"""The multiscale vision transformers written out from their equations, in plain PyTorch: networks
as functions of their weights, which have the names that they have in the compiled ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from by_hand import Streams, Weights
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Scale:
    """A stage: its layers, heads, and the strides of keys and values in its transition and in its
    layers."""

    name: str
    depth: int
    heads: int
    transition_stride: int
    stride: int


IMAGE_SCALES = (
    Scale("scale2", 1, 1, 0, 4),
    Scale("scale3", 1, 2, 2, 2),
    Scale("scale4", 3, 4, 1, 1),
    Scale("scale5", 1, 8, 1, 1),
)
VIDEO_SCALES = (
    Scale("scale2", 1, 1, 0, 8),
    Scale("scale3", 1, 2, 4, 4),
    Scale("scale4", 3, 4, 2, 2),
    Scale("scale5", 1, 8, 1, 1),
)
DIGIT_SCALES = (Scale("fine", 2, 2, 0, 2), Scale("coarse", 4, 4, 1, 1))


def normed(w: Weights, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + 1e-6).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def mapped(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].mT + w[f"{name}.bias"]


def mlp(w: Weights, name: str, x: Tensor) -> Tensor:
    hidden = mapped(w, f"{name}.expand", x)
    return mapped(w, f"{name}.contract", hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2)


def in_space(grid: tuple[int, ...], stride: int) -> tuple[int, ...]:
    """A stride of the last two axes, those of space."""
    return (*(1,) * (len(grid) - 2), stride, stride)


def after(grid: tuple[int, ...], stride: int) -> tuple[int, ...]:
    return tuple(math.ceil(n / s) for n, s in zip(grid, in_space(grid, stride), strict=True))


def pooled(w: Weights, name: str, x: Tensor, grid: tuple[int, ...], stride: int) -> Tensor:
    """(B, N, d) of one head → (B, N', d)."""
    convolve: Callable[..., Tensor] = functional.conv2d if len(grid) == 2 else functional.conv3d
    laid = x.mT.reshape(len(x), -1, *grid)
    kernel = w[f"{name}.conv.weight"]
    found = convolve(laid, kernel, None, in_space(grid, stride), padding=1, groups=len(kernel))
    return normed(w, f"{name}.norm", found.flatten(2).mT)


def attention(
    w: Weights, name: str, x: Tensor, grid: tuple[int, ...], heads: int, query: int, key: int
) -> Tensor:
    """Head after head. The queries are not pooled with a stride of 1."""
    q, k, v = mapped(w, f"{name}.query_key_value", x).chunk(3, -1)
    mixed = []
    for one_q, one_k, one_v in zip(*(part.chunk(heads, -1) for part in (q, k, v)), strict=True):
        one_q = pooled(w, f"{name}.pool_query", one_q, grid, query) if query > 1 else one_q
        keys = pooled(w, f"{name}.pool_key", one_k, grid, key)
        scores = one_q @ keys.mT / math.sqrt(keys.shape[-1])
        mixed.append(scores.softmax(-1) @ pooled(w, f"{name}.pool_value", one_v, grid, key))
    return mapped(w, f"{name}.project", torch.cat(mixed, -1))


def transition(w: Weights, name: str, x: Tensor, grid: tuple[int, ...], scale: Scale) -> Tensor:
    """The block between two stages."""
    if f"{name}.linear.weight" in w:  # the twin's
        x, last = mapped(w, f"{name}.linear", x), f"{name}.residual"
    else:
        x, last = x + mlp(w, f"{name}.residual.body.mlp", x), f"{name}.residual_2"
    name = f"{name}.pooling_transition"
    pool = f"{name}.attention.pool_query"
    kept = [pooled(w, pool, head, grid, 2) for head in x.chunk(scale.heads, -1)]
    entry, key = normed(w, f"{name}.norm", x), scale.transition_stride
    x = torch.cat(kept, -1) + attention(w, f"{name}.attention", entry, grid, scale.heads, 2, key)
    return x + mlp(w, f"{last}.body.mlp", normed(w, f"{last}.body.layer_norm", x))


@dataclass(frozen=True)
class Layer:
    """F and G of one layer."""

    w: Weights
    name: str
    grid: tuple[int, ...]
    scale: Scale

    def attention(self, x: Tensor) -> Tensor:
        x = normed(self.w, f"{self.name}.F.layer_norm", x)
        name, heads = f"{self.name}.F.pooled_attention", self.scale.heads
        return attention(self.w, name, x, self.grid, heads, 1, self.scale.stride)

    def mlp(self, x: Tensor) -> Tensor:
        x = normed(self.w, f"{self.name}.G.layer_norm", x)
        return mlp(self.w, f"{self.name}.G.mlp", x)


def reversible(layers: list[Layer], streams: Streams) -> Streams:
    x1, x2 = streams
    for layer in layers:
        x1 = x1 + layer.attention(x2)
        x2 = x2 + layer.mlp(x1)
    return x1, x2


def momentum(layers: list[Layer], streams: Streams) -> Streams:
    x1, x2, v1, v2 = streams
    for layer in layers:
        v1 = 0.9 * v1 + 0.1 * layer.attention(x2)
        x1 = x1 + v1
        v2 = 0.9 * v2 + 0.1 * layer.mlp(x1)
        x2 = x2 + v2
    return x1, x2, v1, v2


def single(layers: list[Layer], streams: Streams) -> Streams:
    (x,) = streams
    for layer in layers:
        x = x + layer.attention(x)
        x = x + layer.mlp(x)
    return (x,)


@dataclass(frozen=True)
class Reference:
    """A network: how its stages start and run, and what leaves them."""

    name: str
    """Of its spec."""
    scales: tuple[Scale, ...]
    start: Callable[[Tensor], Streams]
    run: Callable[[list[Layer], Streams], Streams]
    leaving: int
    """How many streams leave a stage, joined."""

    def layers(self, w: Weights, scale: Scale, grid: tuple[int, ...]) -> list[Layer]:
        """Those of one stage."""
        names = (f"stages.{scale.name}.layers.{index}" for index in range(scale.depth))
        return [Layer(w, name, grid, scale) for name in names]

    def forward(self, w: Weights, value: Tensor) -> Tensor:
        """Images (B, C, H, W) or videos (B, C, T, H, W) → (B, classes)."""
        laid = patches(w, value)
        grid = tuple(laid.shape[2:])
        x = laid.flatten(2).mT + w["stem.position.embedding"]
        for scale in self.scales:
            if scale.transition_stride:
                x = transition(w, f"stages.{scale.name}.transition", x, grid, scale)
                grid = after(grid, 2)
            streams = self.run(self.layers(w, scale, grid), self.start(x))
            x = torch.cat(streams[: self.leaving], -1)
        return mapped(w, "head.linear", normed(w, "head.layer_norm", x).mean(1))


def patches(w: Weights, value: Tensor) -> Tensor:
    """Overlapping patches, 4 pixels and 2 frames apart, or those around each pixel of a digit."""
    kernel, bias = w["stem.conv.weight"], w["stem.conv.bias"]
    if kernel.shape[-1] == 3:
        return functional.conv2d(value, kernel, bias, 1, 1)
    if value.dim() == 4:
        return functional.conv2d(value, kernel, bias, 4, 3)
    return functional.conv3d(value, kernel, bias, (2, 4, 4), (1, 3, 3))


REFERENCES = (
    Reference("rev_mvit_b", IMAGE_SCALES, lambda x: (x, x), reversible, 2),
    Reference("mvit_b", IMAGE_SCALES, lambda x: (x,), single, 1),
    Reference("momrev_mvit_b", IMAGE_SCALES, lambda x: (x, x, 0 * x, 0 * x), momentum, 2),
    Reference("rev_mvit_b_video", VIDEO_SCALES, lambda x: (x, x), reversible, 2),
    Reference("rev_mvit_digits", DIGIT_SCALES, lambda x: (x, x), reversible, 2),
)
"""With a stage `scale4`, where there is one, of 3 layers."""
