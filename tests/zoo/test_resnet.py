"""ResNets beside torchvision's and MemCNN's, with the same weights."""

from __future__ import annotations

import pytest
import torch
import torchvision
from memcnn_names import memcnn_network, memcnn_state
from torch import Tensor, nn

import archspec
from compiler.conversion.resnet import resnet_names
from compiler.network import Network

SMALL = "input.image=[3, 64, 64]"


def gradients(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Of a loss, for every parameter by name, and for the images."""
    images = images.clone().requires_grad_()
    names, parameters = zip(*network.named_parameters(), strict=True)
    loss = network(images).square().sum()
    found = torch.autograd.grad(loss, [*parameters, images])
    return dict(zip((*names, "images"), found, strict=True))


def beside_torchvision(name: str) -> tuple[Network, nn.Module, dict[str, str]]:
    """A spec's network and torchvision's, in float64, with the weights of the latter."""
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)(weights=None).double()
    names = resnet_names(theirs.state_dict())
    ours = archspec.build(name, [SMALL]).double()
    ours.load_state_dict({names[key]: value for key, value in theirs.state_dict().items()})
    return ours, theirs, names


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet101", "resnet152"])
def test_every_weight_of_torchvision_has_its_place(name: str) -> None:
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)(weights=None)
        ours = archspec.build(name)
    names = resnet_names(theirs.state_dict())
    shapes = {names[key]: value.shape for key, value in theirs.state_dict().items()}
    assert shapes == {key: value.shape for key, value in ours.state_dict().items()}


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_it_computes_what_torchvision_does(name: str) -> None:
    """Logits, gradients, and the statistics that a training pass leaves: the same bits."""
    ours, theirs, names = beside_torchvision(name)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert torch.equal(ours(images), theirs(images))
    left = ours.state_dict()
    for key, value in theirs.state_dict().items():
        assert torch.equal(left[names[key]], value), key
    with torch.no_grad():
        assert torch.equal(ours.eval()(images), theirs.eval()(images))
    ours.train(), theirs.train()
    expected = gradients(theirs, images)
    for key, gradient in gradients(ours, images).items():
        their_key = {v: k for k, v in names.items()}.get(key, key)
        torch.testing.assert_close(gradient, expected[their_key], rtol=1e-9, atol=1e-9)


def test_keys_of_other_networks_are_refused() -> None:
    with pytest.raises(KeyError, match="classifier"):
        resnet_names(["conv1.weight", "classifier.weight"])


@pytest.mark.parametrize(
    ("name", "units"), [("resnet32_cifar10", 5), ("resnet110_cifar10", 3), ("resnet164_cifar10", 3)]
)
def test_on_cifar10_it_computes_what_memcnn_does(name: str, units: int) -> None:
    """At a reduced depth, but for ResNet-32."""
    torch.manual_seed(0)
    theirs = memcnn_network(name, units).double()
    settings = [f"stages.{stage}.depth={units - 1}" for stage in ("fine", "middle", "coarse")]
    ours = archspec.build(name, settings).double()
    names = memcnn_state(ours, theirs)
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    expected = gradients(theirs, images)
    for key, gradient in gradients(ours, images).items():
        torch.testing.assert_close(gradient, expected[names.get(key, key)], rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            ours.eval()(images), theirs.eval()(images), rtol=1e-12, atol=1e-12
        )
