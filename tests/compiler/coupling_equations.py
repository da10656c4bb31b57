"""The equations of every named coupling, written by hand, for plain autograd."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from small_networks import STRATEGIES
from torch import Tensor

COUPLING_FILES = Path(__file__).parents[2] / "specs" / "couplings"
COUPLINGS = sorted(file.stem for file in COUPLING_FILES.glob("*.yaml"))
VARIANTS = ("bdia_transformer", "momentum_nesterov", "momentum_one", "momentum_shared", "rk2")
"""Near enough to another that the matrix leaves them out."""
NOT_INVERTIBLE = ("residual", "residual_pair", "euler", "rk2", "rk4")

Streams = tuple[Tensor, ...]
Constant = float | Tensor
Layer = Any
"""A layer's functions, as attributes."""


def additive(f: Layer, x1: Tensor, x2: Tensor) -> Streams:
    x1 = x1 + f.F(x2)
    return x1, x2 + f.G(x1)


def affine(f: Layer, x1: Tensor, x2: Tensor, bound: Constant = 2.0) -> Streams:
    y1 = x1 * torch.exp(bound * torch.tanh(f.S(x2))) + f.T(x2)
    return y1, x2 * torch.exp(bound * torch.tanh(f.U(y1))) + f.V(y1)


def asynchronous_leapfrog(f: Layer, z: Tensor, v: Tensor, h: Constant = 1.0) -> Streams:
    middle = z + h * v / 2
    v = 2 * f.F(middle) - v
    return middle + h * v / 2, v


def bdia(f: Layer, p: Tensor, x: Tensor, gamma: Tensor) -> Streams:
    return x, gamma * p + (1 - gamma) * x + (1 + gamma) * f.F(x)


def bdia_transformer(f: Layer, p: Tensor, x: Tensor, gamma: Tensor) -> Streams:
    attended = f.F(x)
    branch = attended + f.G(x + attended)
    return x, gamma * p + (1 - gamma) * x + (1 + gamma) * branch


def euler(f: Layer, x: Tensor, h: Constant = 0.5) -> Streams:
    return (x + h * f.F(x),)


def leapfrog(f: Layer, a: Tensor, b: Tensor, h: Constant = 0.1) -> Streams:
    return b, 2 * b - a + h * h * f.F(b)


def midpoint(f: Layer, a: Tensor, b: Tensor, h: Constant = 0.1) -> Streams:
    return b, a + 2 * h * f.F(b)


def momentum(f: Layer, x: Tensor, v: Tensor, gamma: Constant = 0.9) -> Streams:
    v = gamma * v + (1 - gamma) * f.F(x)
    return x + v, v


def momentum_one(f: Layer, x1: Tensor, x2: Tensor, v1: Tensor, gamma: Constant = 0.9) -> Streams:
    v1 = gamma * v1 + (1 - gamma) * f.F(x2)
    x1 = x1 + v1
    return x1, x2 + f.G(x1), v1


def momentum_shared(f: Layer, x1: Tensor, x2: Tensor, v: Tensor, gamma: Constant = 0.9) -> Streams:
    v = gamma * v + (1 - gamma) * f.F(x2)
    x1 = x1 + v
    v = gamma * v + (1 - gamma) * f.G(x1)
    return x1, x2 + v, v


def momentum_nesterov(
    f: Layer, x1: Tensor, x2: Tensor, v1: Tensor, v2: Tensor, gamma: Constant = 0.9
) -> Streams:
    v1 = gamma * v1 + (1 - gamma) * f.F(x2 + gamma * v2)
    x1 = x1 + v1
    v2 = gamma * v2 + (1 - gamma) * f.G(x1 + gamma * v1)
    return x1, x2 + v2, v1, v2


def momentum_pair(
    f: Layer, x1: Tensor, x2: Tensor, v1: Tensor, v2: Tensor, gamma: Constant = 0.9
) -> Streams:
    v1 = gamma * v1 + (1 - gamma) * f.F(x2)
    x1 = x1 + v1
    v2 = gamma * v2 + (1 - gamma) * f.G(x1)
    return x1, x2 + v2, v1, v2


def residual(f: Layer, x: Tensor) -> Streams:
    return (x + f.F(x),)


def residual_pair(f: Layer, x: Tensor) -> Streams:
    x = x + f.F(x)
    return (x + f.G(x),)


def reversible_heun(f: Layer, y: Tensor, z: Tensor, h: Constant = 1.0) -> Streams:
    k = f.F(z)
    z_next = 2 * y - z + h * k
    return y + h * (k + f.F(z_next)) / 2, z_next


def rk2(f: Layer, x: Tensor, h: Constant = 0.5) -> Streams:
    return (x + h * f.F(x + h * f.F(x) / 2),)


def rk4(f: Layer, x: Tensor, h: Constant = 0.5) -> Streams:
    k1 = f.F(x)
    k2 = f.F(x + h * k1 / 2)
    k3 = f.F(x + h * k2 / 2)
    k4 = f.F(x + h * k3)
    return (x + h * (k1 + 2 * k2 + 2 * k3 + k4) / 6,)


def verlet(f: Layer, y: Tensor, z: Tensor, h: Constant = 0.1) -> Streams:
    y = y + h * f.F(z)
    return y, z - h * f.G(y)


EQUATIONS: dict[str, Callable[..., Streams]] = {
    name: globals()[name] for name in COUPLINGS if name in globals()
}
OUTPUTS: dict[str, Callable[..., Tensor]] = {
    "additive": lambda x1, x2: torch.cat([x1, x2], -1),
    "affine": lambda x1, x2: torch.cat([x1, x2], -1),
    "verlet": lambda y, z: torch.cat([y, z], -1),
    **dict.fromkeys(
        ("momentum_pair", "momentum_nesterov", "momentum_one", "momentum_shared"),
        lambda x1, x2, *velocities: torch.cat([x1, x2], -1),
    ),
    **dict.fromkeys(
        ("bdia", "bdia_transformer", "leapfrog", "midpoint"), lambda first, second: second
    ),
}
"""What leaves the stage; the first stream of the others."""
SPLIT_IN_HALVES = ("affine", "verlet")
VELOCITIES = {
    "momentum": 1,
    "asynchronous_leapfrog": 1,
    "momentum_one": 1,
    "momentum_shared": 1,
    "momentum_pair": 2,
    "momentum_nesterov": 2,
}
"""How many streams, the last ones, start at zero."""
PAIRS = ("leapfrog", "verlet")
"""Couplings whose functions have the form -K^T s(K x + b)."""
FUNCTIONS = {
    "additive": "FG",
    "affine": "STUV",
    **dict.fromkeys(
        ("momentum_pair", "momentum_one", "momentum_shared", "momentum_nesterov"), "FG"
    ),
    "bdia_transformer": "FG",
    "residual_pair": "FG",
    "verlet": "FG",
}
"""The names of a coupling's functions; F where nothing is said."""


def strategies(coupling: str) -> tuple[str, ...]:
    """The strategies that a coupling's program allows."""
    return STRATEGIES[:2] if coupling in NOT_INVERTIBLE else STRATEGIES
