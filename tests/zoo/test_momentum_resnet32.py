"""The Momentum ResNets of ResNet-32's units (Sander et al. 2021), their gamma or the start of their
velocity learned: numbers against networks written out in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from by_hand import Streams, Weights, assert_network, assert_stage, shaken
from conv_equations import batch_normed, classified, convolved, unit
from torch import Tensor

import archspec
from compiler.network import Network

STAGES = ("fine", "middle", "coarse")
UNITS = 4
"""Of each stage, that drive its velocity; one before them does not."""


def fixed(w: Weights, name: str) -> float:
    return 0.9


def learned(w: Weights, name: str) -> Tensor:
    """Between 0.5 and 0.99, by the sigmoid of its weight."""
    return 0.5 + 0.49 / (1 + torch.exp(-w[f"{name}.coefficients.gamma"]))


def at_rest(w: Weights, stage: str, x: Tensor) -> Tensor:
    return torch.zeros_like(x)


def at_speed(w: Weights, stage: str, x: Tensor) -> Tensor:
    """A unit of its own says how fast the stage starts."""
    return unit(w, f"stages.{stage}.starts.V0", x)


@dataclass(frozen=True)
class Reference:
    """A network: gamma of a layer, and the velocity that a stage starts with."""

    name: str
    """Of its spec."""
    gamma: Callable[[Weights, str], Tensor | float] = fixed
    velocity: Callable[[Weights, str, Tensor], Tensor] = at_rest

    def layers(self, w: Weights, stage: str, streams: Streams) -> Streams:
        """v = gamma*v + (1 - gamma)*F(x), x = x + v."""
        x, v = streams
        for index in range(UNITS):
            name = f"stages.{stage}.layers.{index}"
            gamma = self.gamma(w, name)
            v = gamma * v + (1 - gamma) * unit(w, f"{name}.F", x)
            x = x + v
        return x, v

    def forward(self, w: Weights, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, 10)."""
        x = batch_normed(w, "stem.batch_norm", convolved(w, "stem.conv", images)).relu()
        for stage in STAGES:
            x = first_unit(w, stage, x)
            x, _ = self.layers(w, stage, (x, self.velocity(w, stage, x)))
        return classified(w, batch_normed(w, "head.batch_norm", x).relu())


def first_unit(w: Weights, stage: str, x: Tensor) -> Tensor:
    """An ordinary unit. That of the first stage follows a rectifier, and has no other before it."""
    name = f"stages.{stage}.transition.residual"
    if stage == "fine":
        body = f"{name}.body"
        inner = batch_normed(w, f"{body}.batch_norm", convolved(w, f"{body}.conv", x)).relu()
        return x + convolved(w, f"{body}.conv_2", inner)
    kept = convolved(w, f"{name}.shortcut.conv", x, stride=2)
    kept = batch_normed(w, f"{name}.shortcut.batch_norm", kept)
    return kept + unit(w, f"{name}.body", x, stride=2)


REFERENCES = (
    Reference("momentum_resnet32_cifar10"),
    Reference("momentum_resnet32_cifar10_gamma", gamma=learned),
    Reference("momentum_resnet32_cifar10_speed", velocity=at_speed),
)
each = pytest.mark.parametrize("reference", REFERENCES, ids=lambda reference: reference.name)


def built(reference: Reference) -> Network:
    """As shipped, for small images. Its learned gammas are all different."""
    torch.manual_seed(0)
    network = shaken(archspec.build(reference.name, "input.image=[3, 12, 12]"))
    assert [stage.backward for stage in network.stages] == ["reversible"] * 3
    return network


@each
def test_outputs_and_gradients_are_those_of_the_equations(reference: Reference) -> None:
    """Those of gammas, and of the functions that velocities start as, among them."""
    images = torch.randn(3, 3, 12, 12, dtype=torch.float64)
    assert_network(built(reference), images, reference.forward)


@pytest.mark.parametrize("stage", STAGES)
@each
def test_a_stage_alone_on_streams_that_differ(reference: Reference, stage: str) -> None:
    network = built(reference)
    assert_stage(network, stage, lambda w, streams: reference.layers(w, stage, streams))


@each
def test_without_momentum_it_is_the_resnet(reference: Reference) -> None:
    """At gamma 0, bit for bit, gradients too, however fast the velocity starts."""
    settings = ["input.image=[3, 12, 12]"]
    gammas = [f"stages.{stage}.constants.gamma=0" for stage in STAGES]
    # At gamma 0 there is no inverse: the velocity forgets all.
    backward = [f"stages.{stage}.backward=store" for stage in STAGES]
    torch.manual_seed(0)
    twin = shaken(archspec.build("resnet32_cifar10", settings))
    without = archspec.build(reference.name, [*settings, *gammas, *backward]).double()
    without.load_state_dict(twin.state_dict(), strict=False)
    images = torch.randn(3, 3, 12, 12, dtype=torch.float64)
    found = []
    for network in (twin, without):
        output = network(images)
        output.square().sum().backward()
        gradients = {name: p.grad for name, p in network.named_parameters() if ".V0." not in name}
        found.append({"output": output, **gradients})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name
