"""Comparing whatever is done to a network with the same done with stored activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_networks import BRANCH, additive, error, network
from torch import Tensor, nn

from compiler.network import Network

REPLAYED = ("checkpoint", "reversible")
GAMMA = {"learn": 0.9, "within": [0.5, 0.99]}
STAGES: dict[str, dict[str, Any]] = {
    "additive": additive(),
    "momentum": {
        "depth": 3,
        "coupling": "momentum_pair",
        "functions": {"F": BRANCH, "G": BRANCH},
        "constants": {"gamma": {**GAMMA, "per": "channel"}},
    },
    "mixed": {
        "depth": 3,
        "streams": {"x": "input", "y": "input"},
        "functions": {"F": BRANCH, "G": [{"linear": "channels"}, "tanh"]},
        "constants": {"g": GAMMA, "w": {"learn": 0.3}},
        "update": ["k := F(G(y))", "x = x*exp(tanh(G(y))) + w*k", "y += g*F(x + w*x)"],
        "output": "x + y",
    },
}
CASES = [(name, strategy) for name in STAGES for strategy in REPLAYED]
every_case = pytest.mark.parametrize(("name", "strategy"), CASES)


def images(scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return scale * torch.randn(4, 5, 6, generator=generator, dtype=torch.float64)


def assert_as_stored(
    name: str, strategy: str, run: Callable[[Network], list[Tensor | None]]
) -> None:
    """`run` gives the same with a strategy as with stored activations."""
    wanted = run(network(STAGES[name]).set_backward("store"))
    found = run(network(STAGES[name]).set_backward(strategy))
    assert len(found) == len(wanted) > 0
    least = 1e-3 * max(float(g.abs().max()) for g in wanted if g is not None)
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        assert error(a, b, least) < 1e-12


def gradients(model: nn.Module) -> list[Tensor | None]:
    return [parameter.grad for parameter in model.parameters()]
