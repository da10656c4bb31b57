"""Rev-ViTs (Mangalam et al. 2022, section 3.2), and the forms of momentum on their streams, written
out in plain PyTorch: networks as functions of their weights, which have the names that they have in
the compiled ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from by_hand import Streams, Weights
from mvit_equations import mapped, mlp, normed
from torch import Tensor


def patches(w: Weights, image: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) → (B, N, D): each square patch, row by row, by one linear map."""
    batch, channels, height, width = image.shape
    squares = image.reshape(batch, channels, height // patch, patch, width // patch, patch)
    flat = squares.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch**2)
    kernel = w["stem.patch_embed.project.weight"].flatten(1)
    return flat @ kernel.mT + w["stem.patch_embed.project.bias"]


def attention(w: Weights, name: str, x: Tensor, heads: int) -> Tensor:
    """Head after head, with no residual."""
    q, k, v = mapped(w, f"{name}.query_key_value", x).chunk(3, -1)
    mixed = []
    for one_q, one_k, one_v in zip(*(part.chunk(heads, -1) for part in (q, k, v)), strict=True):
        scores = one_q @ one_k.mT / math.sqrt(one_k.shape[-1])
        mixed.append(scores.softmax(-1) @ one_v)
    return mapped(w, f"{name}.project", torch.cat(mixed, -1))


@dataclass(frozen=True)
class Layer:
    """F, G and gamma of one layer."""

    w: Weights
    name: str
    heads: int
    gamma: Tensor | float

    def attention(self, x: Tensor) -> Tensor:
        x = normed(self.w, f"{self.name}.F.layer_norm", x)
        return attention(self.w, f"{self.name}.F.attention", x, self.heads)

    def mlp(self, x: Tensor) -> Tensor:
        return mlp(self.w, f"{self.name}.G.mlp", normed(self.w, f"{self.name}.G.layer_norm", x))


# How streams are updated --------------------------------------------------------------------------


def reversible(layer: Layer, x1: Tensor, x2: Tensor) -> Streams:
    x1 = x1 + layer.attention(x2)
    return x1, x2 + layer.mlp(x1)


def single(layer: Layer, x: Tensor) -> Streams:
    """Of the ViT that is the twin: a residual after the other."""
    x = x + layer.attention(x)
    return (x + layer.mlp(x),)


def both(layer: Layer, x1: Tensor, x2: Tensor, v1: Tensor, v2: Tensor) -> Streams:
    g = layer.gamma
    v1 = g * v1 + (1 - g) * layer.attention(x2)
    x1 = x1 + v1
    v2 = g * v2 + (1 - g) * layer.mlp(x1)
    return x1, x2 + v2, v1, v2


def one(layer: Layer, x1: Tensor, x2: Tensor, v1: Tensor) -> Streams:
    g = layer.gamma
    v1 = g * v1 + (1 - g) * layer.attention(x2)
    x1 = x1 + v1
    return x1, x2 + layer.mlp(x1), v1


def shared(layer: Layer, x1: Tensor, x2: Tensor, v: Tensor) -> Streams:
    g = layer.gamma
    between = g * v + (1 - g) * layer.attention(x2)
    x1 = x1 + between
    after = g * between + (1 - g) * layer.mlp(x1)
    return x1, x2 + after, after


def nesterov(layer: Layer, x1: Tensor, x2: Tensor, v1: Tensor, v2: Tensor) -> Streams:
    g = layer.gamma
    v1 = g * v1 + (1 - g) * layer.attention(x2 + g * v2)
    x1 = x1 + v1
    v2 = g * v2 + (1 - g) * layer.mlp(x1 + g * v1)
    return x1, x2 + v2, v1, v2


# Gamma of a layer ---------------------------------------------------------------------------------


def constant(w: Weights, name: str, share: float) -> float:
    return 0.9


def falling(w: Weights, name: str, share: float) -> float:
    """From 0.9 in the first layer to 0.5 in the last."""
    return 0.9 - 0.4 * share


def learned(w: Weights, name: str, share: float) -> Tensor:
    """Between 0.5 and 0.99, by the sigmoid of its weight."""
    return 0.5 + 0.49 / (1 + torch.exp(-w[f"{name}.coefficients.gamma"]))


# Networks -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """A network as published, but for its width."""

    name: str
    """Of its spec."""
    patch: int
    width: int
    """In the spec."""
    depth: int
    heads: int
    channels: int = 3
    drop_path: float = 0.0
    """Of the last layer; it rises linearly from 0 in the first."""
    update: Callable[..., Streams] = reversible
    residual_streams: int = 2
    velocities: int = 0
    gamma: Callable[[Weights, str, float], Tensor | float] = constant

    def forward(self, w: Weights, image: Tensor) -> Tensor:
        """(B, C, H, W) → (B, classes). Residual streams start as the tokens, velocities at zero;
        in the end residual streams are joined, normalised and averaged."""
        x = patches(w, image, self.patch) + w["stem.position.embedding"]
        zeros = (torch.zeros_like(x),) * self.velocities
        ending = self.trunk(w, (*(x,) * self.residual_streams, *zeros))
        joined = torch.cat(ending[: self.residual_streams], -1)
        return mapped(w, "head.linear", normed(w, "head.layer_norm", joined).mean(1))

    def trunk(self, w: Weights, streams: Streams) -> Streams:
        """All layers."""
        for index in range(self.depth):
            name = f"stages.trunk.layers.{index}"
            gamma = self.gamma(w, name, index / (self.depth - 1))
            streams = self.update(Layer(w, name, self.heads, gamma), *streams)
        return streams


def narrower(reference: Reference) -> list[str]:
    """Settings that leave the network as it is, but for two numbers a head, images of 2×3 patches,
    and the number of classes."""
    channels, patch = reference.channels, reference.patch
    return [
        f"input.image=[{channels}, {2 * patch}, {3 * patch}]",
        f"stem.0.patch_embed.width={2 * reference.heads}",
        "task.classify.classes=5",
    ]


SMALL = Reference("rev_vit_s", 16, 384, 12, 6, drop_path=0.1)
BASE = Reference("rev_vit_b", 16, 768, 12, 12, drop_path=0.2)
LARGE = Reference("rev_vit_l", 16, 1024, 24, 16, drop_path=0.2)
CIFAR = Reference("rev_vit_cifar10", 4, 128, 6, 8)
DIGITS = Reference("rev_vit_digits", 2, 64, 6, 4, channels=1)
REV_VITS = (SMALL, BASE, LARGE, CIFAR, DIGITS)

PAIRS = tuple(replace(twin, name=f"mom{twin.name}", update=both, velocities=2) for twin in REV_VITS)
PAIR = PAIRS[REV_VITS.index(CIFAR)]
FORMS = (
    replace(PAIR, name=f"{PAIR.name}_one", update=one, velocities=1),
    replace(PAIR, name=f"{PAIR.name}_shared", update=shared, velocities=1),
    replace(PAIR, name=f"{PAIR.name}_nesterov", update=nesterov),
    replace(PAIR, name=f"{PAIR.name}_scheduled", gamma=falling),
    replace(PAIR, name=f"{PAIR.name}_learned", gamma=learned),
)
TWINS = tuple(
    replace(rev, name=rev.name.removeprefix("rev_"), update=single, residual_streams=1)
    for rev in (CIFAR, DIGITS)
)
"""ViTs without a class token."""
REFERENCES = (*REV_VITS, *PAIRS, *FORMS, *TWINS)
