"""What the transformers of the zoo are to one another."""

from __future__ import annotations

import re

import pytest
import torch
from rev_vit_equations import REFERENCES, narrower
from torch import Tensor
from zoo_specs import SPECS, full

import archspec
from compiler.counting import parameters
from compiler.memory import step_memory
from compiler.network import Network

TWINS = {
    name: re.sub(r"_(one|shared|nesterov|scheduled|learned)$", "", name).replace("mom", "", 1)
    for name in SPECS
    if name.startswith("momrev_")
}
"""Each momentum Rev-ViT, Rev-MViT or Rev-DiT and the one without momentum that it is made of."""
SIZES = {reference.name: narrower(reference) for reference in REFERENCES} | {
    "momrev_mvit_b": ["input.image=[3, 36, 44]", "stem.0.conv.out=8", "stages.scale4.depth=3"],
    "momrev_dit_digits": ["stem.0.patch_embed.width=8"],
    "momrev_dit_cifar10": ["input.image=[3, 4, 6]", "stem.0.patch_embed.width=12"],
}
"""Settings that make them small enough for numbers."""


@pytest.mark.parametrize("name", sorted(TWINS))
def test_a_momentum_rev_vit_has_the_parameters_of_its_twin(name: str) -> None:
    """Only x1 and x2 reach the head; what else there is are learned gammas."""
    with torch.device("meta"):
        ours, twin = (Network(full(each)) for each in (name, TWINS[name]))
    learned = sum(p.numel() for n, p in ours.named_parameters() if ".coefficients." in n)
    assert learned == (6 if name.endswith("_learned") else 0)
    assert parameters(ours) - learned == parameters(twin)


def outputs_and_gradients(network: Network, images: Tensor) -> list[Tensor]:
    """In training: the same paths are dropped by networks of as many functions, and the same
    times given."""
    torch.manual_seed(1)
    sides = {name: torch.rand(len(images), *sizes).double() for name, sizes in network.side.items()}
    output = network.train()(images, **sides)
    found = torch.autograd.grad(output.square().sum(), list(network.parameters()))
    return [output.detach(), *found]


@pytest.mark.parametrize("name", sorted(TWINS))
def test_without_momentum_it_is_the_rev_vit(name: str) -> None:
    """At gamma 0, bit for bit, gradients too; and near it nearly."""

    def with_gamma(gamma: float) -> Network:
        stages = archspec.load(name).spec.stages
        gammas = [f"stages.{stage}.constants.gamma={gamma}" for stage in stages]
        # At gamma 0 there is no inverse: the velocity forgets all.
        backward = [f"stages.{stage}.backward=checkpoint" for stage in stages]
        return archspec.build(name, [*SIZES[name], *gammas, *backward]).double()

    without = with_gamma(0)
    twin = archspec.build(TWINS[name], SIZES[name]).double()
    twin.set_backward("store")
    twin.load_state_dict(without.state_dict())
    images = torch.randn(2, *twin.plan.input.sizes, dtype=torch.float64)
    expected = outputs_and_gradients(twin, images)
    for ours, theirs in zip(outputs_and_gradients(without, images), expected, strict=True):
        assert torch.equal(ours, theirs)
    distances = []
    for gamma in (1e-1, 1e-3, 1e-5):
        near = with_gamma(gamma)
        near.load_state_dict(without.state_dict())
        distances.append(float((outputs_and_gradients(near, images)[0] - expected[0]).norm()))
    assert distances[0] > 10 * distances[1] > 100 * distances[2] > 0


def test_the_variants_are_different_networks() -> None:
    variants = [each for each in TWINS if re.match(r"momrev_vit_cifar10(?!_learned)", each)]
    assert len(variants) > 2
    networks = [archspec.build(name).double().eval() for name in variants]
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for network in networks:
        network.load_state_dict(networks[0].state_dict())
    outputs = [network(images) for network in networks]
    for index, one in enumerate(outputs):
        assert all(float((one - other).detach().norm()) > 1e-3 for other in outputs[:index])


# BDIA ---------------------------------------------------------------------------------------------


def as_vit(name: str) -> str:
    """The parameter of vit_cifar10 that one of bdia_vit_cifar10 is: x starts where its first block
    ends."""
    for kind, function in (("residual", "F"), ("residual_2", "G")):
        name = name.replace(f"starts.B.{kind}.body.", f"layers.first.{function}.")
    found = re.sub(r"layers\.(\d+)", lambda m: f"layers.{int(m[1]) + 1}", name)
    return found.replace("layers.first", "layers.0")


def bdia_and_vit(arithmetic: str) -> tuple[Network, Network]:
    bdia = archspec.build("bdia_vit_cifar10", f"stages.trunk.arithmetic={arithmetic}").double()
    vit = archspec.build("vit_cifar10").double()
    vit.load_state_dict({as_vit(name): value for name, value in bdia.state_dict().items()})
    return bdia, vit


def test_bdia_in_evaluation_is_the_ordinary_transformer() -> None:
    bdia, vit = bdia_and_vit("float")
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(bdia.eval()(images), vit.eval()(images), rtol=0, atol=1e-12)
        bdia.train()
        assert float((bdia(images) - vit(images)).norm()) > 1e-2


def test_bdia_on_the_papers_grid_is_the_transformer_to_the_grid() -> None:
    """2^-9 for each of five layers; what is drawn in training is ±1/2 for every sample."""
    bdia, vit = bdia_and_vit("{exact: 9}")
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(bdia.eval()(images), vit.eval()(images), rtol=0, atol=0.02)
    stage = bdia.train().stages[0]
    drawn = stage.draw(torch.empty(64, 1, 1))
    assert len(drawn) == 5
    for layer in drawn:
        assert layer["gamma"].shape == (64, 1, 1)
        assert set(layer["gamma"].unique().tolist()) == {-0.5, 0.5}
    assert not torch.equal(drawn[0]["gamma"], drawn[1]["gamma"])


def test_bdia_starts_where_the_first_block_ends() -> None:
    """x_1 = x_0 + h_0(x_0), with h(x) = attention(x) + mlp(x + attention(x))."""
    bdia, vit = bdia_and_vit("float")
    tokens = torch.randn(2, 64, 128, dtype=torch.float64)
    first = vit.stages[0].layers[0].by_name()
    attended = first["F"](tokens)
    expected = tokens + attended + first["G"](tokens + attended)
    p, x = bdia.stages[0].split(tokens)
    assert torch.equal(p, tokens)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-12)


def test_bdia_takes_little_more_memory_than_rev_vit() -> None:
    """Beside two streams, and what its first block starts from, a bit for each element and layer.
    The first block is computed again."""
    kept = {}
    for name in ("vit_cifar10", "rev_vit_cifar10", "bdia_vit_cifar10"):
        network = archspec.build(name)
        images = torch.randn(8, 3, 32, 32)
        kept[name] = step_memory(network, lambda logits: logits.sum(), images).kept
    stream = 8 * 64 * 128
    # Bits are kept in words of 16.
    assert kept["bdia_vit_cifar10"] < kept["rev_vit_cifar10"] + 4 * stream + 2 * stream
    assert kept["bdia_vit_cifar10"] < kept["vit_cifar10"] / 20
