"""Side inputs of other dtypes, made elsewhere, or that are streams too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from one_stage import spec as one_spec
from small_networks import STRATEGIES, error
from torch import Tensor

import archspec
from compiler.network import Network

SIDE = {"c": {"tokens": [5, 8]}}
JOINED = {"F": ["concat", {"linear": 8}, "tanh"]}


def network(update: str, strategy: str, **stage: Any) -> Network:
    torch.manual_seed(0)
    backward = "checkpoint" if strategy == "store" else strategy
    spec = one_spec(update, functions=JOINED, depth=3, backward=backward, **stage)
    model = archspec.build(spec | {"side": SIDE}).double()
    return model.set_backward(strategy)


def gradients(model: Network, c: Tensor) -> list[Tensor]:
    x = torch.linspace(-1, 1, 160, dtype=torch.float64).view(4, 5, 8)
    loss = model(x, c=c).square().sum()
    return list(torch.autograd.grad(loss, list(model.parameters())))


def condition() -> Tensor:
    return torch.arange(160).view(4, 5, 8) % 3


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32, torch.bfloat16])
def test_the_first_argument_may_be_of_any_dtype(strategy: str, dtype: torch.dtype) -> None:
    """What a function gives takes the dtype of the streams, and not that of its first argument."""
    model = network("x += F(c, y); y += x", strategy)
    c = condition().to(dtype)
    wanted = gradients(model.set_backward("store"), c.double())
    found = gradients(model.set_backward(strategy), c)
    assert all(g.any() for g in wanted)
    assert max(error(f, w, 1e-3) for f, w in zip(found, wanted, strict=True)) < 1e-12


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_buffer_of_inference_mode_may_be_used_again(strategy: str) -> None:
    model = network("x += F(y, c); y += x", strategy)
    with torch.inference_mode():
        c = condition().double()
    x = torch.linspace(-1, 1, 160, dtype=torch.float64).view(4, 5, 8)
    wanted = gradients(model.set_backward("store"), condition().double())
    loss = model.set_backward(strategy)(x, c=c).square().sum()
    with torch.inference_mode():
        c.zero_()
    found = torch.autograd.grad(loss, list(model.parameters()))
    assert max(error(f, w, 1e-3) for f, w in zip(found, wanted, strict=True)) < 1e-12


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("needs", [False, True])
def test_a_temporary_may_be_a_side_input(strategy: str, needs: bool) -> None:
    update = "k := c; x = exp(tanh(k*y))*x + F(y, k); y = exp(tanh(k))*y + F(x, c)*k"

    def run(how: str) -> list[Tensor]:
        c = condition().double().requires_grad_(needs)
        model = network(update, how)
        x = torch.linspace(-1, 1, 160, dtype=torch.float64).view(4, 5, 8)
        loss = model(x, c=c).square().sum()
        c.requires_grad_(needs)
        return list(torch.autograd.grad(loss, [*model.parameters(), *([c] if needs else [])]))

    pairs = zip(run(strategy), run("store"), strict=True)
    assert max(error(f, w, 1e-3) for f, w in pairs) < 1e-12


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_stream_may_be_a_side_input_too(strategy: str) -> None:
    def run(how: str) -> list[Tensor]:
        stage = network("x += F(y, c); y = exp(tanh(x))*y + c*x", how).stages[0]
        a = torch.linspace(-1, 1, 160, dtype=torch.float64).view(4, 5, 8).requires_grad_()
        b = a.detach().cos().requires_grad_()
        out = stage(a, b, c=a)
        loss = sum(o.square().sum() for o in out)
        return list(torch.autograd.grad(loss, [a, b, *stage.parameters()]))

    pairs = zip(run(strategy), run("store"), strict=True)
    assert max(error(f, w, 1e-3) for f, w in pairs) < 1e-12


@pytest.mark.parametrize("strategy", ["checkpoint", "store"])
def test_a_stream_may_become_a_side_input(strategy: str) -> None:
    model = network("x = c; y = exp(tanh(x))*y + F(x, y)*c", strategy)
    c = condition().double()
    pairs = zip(gradients(model, c), gradients(model.set_backward("store"), c), strict=True)
    assert max(error(f, w, 1e-3) for f, w in pairs) < 1e-12


@pytest.mark.parametrize("wrong", [None, 0.5, [1.0]])
def test_side_inputs_are_tensors(wrong: Any) -> None:
    model = network("x += F(y, c); y += x", "reversible")
    with pytest.raises(TypeError, match="the side input `c` is a tensor, found"):
        model(torch.randn(4, 5, 8, dtype=torch.float64), c=wrong)


def test_masks_are_boolean_or_numbers() -> None:
    functions = {"F": [{"attention": {"heads": 2, "masked": True}}]}
    spec = one_spec("x += F(y, c); y += x", functions=functions)
    model = archspec.build(spec | {"side": {"c": {"features": [5]}}})
    with pytest.raises(TypeError, match=r"boolean or floating-point, found torch\.int64"):
        model(torch.randn(4, 5, 8), c=torch.ones(4, 5).long())


def test_images_of_another_size() -> None:
    model = archspec.build("rev_vit_digits")
    with pytest.raises(ValueError, match=r"takes \(batch, 1, 8, 8\), found \(2, 1, 10, 10\)"):
        model(torch.randn(2, 1, 10, 10))


def test_a_learned_range_holds_in_single_precision() -> None:
    """Where the ends are far apart in size, the sigmoid's rounding would leave the range."""
    gamma = {"learn": -2.0, "within": [-1e5, -0.5]}
    stage = archspec.build(one_spec("x = g*x + F(y); y += x", {"g": gamma})).stages[0]
    coefficients = stage.layers[0].coefficients
    with torch.no_grad():
        coefficients._parameters["g"].fill_(30.0)
    assert float(coefficients.value("g").detach()) == -0.5
