"""Functions and programs that look odd get the gradients of stored activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_networks import (
    BRANCH,
    STRATEGIES,
    LinearFunction,
    assert_same_outputs,
    gradient_error,
    network,
    outcome,
    streams_for,
    with_functions,
)
from torch import Tensor, nn

REPLAYED = ("checkpoint", "reversible")
PRODUCTS = {
    "depth": 3,
    "streams": {"x": "input", "y": "input"},
    "functions": {"F": BRANCH, "G": BRANCH},
    "update": [
        "k := F(G(y))",
        "x = x*exp(tanh(F(y)/4 + G(k)/4)) + G(y)*F(y)*k",
        "y = y*exp(tanh(F(x))) + G(F(x) + 0.5*x)",
    ],
    "output": "x + y",
}


def assert_right(make: Callable[[], nn.Module], given: dict[str, Any] | None = None) -> None:
    """Functions like these get the gradients of stored activations."""
    stage = with_functions(make, "store", given).stages[0]
    streams = streams_for(stage)
    stored = outcome(stage, streams)
    for strategy in REPLAYED:
        stage = with_functions(make, strategy, given).stages[0]
        found = outcome(stage, streams)
        assert_same_outputs(found, stored)
        assert gradient_error(found, stored) < 1e-12


class Same(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class View(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(0, 1).transpose(0, 1)[:]


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.value.expand_as(x)


class Detached(LinearFunction):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


class HalfDetached(LinearFunction):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            gate = super().forward(x).sigmoid()
        return gate * super().forward(x)


class NoGradInside(LinearFunction):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x)


class InPlaceInside(LinearFunction):
    def forward(self, x: Tensor) -> Tensor:
        hidden = super().forward(x).mul_(0.5)
        hidden[:, 0] = 0
        return torch.relu_(hidden) + x


class GradInside(LinearFunction):
    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x if x.requires_grad else x.detach().requires_grad_()
            energy = super().forward(leaf).tanh().square().sum()
            return torch.autograd.grad(energy, leaf, create_graph=True)[0]


class Checkpointed(LinearFunction):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.utils.checkpoint.checkpoint(
            lambda x: nn.functional.dropout(super(Checkpointed, self).forward(x).tanh(), 0.2),
            x,
            use_reentrant=False,
        )
        return result


class Saving(LinearFunction):
    """Saves its argument, its weight, a buffer, its result and an unused random tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.randn(6))
        self.register_buffer("nothing", None)

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn_like(x) + x * torch.randn(6, dtype=x.dtype)
        hidden = (x * self.linear.weight[0] * self.mask).exp() * x
        del noise
        return hidden.tanh() * self.linear.bias * self.mask


class Reusing(LinearFunction):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(super().forward(x).tanh() + x)


class Tied(LinearFunction):
    """One weight in two modules, one module in two places, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(6, 6)
        self.other.weight = self.linear.weight
        self.twice = nn.Sequential(self.linear, nn.Tanh(), self.linear)
        self.register_buffer("shift", torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.twice(x) * self.other(x + self.shift)


class Ragged(LinearFunction):
    """Half of it depends on the data."""

    def forward(self, x: Tensor) -> Tensor:
        chosen = x[:, :, 0] > 0
        result = x * 0.5
        result[chosen] = super().forward(x[chosen]).tanh()
        return result


ODD = [
    Same, View, Constant, Detached, HalfDetached, NoGradInside, InPlaceInside, GradInside,
    Saving, Reusing, Ragged, Tied,
]  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_odd_functions(kind: type[nn.Module]) -> None:
    assert_right(kind)


@pytest.mark.parametrize("kind", ODD)
def test_odd_functions_in_products(kind: type[nn.Module]) -> None:
    """Where the arithmetic saves what the functions return."""
    assert_right(kind, PRODUCTS)


def test_a_checkpoint_inside_a_function() -> None:
    assert_right(Checkpointed)


def test_results_that_are_not_used() -> None:
    stage = {**PRODUCTS, "update": ["x += 0*F(y) + G(y)", "y += F(x)"]}
    found = {}
    for strategy in STRATEGIES:
        built = network({**stage, "backward": strategy}).stages[0]
        found[strategy] = outcome(built, streams_for(built))
        assert_same_outputs(found[strategy], found["store"])
        assert gradient_error(found[strategy], found["store"]) < 1e-13


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_tensor_for_every_stream(strategy: str) -> None:
    model = network({"depth": 3, "coupling": "momentum_pair", "functions": PRODUCTS["functions"]})
    stage = model.set_backward(strategy).stages[0]
    leaf = streams_for(stage)[0].requires_grad_()
    sum(out.square().sum() for out in stage(leaf, leaf, leaf, leaf)).backward()
    again = [leaf.detach().clone().requires_grad_() for _ in range(4)]
    sum(out.square().sum() for out in stage(*again)).backward()
    assert torch.allclose(leaf.grad, sum(a.grad for a in again), rtol=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_streams_that_are_only_read(strategy: str) -> None:
    stage = {
        "depth": 2,
        "streams": {"x": "input", "y": "input", "c": "input"},
        "functions": {"F": BRANCH},
        "update": ["x += F(y + c)", "y += F(c)"],
        "output": "x + y",
        "backward": strategy,
    }
    built = network(stage).stages[0]
    found = outcome(built, streams_for(built))
    assert torch.equal(found.outputs[2], streams_for(built)[2])
    x, y, c = streams_for(built)
    needing = [out.requires_grad for out in built.requires_grad_(False)(x.requires_grad_(), y, c)]
    assert needing == [True, False, False]
    built.requires_grad_(True)
    assert (
        gradient_error(
            found, outcome(network({**stage, "backward": "store"}).stages[0], streams_for(built))
        )
        < 1e-12
    )
