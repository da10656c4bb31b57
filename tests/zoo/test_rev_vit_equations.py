"""Rev-ViTs, momentum Rev-ViTs and ViTs of their sizes: numbers against networks written out
in plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from by_hand import assert_network, assert_stage, shaken
from rev_vit_equations import REFERENCES, Reference, narrower
from zoo_specs import SPECS, full

import archspec
from compiler.functions.pointwise import DropPath
from compiler.network import Network

each = pytest.mark.parametrize("reference", REFERENCES, ids=lambda reference: reference.name)


def narrow(reference: Reference) -> Network:
    """The shipped network, but for its width."""
    torch.manual_seed(0)
    return shaken(archspec.build(reference.name, narrower(reference)))


def test_every_rev_vit_of_the_zoo_is_written_out() -> None:
    shipped = {name for name in SPECS if name.startswith(("rev_vit", "momrev_vit"))}
    assert {reference.name for reference in REFERENCES} == shipped | {"vit_cifar10", "vit_digits"}


@each
def test_outputs_and_gradients_are_those_of_the_equations(reference: Reference) -> None:
    model = narrow(reference)
    kind = "reversible" if reference.residual_streams == 2 else "store"
    assert model.stages["trunk"].backward == kind
    value = torch.randn(3, *model.plan.input.sizes, dtype=torch.float64)
    assert_network(model, value, reference.forward)


@each
def test_the_trunk_alone_on_streams_that_differ(reference: Reference) -> None:
    """Velocities too start away from zero, and from one another."""
    assert_stage(narrow(reference), "trunk", reference.trunk)


@each
def test_widths_and_depths_are_the_published_ones(reference: Reference) -> None:
    with torch.device("meta"):
        model = Network(full(reference.name))
    weights = dict(model.named_parameters())
    assert len(model.stages["trunk"].layers) == reference.depth
    embedding = weights["stem.patch_embed.project.weight"]
    assert (len(embedding), embedding.shape[-1]) == (reference.width, reference.patch)
    hidden = weights["stages.trunk.layers.0.G.mlp.expand.weight"]
    ratio = 2 if "digits" in reference.name else 4
    assert hidden.shape == (ratio * reference.width, reference.width)


@each
def test_drop_path_rises_from_layer_to_layer(reference: Reference) -> None:
    with torch.device("meta"):
        layers = Network(full(reference.name)).stages["trunk"].layers
    for index, layer in enumerate(layers):
        rates = [module.rate for module in layer.modules() if isinstance(module, DropPath)]
        expected = reference.drop_path * index / (reference.depth - 1)
        assert rates == ([pytest.approx(expected)] * 2 if reference.drop_path else [])
