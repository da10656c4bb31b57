"""The ODE blocks of the zoo that are solved by reversible methods: numbers against the published
steps, written out in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from by_hand import Streams, Weights, assert_network, assert_stage, shaken
from conv_equations import batch_normed, classified, convolved
from torch import Tensor

import archspec
from compiler.network import Network

SCALES = ("scale1", "scale2", "scale3", "scale4")
WIDTHS = (4, 8, 12, 16)
STEPS = 4
Field = Callable[[Tensor], Tensor]
"""The right-hand side of the ODE, that of a whole block."""


def asynchronous_leapfrog(f: Field, h: float, z: Tensor, v: Tensor) -> Streams:
    """Half a step at the old velocity, half a step at the new (Zhuang et al. 2021)."""
    halfway = z + v * h / 2
    u = f(halfway)
    v = 2 * u - v
    return halfway + v * h / 2, v


def reversible_heun(f: Field, h: float, y: Tensor, z: Tensor) -> Streams:
    """A solution, and another that leaps over it (Kidger et al. 2021)."""
    leaped = 2 * y - z + f(z) * h
    return y + (f(z) + f(leaped)) * h / 2, leaped


@dataclass(frozen=True)
class Reference:
    """A network: the steps of its blocks, and how a block's two streams start."""

    name: str
    """Of its spec."""
    step: Callable[[Field, float, Tensor, Tensor], Streams]
    start: Callable[[Tensor], Streams]

    def block(self, w: Weights, scale: str, streams: Streams) -> Streams:
        """From time 0 to 1."""
        for _ in range(STEPS):
            streams = self.step(lambda x: field(w, scale, x), 1 / STEPS, *streams)
        return streams

    def forward(self, w: Weights, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, 10)."""
        x = batch_normed(w, "stem.batch_norm", convolved(w, "stem.conv", images)).relu()
        for scale in SCALES:
            if scale != "scale1":
                x = convolved(w, f"stages.{scale}.transition.conv", x, stride=2)
                x = batch_normed(w, f"stages.{scale}.transition.batch_norm", x)
            x, _ = self.block(w, scale, self.start(x))
        return classified(w, x)


def field(w: Weights, scale: str, x: Tensor) -> Tensor:
    """The same weights in every step."""
    for number in ("", "_2"):
        name = f"stages.{scale}.shared.F"
        x = convolved(w, f"{name}.conv{number}", x)
        x = batch_normed(w, f"{name}.batch_norm{number}", x).relu()
    return x


REFERENCES = (
    Reference("alf_cifar10", asynchronous_leapfrog, lambda x: (x, torch.zeros_like(x))),
    Reference("heun_cifar10", reversible_heun, lambda x: (x, x)),
)
each = pytest.mark.parametrize("reference", REFERENCES, ids=lambda reference: reference.name)


def narrow(reference: Reference) -> Network:
    """The shipped network with few channels, on small images."""
    settings = ["input.image=[3, 16, 16]", f"stem.0.conv.out={WIDTHS[0]}"]
    for scale, width in zip(SCALES[1:], WIDTHS[1:], strict=True):
        settings.append(f"stages.{scale}.transition.0.conv.out={width}")
    torch.manual_seed(0)
    network = shaken(archspec.build(reference.name, settings))
    assert [stage.backward for stage in network.stages] == ["reversible"] * 4
    assert [len(stage.layers) for stage in network.stages] == [STEPS] * 4
    return network


@each
def test_outputs_and_gradients_are_those_of_the_equations(reference: Reference) -> None:
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    assert_network(narrow(reference), images, reference.forward)


@pytest.mark.parametrize("scale", SCALES)
@each
def test_a_block_alone_on_streams_that_differ(reference: Reference, scale: str) -> None:
    network = narrow(reference)
    assert_stage(network, scale, lambda w, streams: reference.block(w, scale, streams))


@each
def test_statistics_of_norms_are_those_of_one_pass(reference: Reference) -> None:
    """Bit for bit: layers that are computed again do not count again."""
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    networks = [narrow(reference), narrow(reference)]
    networks[1].set_backward("store")
    for network in networks:
        network(images).square().sum().backward()
    for reversed_one, stored in zip(*(network.buffers() for network in networks), strict=True):
        assert torch.equal(reversed_one, stored)
