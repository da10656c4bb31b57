"""Exact arithmetic, and all that autograd allows."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from exact_programs import FUNCTIONS, INPUTS, PROGRAMS, grads, momentum
from exact_stages import assert_same_pass, exact_stage, in_floats, one_pass, streams_on_grid
from random_programs import given_to
from small_networks import STRATEGIES
from torch import Tensor

from compiler.information import Information
from compiler.stage import Stage


def small() -> Stage:
    return exact_stage(momentum(["layer_norm", {"mlp": {"ratio": 2, "dropout": 0.3}}], depth=4))


def losses(stage: Stage, scale: float = 1.0) -> Tensor:
    torch.manual_seed(3)
    outputs = stage(*(scale * s for s in streams_on_grid(stage)))
    weights = [torch.randn_like(out) for out in outputs]
    return torch.stack([(o * w).sum() for o, w in zip(outputs, weights, strict=True)]).sum()


def assert_alike(run: Any, make: Any = small) -> None:
    """A way to get gradients gives the same by every strategy, bit for bit."""
    found = {}
    for strategy in STRATEGIES:
        stage = make()
        stage.backward = strategy
        found[strategy] = run(stage)
    assert found["store"]
    for strategy in STRATEGIES[1:]:
        for a, b in zip(found[strategy], found["store"], strict=True):
            assert torch.equal(a, b)


def test_two_backward_passes() -> None:
    def run(stage: Stage) -> list[Tensor]:
        loss = losses(stage)
        loss.backward(retain_graph=True)
        first = grads(stage)
        loss.backward()
        second = grads(stage)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        return first

    assert_alike(run)


def test_two_forward_passes_before_one_backward() -> None:
    def run(stage: Stage) -> list[Tensor]:
        one, two, three = losses(stage), losses(stage, 2.0), losses(stage, 0.5)
        (one + three).backward()
        two.backward()
        return grads(stage)

    assert_alike(run)


def test_accumulated_gradients() -> None:
    def run(stage: Stage) -> list[Tensor]:
        for scale in (1.0, 0.25, 2.0):
            losses(stage, scale).backward()
        return grads(stage)

    assert_alike(run)


def test_frozen_parameters_and_streams() -> None:
    def run(stage: Stage) -> list[Tensor]:
        for name, parameter in stage.named_parameters():
            parameter.requires_grad_("layers.1.F" in name or "coefficients" in name)
        losses(stage).backward()
        return grads(stage)

    assert_alike(run)


def test_one_output_unused() -> None:
    def run(stage: Stage) -> list[Tensor]:
        torch.manual_seed(3)
        outputs = stage(*streams_on_grid(stage))
        outputs[2].square().sum().backward()
        return grads(stage)

    assert_alike(run)


def test_gradients_of_gradients() -> None:
    """In float64, bit for bit between strategies, and near those of ordinary arithmetic."""

    def make() -> Stage:
        stage = momentum([{"linear": "channels"}, "tanh"], depth=2)
        return exact_stage({**stage, "arithmetic": {"exact": 20}}, torch.float64)

    def run(stage: Stage) -> list[Tensor]:
        leaves = [s.requires_grad_() for s in streams_on_grid(make())]
        outputs = stage(*leaves)
        loss = torch.stack([out.pow(3).sum() for out in outputs]).sum()
        first = torch.autograd.grad(loss, [*leaves, *stage.parameters()], create_graph=True)
        second = torch.stack([g.square().sum() for g in first]).sum()
        found = torch.autograd.grad(second, [*leaves, *stage.parameters()])
        return [g.detach() for g in (*first, *found)]

    assert_alike(run, make)
    stage = make()
    other = in_floats(stage)
    other.backward = "store"
    for a, b in zip(run(stage), run(other), strict=True):
        assert (a - b).norm() < 1e-4 * b.norm()


def copied(stage: Stage) -> Stage:
    return copy.deepcopy(stage)


def pickled(stage: Stage) -> Stage:
    found: Stage = pickle.loads(pickle.dumps(stage))
    return found


def saved(stage: Stage) -> Stage:
    file = io.BytesIO()
    torch.save(stage, file)
    file.seek(0)
    found: Stage = torch.load(file, weights_only=False)
    return found


@pytest.mark.parametrize("way", [copied, pickled, saved])
def test_copies_of_a_stage(way: Any) -> None:
    stage = small()
    streams = streams_on_grid(stage)
    assert_same_pass(one_pass(way(stage), streams), one_pass(stage, streams))


MODES = {"grad": torch.enable_grad, "no grad": torch.no_grad, "inference": torch.inference_mode}


@pytest.mark.parametrize("back", ["grad", "no grad"])
@pytest.mark.parametrize("ahead", MODES)
@pytest.mark.parametrize("name", ["attention", *PROGRAMS])
def test_an_inverse_in_another_mode(name: str, ahead: str, back: str) -> None:
    """By any strategy; the information is that of the forward pass."""
    functions = momentum(FUNCTIONS["attention"][1]) if name == "attention" else PROGRAMS[name]
    entry = INPUTS["image" if "maps" in functions else "tokens"]
    side = {"t": entry} if "side" in name else {}
    stage = exact_stage({"depth": 3, **functions}, input=entry, side=side).eval()
    streams = streams_on_grid(stage)
    given = given_to(stage, 3, streams[0])
    for strategy in STRATEGIES:
        stage.backward, information = strategy, Information()
        with MODES[ahead]():
            outputs = stage(*streams, **given, information=information)
        mode = "inference" if ahead == "inference" else back  # its tensors stay there
        with MODES[mode]():
            found = stage.inverse(*outputs, **given, information=information)
        for a, b in zip(found, streams, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_gradient_flows_through_an_inverse(name: str) -> None:
    """Rounding has none, and what goes around it would silently be a part."""
    entry = INPUTS["image" if "maps" in PROGRAMS[name] else "tokens"]
    side = {"t": entry} if "side" in name else {}
    stage = exact_stage({"depth": 2, **PROGRAMS[name]}, input=entry, side=side).eval()
    streams, information = streams_on_grid(stage), Information()
    given = given_to(stage, 3, streams[0])
    outputs = stage(*streams, **given, information=information)
    back = stage.inverse(*outputs, **given, information=information)
    assert any(out.requires_grad for out in outputs)
    assert not any(b.requires_grad for b in back)


def test_functional_call_and_transforms() -> None:
    stage = exact_stage(momentum([{"linear": "channels"}, "tanh"]))
    streams, parameters = streams_on_grid(stage), dict(stage.named_parameters())

    def loss(parameters: dict[str, Tensor], *streams: Tensor) -> Tensor:
        outputs = torch.func.functional_call(stage, parameters, streams)
        return torch.stack([out.square().sum() for out in outputs]).sum()

    wanted = torch.autograd.grad(loss(parameters, *streams), list(parameters.values()))
    found = torch.func.grad(loss)(parameters, *streams)
    for gradient, (name, value) in zip(wanted, found.items(), strict=True):
        assert torch.equal(gradient, value), name
