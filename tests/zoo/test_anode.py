"""ODE blocks in steps that are differentiated (Gholami et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import archspec
from compiler.memory import step_memory
from compiler.network import Network
from compiler.schedules import evaluations

SPECS = {"euler": "anode_resnet10_cifar10"} | {
    solver: f"anode_resnet10_cifar10_{solver}" for solver in ("rk2", "rk4")
}
EVALUATIONS = {"euler": 1, "rk2": 2, "rk4": 4}
"""Of the right-hand side in one step."""
SCALES = ("scale1", "scale2", "scale3", "scale4")
BLOCK = ("conv", "batch_norm", "relu", "conv_2", "batch_norm_2", "relu_2")
SCHEDULES: tuple[Mapping[str, int], ...] = ({}, {"every": 2}, {"slots": 1}, {"slots": 2})


def narrow(name: str, steps: int, *more: str) -> Network:
    """A spec's network with few channels, on small images, in float64."""
    settings = ["input.image=[3, 16, 16]", "stem.0.conv.out=4"]
    for scale, width in zip(SCALES[1:], (8, 12, 16), strict=True):
        settings.append(f"stages.{scale}.transition.0.conv.out={width}")
    settings += [f"stages.{scale}.depth={steps}" for scale in SCALES]
    torch.manual_seed(0)
    return archspec.build(name, [*settings, *more]).double().train()


def gradients(network: Network, images: Tensor) -> tuple[Tensor, ...]:
    """Of a loss, for the images and every parameter."""
    images = images.clone().requires_grad_()
    loss = network(images).square().sum()
    return torch.autograd.grad(loss, [images, *network.parameters()])


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("solver", SPECS)
def test_gradients_are_those_of_stored_activations(
    solver: str, schedule: Mapping[str, int]
) -> None:
    """Bit for bit, and so are the statistics of norms: which are of one pass."""
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    networks = [narrow(SPECS[solver], 5), narrow(SPECS[solver], 5)]
    networks[0].set_backward("store")
    networks[1].set_backward("checkpoint", **schedule)
    for stored, found in zip(*(gradients(network, images) for network in networks), strict=True):
        assert torch.equal(stored, found)
    for stored, found in zip(*(network.buffers() for network in networks), strict=True):
        assert torch.equal(stored, found)


@pytest.mark.parametrize("solver", SPECS)
def test_a_block_is_the_steps_written_out(solver: str) -> None:
    network = narrow(SPECS[solver], 3)
    stage = network.stages["scale2"]
    function: Any = stage.shared.F
    assert tuple(function._modules) == BLOCK
    x = found = torch.randn(2, 8, 8, 8, dtype=torch.float64)
    h = 1 / 3
    for _ in range(3):
        k1 = function(x)
        if solver == "euler":
            x = x + h * k1
            continue
        k2 = function(x + h / 2 * k1)
        if solver == "rk2":
            x = x + h * k2
            continue
        k3 = function(x + h / 2 * k2)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + function(x + h * k3))
    torch.testing.assert_close(stage(found)[0], x, rtol=1e-12, atol=1e-12)


class Counter:
    """How often a module has run."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.count = 0
        module.register_forward_hook(self)

    def __call__(self, *_: object) -> None:
        self.count += 1


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("solver", SPECS)
def test_a_training_step_evaluates_as_often_as_the_binomial_schedule_needs(
    solver: str, slots: int
) -> None:
    network = narrow(SPECS[solver], 16)
    network.set_backward("checkpoint", slots=slots)
    counter = Counter(network.stages["scale3"].shared.F.conv)
    gradients(network, torch.randn(2, 3, 16, 16, dtype=torch.float64))
    assert counter.count == EVALUATIONS[solver] * evaluations(16, slots)


def test_the_published_schedule_evaluates_each_step_twice() -> None:
    """Once forward, and once more in the block whose turn it is."""
    network = narrow(SPECS["euler"], 2)
    counter = Counter(network.stages["scale1"].shared.F.conv)
    gradients(network, torch.randn(2, 3, 16, 16, dtype=torch.float64))
    assert counter.count == 4


def test_blocks_keep_what_they_start_from_alone() -> None:
    """O(L) kept, whatever the number of steps; with the binomial schedule the peak is near flat."""
    kept = []
    for steps in (4, 16):
        network = narrow("anode_resnet10_cifar10_revolve", steps)
        network.set_backward("checkpoint", slots=1)
        images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
        kept.append(step_memory(network, lambda logits: logits.square().mean(), images))
    assert kept[1].kept == kept[0].kept
    assert kept[1].peak <= 1.05 * kept[0].peak
