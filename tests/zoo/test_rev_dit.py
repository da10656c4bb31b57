"""Rev-DiTs and momentum Rev-DiTs: numbers against networks written out in plain PyTorch."""

from __future__ import annotations

import math

import pytest
import torch
from by_hand import Weights, assert_network, shaken
from mvit_equations import mapped, mlp, normed
from rev_vit_equations import Reference, attention, both, patches
from torch import Tensor
from zoo_specs import SPECS

import archspec

DIGITS = Reference("rev_dit_digits", 2, 64, 6, 4, channels=1)
CLASSES = Reference("rev_dit_digits_classes", 2, 64, 6, 4, channels=1)
CIFAR = Reference("rev_dit_cifar10", 2, 384, 12, 6)
MOMENTUM = (
    Reference("momrev_dit_digits", 2, 64, 6, 4, channels=1, update=both, velocities=2),
    Reference("momrev_dit_cifar10", 2, 384, 12, 6, update=both, velocities=2),
)
REFERENCES = (DIGITS, CLASSES, CIFAR, *MOMENTUM)
GAMMA = 0.9


class Conditioned:
    """F and G of one layer, between whose norm and the rest the condition scales and shifts."""

    gamma = GAMMA

    def __init__(self, w: Weights, name: str, heads: int, condition: Tensor) -> None:
        self.w, self.name, self.heads, self.condition = w, name, heads, condition

    def modulated(self, function: str, x: Tensor) -> Tensor:
        x = normed(self.w, f"{self.name}.{function}.layer_norm", x)
        found = mapped(self.w, f"{self.name}.{function}.modulate.project", self.condition)
        scale, shift = found[:, None].chunk(2, -1)
        return x * (1 + scale) + shift

    def attention(self, x: Tensor) -> Tensor:
        return attention(self.w, f"{self.name}.F.attention", self.modulated("F", x), self.heads)

    def mlp(self, x: Tensor) -> Tensor:
        return mlp(self.w, f"{self.name}.G.mlp", self.modulated("G", x))


def sinusoids(time: Tensor, count: int) -> Tensor:
    """Of DiT's code, of times up to 1000 (B, 1)."""
    columns = []
    for function in (torch.cos, torch.sin):
        for place in range(count // 2):
            columns.append(function(1000 * time * 10_000 ** (-place / (count // 2))))
    return torch.cat(columns, 1)


def condition(w: Weights, name: str) -> Tensor:
    read = [sinusoids(w["time"], 64), *([w["label"]] if "label" in w else [])]
    hidden = mapped(w, f"{name}.C.linear", torch.cat(read, 1))
    return hidden / (1 + torch.exp(-hidden))


def velocity(reference: Reference, w: Weights, image: Tensor) -> Tensor:
    """(B, C, H, W) → the same."""
    x = patches(w, image, reference.patch) + w["stem.position.embedding"]
    zeros = (torch.zeros_like(x),) * reference.velocities
    streams: tuple[Tensor, ...] = (x, x, *zeros)
    for index in range(reference.depth):
        name = f"stages.trunk.layers.{index}"
        layer = Conditioned(w, name, reference.heads, condition(w, name))
        streams = reference.update(layer, *streams)
    joined = normed(w, "head.layer_norm", torch.cat(streams[:2], -1))
    squares = mapped(w, "head.patch_unembed.project", joined)
    found = torch.zeros_like(image)
    side = reference.patch
    columns = image.shape[-1] // side
    for number in range(squares.shape[1]):
        row, column = (side * place for place in divmod(number, columns))
        square = squares[:, number].reshape(-1, reference.channels, side, side)
        found[:, :, row : row + side, column : column + side] += square
    return found


def test_every_rev_dit_of_the_zoo_is_written_out() -> None:
    shipped = {name for name in SPECS if name.startswith(("rev_dit", "momrev_dit"))}
    assert {reference.name for reference in REFERENCES} == shipped


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda reference: reference.name)
def test_velocities_and_gradients_are_those_of_the_equations(reference: Reference) -> None:
    """Of times and classes too."""
    torch.manual_seed(0)
    side = reference.patch
    small = [
        f"input.image=[{reference.channels}, {2 * side}, {3 * side}]",
        f"stem.0.patch_embed.width={2 * reference.heads}",
        "stages.trunk.functions.C.0.sinusoids=64",
        f"stages.trunk.functions.C.{2 if 'classes' in reference.name else 1}.linear=5",
    ]
    model = shaken(archspec.build(reference.name, small))
    assert model.stages["trunk"].backward == "reversible"
    given = {name: torch.rand(3, *sizes, dtype=torch.float64) for name, sizes in model.side.items()}
    value = torch.randn(3, *model.plan.input.sizes, dtype=torch.float64)
    assert_network(model, value, lambda w, image: velocity(reference, w, image), given)


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda reference: reference.name)
def test_widths_and_depths_are_those_of_the_file(reference: Reference) -> None:
    with torch.device("meta"):
        model = archspec.build(reference.name)
    assert len(model.stages["trunk"].layers) == reference.depth
    embedding = dict(model.named_parameters())["stem.patch_embed.project.weight"]
    assert (len(embedding), embedding.shape[-1]) == (reference.width, reference.patch)


def test_frequencies_fall_from_1000_to_a_tenth() -> None:
    """What changes fastest turns 1000 radians from noise to data."""
    layer = archspec.build("rev_dit_digits").stages["trunk"].layers[0].C.sinusoids
    time = torch.linspace(0, 1, 10_001)[:, None]
    found = layer(time)
    assert found.shape == (10_001, 64)
    slope = (found[1:] - found[:-1]).abs().amax(0) * 10_000
    assert float(slope[32]) == pytest.approx(1000, rel=0.01)
    assert float(slope[63]) == pytest.approx(1000 * 10_000 ** (-31 / 32), rel=0.01)
    assert math.isclose(float(found[0, :32].sum()), 32)
